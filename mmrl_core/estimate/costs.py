"""What a training step costs in floating-point operations and bytes, by formula from its shapes.

B images, L image tokens (class token and patches), C classes, K representation tokens, D a tower's width, N layers of
which the last n carry tokens, E embedding width. One multiplication with its addition is two operations; norms,
activations and sums are not counted as operations.

The weights are frozen, so backward costs the linear layers their forward operations once more; attention's backward
kernel multiplies five times where forward multiplies twice. What is constant, shared, padding or not read is left out
(mmrl_core/clip/towers.py). In a text tower that is not causal no class shares anything with another.

Bytes moved, in float32: every product reads its weights and input and writes its output; norms, activations, attention
and residual sums read and write their values once; backward moves a layer's activations twice. Caches are not
modelled: it says how much there is to move, not how much of it reaches memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mmrl_core.clip.packing import Packing

FORWARD, BACKWARD = 4, 10  # operations of attention for a query, a key and a channel: two and five products
FLOAT = 4  # bytes
MLP = 4.0  # times the width


@dataclass(frozen=True)
class Cost:
    """Floating-point operations and bytes moved."""

    flops: float = 0
    bytes: float = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def times(self, count: float) -> "Cost":
        return Cost(count * self.flops, count * self.bytes)


def product(rows: float, inputs: int, outputs: int) -> Cost:
    """(rows, inputs) times (inputs, outputs)."""
    return Cost(2 * rows * inputs * outputs, FLOAT * (rows * (inputs + outputs) + inputs * outputs))


def layer(
    width: int, queries: float, keys: float, pairs: float, rest: float, kernel: int = FORWARD, mlp: float = MLP
) -> Cost:
    """A transformer layer, forward or backward: tokens that get a query, tokens that get key and value, pairs of query
    and key that attention visits, tokens that go on through the output projection and the MLP."""
    linear = 2 * width**2 * (queries + 2 * keys + (1 + 2 * mlp) * rest)
    weights = (4 + 2 * mlp) * width**2
    activations = width * (4 * queries + 7 * keys + (10 + 3.5 * mlp) * rest) * (1 if kernel == FORWARD else 2)
    return Cost(linear + kernel * width * pairs, FLOAT * (weights + activations))


def whole(width: int, count: int, length: int, kernel: int = FORWARD, mlp: float = MLP) -> Cost:
    """A layer over `count` sequences of `length` tokens with nothing left out."""
    tokens = count * length
    return layer(width, tokens, tokens, tokens * length, tokens, kernel, mlp)


class Shape(NamedTuple):
    """The numbers that a step's cost depends on. `image_mlp` and `text_mlp`: half of an MLP's matrices, in (D, D)."""

    method: str
    batch: int
    classes: int
    n: int
    k: int
    image_layers: int
    image_width: int
    image_tokens: int
    patch_values: int
    text_layers: int
    text_width: int
    context: int
    embed: int
    rep_dim: int
    ranks: tuple[int, int]  # of a layer's residual and of the projection, in MMRL++
    image_mlp: float = MLP
    text_mlp: float = MLP


def embedding(s: Shape) -> Cost:
    return product(s.batch * (s.image_tokens - 1), s.patch_values, s.image_width)


def our_step(s: Shape, packings: Sequence[Packing], prefix: int, cached: bool) -> Cost:
    """One step with a causal text tower, behind a prefix of that many tokens, those of the adapter included; `cached`:
    trunk and zero-shot features are given."""
    total = adapted_images(s) + shared_prefix(s, prefix)
    for packing in packings:
        forward, backward = suffixes(s, packing, prefix, FORWARD), suffixes(s, packing, prefix, BACKWARD)
        total += forward.times(2 if len(packings) > 1 else 1) + backward  # several chunks are computed again
    return total + heads_of_ours(s) + (Cost() if cached else frozen_images(s))


def step_without_sharing(s: Shape, rows: int, again: bool, cached: bool) -> Cost:
    """One step with a text tower that is not causal, of `rows` tokens a class before those of the adapter; `again`: in
    chunks that are computed again in the backward pass."""
    total, length = adapted_images(s) + heads_of_ours(s), rows + s.k
    tokens = s.classes * length
    for kernel in (FORWARD, BACKWARD):
        once = whole(s.text_width, s.classes, length, kernel, s.text_mlp).times(s.n - 1)
        once += layer(s.text_width, s.classes, tokens, tokens, s.classes, kernel, s.text_mlp)
        total += once.times(2 if again and kernel == FORWARD else 1)
    return total + (Cost() if cached else frozen_images(s))


def frozen_images(s: Shape) -> Cost:
    """Trunk, and the rest of the zero-shot pass, whose last layer is computed for the class token alone."""
    between = whole(s.image_width, s.batch, s.image_tokens, mlp=s.image_mlp).times(s.image_layers - 1)
    pairs = s.batch * s.image_tokens
    last = layer(s.image_width, s.batch, pairs, pairs, s.batch, mlp=s.image_mlp)
    return embedding(s) + between + last + product(s.batch, s.image_width, s.embed)


def adapted_images(s: Shape) -> Cost:
    """Upper layers with tokens, forward and backward; in MMRL no layer computes what the next one's tokens replace."""
    width, b, length = s.image_width, s.batch, s.image_tokens + s.k
    kept = length if s.method == "mmrlpp" else s.image_tokens
    pairs, read = b * kept * length, b * (1 + s.k)
    total = Cost()
    for kernel in (FORWARD, BACKWARD):
        constant = b * s.image_tokens if kernel == FORWARD else 0  # the trunk's projections need no backward
        if s.n > 1:
            total += layer(width, constant + s.k, constant + s.k, pairs, b * kept, kernel, s.image_mlp)
        total += layer(width, b * length, b * length, pairs, b * kept, kernel, s.image_mlp).times(max(0, s.n - 2))
        total += layer(width, read, b * length, read * length, read, kernel, s.image_mlp)
    return total


