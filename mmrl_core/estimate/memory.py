"""Which values a training step keeps for its backward pass, in bytes, by formula from its shapes.

B images, L tokens of an image, C classes, K representation tokens, D a tower's width, T tokens of the classes'
differing ends, P of the prefix that all classes share. Weights are frozen, so a matrix product keeps nothing: what is
kept are the inputs of layer norms, of the activation and of attention. tests/core/estimate/test_memory.py counts them
in torch: the formulas are within 3 % where a layer keeps more than a few kilobytes, and within 10 % everywhere.
"""

from collections.abc import Sequence
from typing import NamedTuple

from mmrl_core.clip.packing import Packing
from mmrl_core.clip.shapes import Tower

FLOAT = 4  # bytes; residual stream and layer norms are in float32 whatever the products are in
STATISTICS = 2 * FLOAT  # of a layer norm, a token


class Kinds(NamedTuple):
    """Bytes of a number."""

    product: int = FLOAT  # of matrix products
    attention: int = FLOAT  # of queries, keys and values

    @property
    def queries(self) -> int:
        """Widths that a query keeps: a view of it keeps key and value as well, a copy in another type does not."""
        return 3 if self.attention == self.product else 1


def kinds(precision: str, device: str) -> Kinds:
    """Of a settled precision (not `auto`) on a `cpu` or `cuda`."""
    product = FLOAT if precision == "float32" else 2
    attention = FLOAT if device == "cpu" else product  # mmrl_core/clip/blocks.py says why
    return Kinds(product, attention)


def finish_bytes(tower: Tower, of: Kinds) -> int:
    """A token that goes on from attention to the end of the layer: attention's output and ln_2's input, the MLP's."""
    gates = 3 if tower.gated else 1
    attended = tower.heads * FLOAT + tower.width * of.attention
    return attended + tower.width * FLOAT + STATISTICS + tower.hidden * gates * of.product


def norm_bytes(tower: Tower) -> int:
    """A token's input of ln_1."""
    return tower.width * FLOAT + STATISTICS


def image_bytes(tower: Tower, batch: int, n: int, k: int, renews: bool, of: Kinds, pools: bool = False) -> int:
    """Of the last n layers for B images. `renews`: layers compute the slots too, as in MMRL++; not in MMRL, where the
    next layer's tokens take their place. `pools`: the last layer is read in every row, not in the class token's alone.
    """
    length = tower.rows + k
    kept, d = length if renews else tower.rows, tower.width
    middle = length * 3 * d * of.attention + kept * finish_bytes(tower, of)
    rows = length if pools else 1 + k
    read = rows * (norm_bytes(tower) * (1 if pools else 2) + d * of.attention + finish_bytes(tower, of))
    last = length * (norm_bytes(tower) + 2 * d * of.attention) + read
    return batch * ((n - 1) * middle + max(0, n - 2) * length * norm_bytes(tower) + last)


def prefix_bytes(tower: Tower, length: int, n: int, of: Kinds) -> int:
    """Of what all classes share, P tokens with those of the adapter."""
    whole = norm_bytes(tower) + 3 * tower.width * of.attention + finish_bytes(tower, of)
    return length * ((n - 1) * whole + norm_bytes(tower))


def suffix_bytes(tower: Tower, packing: Packing, prefix: int, n: int, of: Kinds) -> int:
    """Of the classes' own ends in the last n layers, packed, behind a prefix of P tokens."""
    groups, size, slots = packing.ends_own.shape
    d, tokens, ends = tower.width, packing.n_tokens, len(packing.ends)
    visible = groups * (prefix + slots) * 2 * d * of.attention
    queried = groups * slots * of.queries * d * of.attention
    padded = (groups * slots - tokens) * (tower.heads * FLOAT + d * of.attention)
    middle = visible + queried + padded + tokens * finish_bytes(tower, of)
    entered = tokens * norm_bytes(tower)  # a constant in the first layer
    last = visible + (entered if n > 1 else 0) + ends * (2 * norm_bytes(tower) + finish_bytes(tower, of))
    last += groups * size * d * of.attention
    return (n - 1) * middle + max(0, n - 2) * entered + last


def chunked_suffix_bytes(
    tower: Tower, packings: Sequence[Packing], prefix: int, n: int, embed_dim: int, of: Kinds
) -> int:
    """Of all classes: a chunk at a time where there are several, whose values are computed again in backward."""
    most = max(suffix_bytes(tower, packing, prefix, n, of) for packing in packings)
    classes = sum(len(packing.ends) for packing in packings)
    return most + (classes * embed_dim * FLOAT if len(packings) > 1 else 0)


def unshared_bytes(tower: Tower, count: int, rows: int, k: int, n: int, of: Kinds) -> int:
    """Of a text tower that is not causal, for `count` classes at once of `rows` tokens each, and the adapter's K."""
    one = rows + k
    whole = one * (norm_bytes(tower) + 3 * tower.width * of.attention + finish_bytes(tower, of))
    last = one * (norm_bytes(tower) + 2 * tower.width * of.attention) + finish_bytes(tower, of)
    return count * ((n - 1) * whole + last)
