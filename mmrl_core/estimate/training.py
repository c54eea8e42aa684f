"""The estimate of one training, and the refusal of one that cannot fit."""

from typing import NamedTuple

import torch

from mmrl_core.clip.packing import Packing, pack
from mmrl_core.clip.shapes import Shape
from mmrl_core.clip.text_tower import CHUNK_SUFFIX_TOKENS
from mmrl_core.clip.towers import CHUNK_TOKENS
from mmrl_core.config import AdapterConfig
from mmrl_core.errors import UserError
from mmrl_core.estimate import costs, memory
from mmrl_core.estimate.machine import Room

FLOAT = 4  # bytes
STATES = 4  # of a trainable number: itself, its gradient, AdamW's two moments
SUFFIX = 5  # tokens of a prompt from the class name on, its end included: a name of two or three, and the full stop
BEGINNING = 5  # tokens before it: the mark of the beginning, and "a photo of a"
CERTAIN = 0.9  # of the activations that the formula gives: its error is less (tests/core/estimate/test_memory.py)
LEAST_SUFFIX = 2  # tokens: a name of one, and the end
GB = 1e9


class Case(NamedTuple):
    """What is trained: an adapter of `config` on a CLIP of `shape`, with B images a step and C classes, of which a
    prompt has `suffix` tokens of its own behind `beginning` that all share."""

    shape: Shape
    config: AdapterConfig
    batch: int
    classes: int
    precision: str = "float32"  # settled: not `auto`
    device: str = "cpu"  # or cuda
    suffix: int = SUFFIX
    beginning: int = BEGINNING

    @property
    def n(self) -> int:
        """How many layers of each tower carry tokens."""
        return self.shape.depth - self.config.insertion_depth + 1

    @property
    def kinds(self) -> memory.Kinds:
        return memory.kinds(self.precision, self.device)

    @property
    def rows(self) -> int:
        """Tokens of a prompt in a text tower that is not causal."""
        return self.shape.text.rows if self.shape.padded else min(self.shape.text.rows, self.beginning + self.suffix)


class Memory(NamedTuple):
    """Bytes at the peak of a step. `working` is what a step needs beside what it keeps: a bound by its largest layer,
    where the others are counted."""

    weights: int
    adapter: int  # with gradient and the optimizer's moments
    image_activations: int
    text_activations: int
    working: int

    @property
    def certain(self) -> int:
        """At least so many are needed."""
        return int(self.weights + self.adapter + CERTAIN * (self.image_activations + self.text_activations))


class Estimate(NamedTuple):
    """Of a training. `view_bytes` is one view's frozen features on disk; `step` has operations, `given` those of a step
    whose frozen features are given."""

    frozen: int  # parameters
    trainable: int
    memory: Memory
    view_bytes: int
    step: float
    given: float


def check_depth(config: AdapterConfig, shape: Shape, name: str) -> None:
    """Raises UserError where tokens would enter a layer that the shallower tower does not have."""
    if config.insertion_depth > shape.depth:
        raise UserError(f"adapter.insertion_depth is {config.insertion_depth}, but {name} has {shape.depth} layers")


def estimate(case: Case) -> Estimate:
    """Every number from the case alone: no model is built."""
    frozen = case.shape.image_parameters + case.shape.text_parameters
    return Estimate(
        frozen, trainable(case), _memory(case, frozen), view_bytes(case), step(case, False), step(case, True)
    )


def trainable(case: Case) -> int:
    """Parameters of the adapter: docs/method.md has the formula."""
    shape, config, n = case.shape, case.config, case.n
    widths, d_r = shape.image.width + shape.text.width, config.rep_dim
    if config.method == "mmrl":
        return config.n_tokens * d_r + n * widths * (d_r + 1) + shape.pooled_width * shape.embed_dim
    rank, projection = config.residual_rank, config.projection_rank * (shape.pooled_width + shape.embed_dim)
    return config.n_tokens * d_r + widths * (d_r + n) + n * rank * (widths + 2 * d_r) + projection


def view_bytes(case: Case) -> int:
    """Trunk activations in the products' type and zero-shot features, as the feature store keeps them."""
    image = case.shape.image
    return image.rows * image.width * case.kinds.product + case.shape.embed_dim * FLOAT


def _memory(case: Case, frozen: int) -> Memory:
    return Memory(
        weights_bytes(case, frozen), STATES * FLOAT * trainable(case), _image_activations(case), text_activations(case),
        _working(case),
    )  # fmt: skip


def weights_bytes(case: Case, frozen: int) -> int:
    """In float32, and the layers a second time in another precision."""
    towers = (case.shape.image, case.shape.text)
    layers = sum(tower.depth * tower.layer_parameters for tower in towers)
    return FLOAT * frozen + (0 if case.precision == "float32" else case.kinds.product * layers)