def shared_prefix(s: Shape, length: int) -> Cost:
    """BOS, representation tokens and the template's first words, once for all classes; keys alone in the last layer."""
    both = whole(s.text_width, 1, length, mlp=s.text_mlp) + whole(s.text_width, 1, length, BACKWARD, s.text_mlp)
    return both.times(s.n - 1) + layer(s.text_width, 0, length, 0, 0).times(2)


def suffixes(s: Shape, packing: Packing, prefix: int, kernel: int) -> Cost:
    """What follows the prefix, packed: linear layers see its tokens, attention its groups and the prefix."""
    width, tokens, ends = s.text_width, packing.n_tokens, len(packing.ends)
    groups, size, slots = packing.ends_own.shape
    pairs, own = groups * slots * (prefix + slots), tokens if kernel == FORWARD else 0
    first = layer(width, own, own, pairs, tokens, kernel, s.text_mlp)  # its input is constant: no backward into it
    middle = layer(width, tokens, tokens, pairs, tokens, kernel, s.text_mlp)
    last = layer(width, ends, tokens, groups * size * (prefix + slots), ends, kernel, s.text_mlp)
    return (first + middle.times(s.n - 2) if s.n > 1 else Cost()) + last


def heads_of_ours(s: Shape) -> Cost:
    """As `heads`, without forming the low-rank sums of MMRL++."""
    total = product(s.batch, s.embed, s.classes).times(2 * 3)
    total += product(s.batch, s.image_width, s.embed).times(2 + 3) + product(s.classes, s.text_width, s.embed).times(2)
    rank, projection_rank = s.ranks
    for width in (s.image_width, s.text_width):
        total += product(s.k, s.rep_dim, width).times(3 * (s.n if s.method == "mmrl" else 1))
        if s.method == "mmrlpp":
            total += (product(s.k, s.rep_dim, rank) + product(s.k, rank, width)).times(3 * s.n)
    if s.method == "mmrlpp":
        total += (product(s.batch, s.image_width, projection_rank) + product(s.batch, projection_rank, s.embed)).times(
            3
        )
    return total
