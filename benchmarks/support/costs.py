"""What a training step costs in floating-point operations and bytes, by formula from its shapes.

B images, L image tokens (class token and patches), C classes, K representation tokens, D a tower's width, N layers of
which the last n carry tokens, E embedding width. One multiplication with its addition is two operations; norms,
activations and sums are not counted as operations.

The published step: two whole image passes (zero-shot and adapted), a 77-token text pass (77 + K in the last n layers)
for every class, and backward through the last n layers of both towers. The weights are frozen, so backward costs the
linear layers their forward operations once more; attention's backward kernel multiplies five times where forward
multiplies twice. Ours leaves out what is constant, shared, padding or not read (mmrl_core/clip/towers.py).

Bytes moved, in float32: every product reads its weights and input and writes its output; norms, activations, attention
and residual sums read and write their values once; backward moves a layer's activations twice. Caches are not
modelled: it says how much there is to move, not how much of it reaches memory.
"""

from typing import NamedTuple

from benchmarks.support.cases import Case
from mmrl_core.clip.packing import Packing
from mmrl_core.method.model import AdaptedCLIP

FORWARD, BACKWARD = 4, 10  # operations of attention for a query, a key and a channel: two and five products
FLOAT = 4  # bytes
MLP = 4  # times the width


class Cost(NamedTuple):
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


def layer(width: int, queries: float, keys: float, pairs: float, rest: float, kernel: int = FORWARD) -> Cost:
    """A transformer layer, forward or backward: tokens that get a query, tokens that get key and value, pairs of query
    and key that attention visits, tokens that go on through the output projection and the MLP."""
    linear = 2 * width**2 * (queries + 2 * keys + (1 + 2 * MLP) * rest)
    weights = (4 + 2 * MLP) * width**2
    activations = width * (4 * queries + 7 * keys + (10 + 3.5 * MLP) * rest) * (1 if kernel == FORWARD else 2)
    return Cost(linear + kernel * width * pairs, FLOAT * (weights + activations))


def whole(width: int, count: int, length: int, kernel: int = FORWARD) -> Cost:
    """A layer over `count` sequences of `length` tokens with nothing left out."""
    tokens = count * length
    return layer(width, tokens, tokens, tokens * length, tokens, kernel)


class Shape(NamedTuple):
    """The numbers of a case that its cost depends on."""

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

    @classmethod
    def of(cls, case: Case) -> "Shape":
        backbone, config, visual = case.backbone, case.config, case.backbone.visual
        return cls(
            case.method, case.batch, case.classes, backbone.depth - config.insertion_depth + 1, config.n_tokens,
            len(backbone.image_blocks), backbone.image_width, backbone.image_tokens, visual.conv1.weight[0].numel(),
            len(backbone.text_blocks), backbone.text_width, backbone.text.positional_embedding.shape[0],
            backbone.embed_dim, config.rep_dim, (config.residual_rank, config.projection_rank),
        )  # fmt: skip


def embedding(s: Shape) -> Cost:
    return product(s.batch * (s.image_tokens - 1), s.patch_values, s.image_width)


def published_step(s: Shape) -> Cost:
    """One step of the published code, which tests/oracle/ repeats."""
    total = embedding(s).times(2) + whole(s.image_width, s.batch, s.image_tokens).times(s.image_layers)
    for width, count, length, layers in (
        (s.image_width, s.batch, s.image_tokens, s.image_layers),
        (s.text_width, s.classes, s.context, s.text_layers),
    ):
        total += whole(width, count, length).times(layers - s.n)
        total += whole(width, count, length + s.k).times(s.n) + whole(width, count, length + s.k, BACKWARD).times(s.n)
    return total + heads(s)


def heads(s: Shape) -> Cost:
    """Projections and logits of both branches, and the tokens from the shared space; backward included."""
    logits = product(s.batch, s.embed, s.classes).times(2 * 3)
    projections = product(s.batch, s.image_width, s.embed).times(1 + 2) + product(
        s.classes, s.text_width, s.embed
    ).times(2)
    return logits + projections + tokens(s) + rep_projection(s)


def tokens(s: Shape) -> Cost:
    """R_i of every insertion layer; the published MMRL++ forms W + A_i B_i first."""
    total = Cost()
    for width in (s.image_width, s.text_width):
        total += product(s.k, s.rep_dim, width).times(3 * s.n)
        if s.method == "mmrlpp":
            total += product(width, s.ranks[0], s.rep_dim).times(3 * s.n)
    return total


def rep_projection(s: Shape) -> Cost:
    """P_r and its product with the slots' mean; the published MMRL++ forms visual.proj + A B first."""
    total = product(s.batch, s.image_width, s.embed).times(3)
    return total + product(s.image_width, s.ranks[1], s.embed).times(3 if s.method == "mmrlpp" else 0)


def our_step(s: Shape, model: AdaptedCLIP, cached: bool) -> Cost:
    """One step of ours; `cached`: trunk and zero-shot features are given."""
    text = model.text_tower
    prefix = text.prefix.shape[1] + s.k
    total = adapted_images(s) + shared_prefix(s, prefix)
    for packing in text.packings:
        forward, backward = suffixes(s, packing, prefix, FORWARD), suffixes(s, packing, prefix, BACKWARD)
        total += forward.times(2 if len(text.packings) > 1 else 1) + backward  # several chunks are computed again
    return total + heads_of_ours(s) + (Cost() if cached else frozen_images(s))


def frozen_images(s: Shape) -> Cost:
    """Trunk, and the rest of the zero-shot pass, whose last layer is computed for the class token alone."""
    between = whole(s.image_width, s.batch, s.image_tokens).times(s.image_layers - 1)
    pairs = s.batch * s.image_tokens
    last = layer(s.image_width, s.batch, pairs, pairs, s.batch)
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
            total += layer(width, constant + s.k, constant + s.k, pairs, b * kept, kernel)
        total += layer(width, b * length, b * length, pairs, b * kept, kernel).times(max(0, s.n - 2))
        total += layer(width, read, b * length, read * length, read, kernel)
    return total


def shared_prefix(s: Shape, length: int) -> Cost:
    """BOS, representation tokens and the template's first words, once for all classes; keys alone in the last layer."""
    both = whole(s.text_width, 1, length) + whole(s.text_width, 1, length, BACKWARD)
    return both.times(s.n - 1) + layer(s.text_width, 0, length, 0, 0).times(2)


def suffixes(s: Shape, packing: Packing, prefix: int, kernel: int) -> Cost:
    """What follows the prefix, packed: linear layers see its tokens, attention its groups and the prefix."""
    width, tokens, ends = s.text_width, packing.n_tokens, len(packing.ends)
    groups, size, slots = packing.ends_own.shape
    pairs, own = groups * slots * (prefix + slots), tokens if kernel == FORWARD else 0
    first = layer(width, own, own, pairs, tokens, kernel)  # its input is constant: no backward into it
    middle = layer(width, tokens, tokens, pairs, tokens, kernel)
    last = layer(width, ends, tokens, groups * size * (prefix + slots), ends, kernel)
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