def _image_activations(case: Case) -> int:
    renews = case.config.composition < 1
    shape, k = case.shape, case.config.n_tokens
    return memory.image_bytes(shape.image, case.batch, case.n, k, renews, case.kinds, shape.pools)


def text_activations(case: Case) -> int:
    text, n, k, of = case.shape.text, case.n, case.config.n_tokens, case.kinds
    if not case.shape.causal:
        return memory.unshared_bytes(text, _at_once(case), case.rows, k, n, of)
    prefix = case.beginning + k
    own = memory.chunked_suffix_bytes(text, packings(case), prefix, n, case.shape.embed_dim, of)
    return memory.prefix_bytes(text, prefix, n, of) + own


def packings(case: Case) -> list[Packing]:
    """Of a causal text tower's classes, in the chunks in which they are encoded: the first, and the last where it is
    smaller, stand for all."""
    most = max(1, CHUNK_SUFFIX_TOKENS // case.suffix)
    whole, left = divmod(case.classes, most)
    sizes = [most] * whole + [left] * bool(left)
    made = {size: pack([case.suffix] * size, torch.device("cpu")) for size in {*sizes}}
    return [made[size] for size in sizes]


def _encoded_again(case: Case) -> bool:
    """Whether a text tower that is not causal encodes its classes in chunks, again in the backward pass."""
    return not case.shape.causal and case.classes * case.rows > CHUNK_SUFFIX_TOKENS


def _at_once(case: Case) -> int:
    """Classes whose values a text tower that is not causal keeps at one time."""
    if not _encoded_again(case):
        return case.classes
    most = CHUNK_TOKENS if case.device == "cpu" else CHUNK_SUFFIX_TOKENS
    return max(1, most // (case.rows + case.config.n_tokens))


def _working(case: Case) -> int:
    """Three times the largest layer's inner values: an output, its gradient and that of what it came from."""
    image, text = case.shape.image, case.shape.text
    whole, ends = _at_once(case) * case.rows, min(CHUNK_SUFFIX_TOKENS, case.classes * case.suffix)
    words = ends if case.shape.causal else whole
    inner = [
        rows * max(3 * tower.width, tower.hidden)
        for tower, rows in ((image, case.batch * (image.rows + case.config.n_tokens)), (text, words))
    ]
    return 3 * FLOAT * max(inner)


def step(case: Case, given: bool) -> float:
    """Floating-point operations of a step; `given`: the frozen features are there already."""
    shape = _cost_shape(case)
    if not case.shape.causal:
        return costs.step_without_sharing(shape, case.rows, _encoded_again(case), given).flops
    return costs.our_step(shape, packings(case), case.beginning + case.config.n_tokens, given).flops


def _cost_shape(case: Case) -> costs.Shape:
    shape, config = case.shape, case.config
    image, text = shape.image, shape.text
    return costs.Shape(
        config.method, case.batch, case.classes, case.n, config.n_tokens, image.depth, image.width, image.rows,
        3 * shape.patch_size**2, text.depth, text.width, text.rows, shape.embed_dim, config.rep_dim,
        (config.residual_rank, config.projection_rank), image.mlp / 2, text.mlp / 2,
    )  # fmt: skip


def refuse_what_cannot_fit(case: Case, room: Room | None, name: str, runs: int = 1) -> None:
    """Raises UserError where a training surely needs more memory than there is; `runs` are trained together.

    The class names are taken to be as short as names can be, and what is not counted exactly is left out: whatever
    could fit is let through.
    """
    shortest = case._replace(batch=case.batch * runs, suffix=LEAST_SUFFIX)
    needs = estimate(shortest).memory
    needs = needs._replace(adapter=needs.adapter * runs)
    if room is None or needs.certain <= room.bytes:
        return
    activations = needs.image_activations + needs.text_activations
    parts = {"weights": needs.weights, "adapter and optimizer": needs.adapter, "activations": activations}
    listed = ", ".join(f"{what} {size / GB:.1f}" for what, size in parts.items())
    raise UserError(
        f"training {name} with {case.batch} images a step needs at least {needs.certain / GB:.1f} GB ({listed}), "
        f"but {room.of} has {room.bytes / GB:.1f} GB; {_advice(case, needs)}"
    )


def _advice(case: Case, needs: Memory) -> str:
    if needs.weights > needs.image_activations + needs.text_activations:
        return "take a smaller backbone, which `mmrl backbones` lists"
    halved = estimate(case._replace(precision="bf16")).memory.certain < 0.9 * needs.certain
    return f"lower train.batch_size, raise adapter.insertion_depth{' or set train.precision bf16' if halved else ''}"
