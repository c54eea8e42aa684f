"""The two towers: a frozen trunk below the insertion depth, and an upper part that carries representation tokens.

B images, C classes, P patches, K representation tokens, D a tower's width, E embedding width, T suffix tokens, R runs.
Both towers carry tokens in their last `n_insert` layers. What is constant is computed once, what every class shares
is computed once a step, and the last layer computes only the slots that are read. All of it is exact.

The tokens of R runs (R, n_insert, K, D) go through a tower in one pass, each run's with its own images and classes.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmrl_core.clip.blocks import Block, attend, finish, keys_values, project, queries, read, run, split_heads, unpack
from mmrl_core.clip.packing import Packing, pack

if TYPE_CHECKING:
    from mmrl_core.clip.backbone import Backbone

T = TypeVar("T")
CHUNK_TOKENS = 1600  # of images that go through a CPU together: the products run at full rate, the rest stays in cache
CHUNK_SUFFIX_TOKENS = 4096  # of classes that are encoded together; several such chunks are recomputed in backward


def insert(x: Tensor, tokens: Tensor, start: int) -> Tensor:
    """Put tokens (K, D), or each sequence's own (B, K, D), before slot `start`: (B, L, D) -> (B, L + K, D)."""
    return torch.cat([x[:, :start], tokens.expand(x.shape[0], -1, -1), x[:, start:]], dim=1)


def compose(x: Tensor, tokens: Tensor, beta: float, start: int) -> Tensor:
    """Renew the K slots from `start` on with beta * tokens + (1 - beta) * what the layer below left there.

    beta = 1 is MMRL's replacement; beta < 1 is MMRL++'s progressive representation composition.
    """
    length, stop = x.shape[1], start + tokens.shape[-2]
    keep = torch.ones(length, 1, device=x.device)
    keep[start:stop] = 1 - beta
    return torch.addcmul(F.pad(beta * tokens, (0, 0, start, length - stop)), x, keep)


def spread(tokens: Tensor, count: int) -> Tensor:
    """Tokens of R runs (R, K, D) for `count` sequences of each, one run after another: (R * count, K, D).

    Those of one run (K, D) stay as they are: every sequence has the same.
    """
    return tokens if tokens.dim() == 2 or count == 1 else tokens.repeat_interleave(count, dim=0)


class Frozen(NamedTuple):
    """What the frozen image tower gives for images: all that training and evaluation need of them."""

    trunk: Tensor  # input of the first token-carrying layer (B, 1 + P, D)
    zero_shot: Tensor  # the frozen CLIP's features (B, E), L2-normalised

    def to(self, device: torch.device) -> "Frozen":
        return Frozen(*(tensor.to(device, non_blocking=True) for tensor in self))


class ImageTower:
    """The image tower of a backbone, split below its last `n_insert` layers; matrix products in `dtype`.

    Attention has no order, so the representation tokens stand behind the patches, where they are cheap to renew. On a
    CPU images go through in chunks. The frozen part's chunks are all of `chunk` images, the last one filled up: then
    an image's bits do not depend on which others it came with.
    """

    def __init__(self, backbone: "Backbone", n_insert: int, dtype: torch.dtype = torch.float32):
        self.backbone, self.dtype = backbone, dtype
        self.blocks: list[Block] = backbone.frozen_blocks("image", dtype)
        self.first = len(self.blocks) - n_insert  # how many blocks the trunk is
        self.ln_post, self.proj = backbone.visual.ln_post, backbone.visual.proj

    def chunk(self, batch: int) -> int:
        """Images a chunk for batches of this size: nearly equal parts of at most CHUNK_TOKENS."""
        if self.backbone.device.type != "cpu":
            return batch
        most = max(1, CHUNK_TOKENS // self.backbone.image_tokens)
        return -(-batch // -(-batch // most))

    @torch.no_grad()
    def trunk(self, images: Tensor, chunk: int | None = None) -> Tensor:
        """(B, 3, size, size) -> input of the first token-carrying layer (B, 1 + P, D); a constant of each image.

        Rounded to `dtype`, as it is stored.
        """

        def lower(part: Tensor) -> Tensor:
            x = self.backbone.embed_images(part, self.dtype)
            for block in self.blocks[: self.first]:
                x = run(block, x)
            return x.to(self.dtype)

        return in_chunks(lower, images, chunk or self.chunk(len(images)))

    @torch.no_grad()
    def advance(self, trunk: Tensor, first: int, chunk: int | None = None) -> Tensor:
        """This tower's trunk from that of one whose trunk is only `first` blocks."""
        if first == self.first:
            return trunk

        def between(x: Tensor) -> Tensor:
            x = x.float()
            for block in self.blocks[first : self.first]:
                x = run(block, x)
            return x.to(self.dtype)

        return in_chunks(between, trunk, chunk or self.chunk(len(trunk)))

    @torch.no_grad()
    def zero_shot(self, trunk: Tensor, chunk: int | None = None) -> Tensor:
        """The frozen CLIP's image features, L2-normalised: (B, 1 + P, D) -> (B, E)."""

        def upper(x: Tensor) -> Tensor:
            x = x.float()
            for block in self.blocks[self.first : -1]:
                x = run(block, x)
            x = read(self.blocks[-1], x, x[:, :1])
            return F.normalize(self.ln_post(x[:, 0]) @ self.proj, dim=-1)

        return in_chunks(upper, trunk, chunk or self.chunk(len(trunk)))

    def frozen(self, images: Tensor, chunk: int | None = None) -> Frozen:
        """Trunk and zero-shot features of images (B, 3, size, size)."""
        trunk = self.trunk(images, chunk)
        return Frozen(trunk, self.zero_shot(trunk, chunk))

    def adapted(self, trunk: Tensor, tokens: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        """Upper layers with tokens (n_insert, K, D): ln_post of the class slot (B, D) and of the K slots (B, K, D).

        Of R runs trunks (R, B, 1 + P, D) and tokens (R, n_insert, K, D) give (R, B, D) and (R, B, K, D).
        """
        *runs, count = trunk.shape[:-2]
        trunk, layers = trunk.flatten(0, -3), [spread(layer, count) for layer in self.layers(tokens)]
        size = self.chunk(len(trunk))
        parts = []
        for start, part in zip(range(0, len(trunk), size), trunk.split(size), strict=True):
            own = [layer[start : start + size] for layer in layers] if runs else layers
            parts.append(self._adapted(part.float(), own, beta))
        x = self.ln_post(torch.cat(parts) if len(parts) > 1 else parts[0]).unflatten(0, (*runs, count))
        return x[..., 0, :], x[..., 1:, :]

    def layers(self, tokens: Tensor) -> list[Tensor]:
        """Every layer's tokens (K, D), then what `project` of the first layer gives for its own (K, 3 D)."""
        layers = list(tokens.unbind(-3))
        return [*layers, project(self.blocks[self.first], layers[0])]

    def _adapted(self, trunk: Tensor, layers: list[Tensor], beta: float) -> Tensor:
        *tokens, entry = layers
        upper, n = self.blocks[self.first :], trunk.shape[1]
        x = insert(trunk, tokens[0], n)
        for index, (block, following) in enumerate(zip(upper[:-1], tokens[1:], strict=True)):
            packed = project(block, x) if index else insert(self._constant(trunk), entry, n)
            if beta == 1:  # what the layer leaves in the slots is dropped: do not compute it
                x = insert(run(block, x, packed, first=n), following, n)
            else:
                x = compose(run(block, x, packed), following, beta, n)
        return read(upper[-1], x, torch.cat([x[:, :1], x[:, n:]], dim=1))

    @torch.no_grad()
    def _constant(self, trunk: Tensor) -> Tensor:
        """`project` of the first token-carrying layer for all but its tokens."""
        return project(self.blocks[self.first], trunk)


def in_chunks(function: Callable[[Tensor], Tensor], x: Tensor, size: int) -> Tensor:
    """`function` of x in parts of exactly `size` rows, the last one filled up with its own last row."""
    if len(x) == size:
        return function(x)
    missing = -len(x) % size
    if missing:
        x = torch.cat([x, x[-1:].expand(missing, *x.shape[1:])])
    return torch.cat([function(part) for part in x.split(size)])[: len(x) - missing]


class TextTower(nn.Module):
    """The text tower of a backbone for the classes of R runs, as many of each, split below its last `n_insert` layers.

    Attention is causal, so BOS, the representation tokens and the words before the first token in which two classes
    differ are the same for every class: they run once, as a prefix of batch 1. What follows up to a prompt's
    end-of-text token is its suffix; the suffixes lie packed (T, D). Below the insertion depth both are constants.
    Classes beyond `chunk_tokens` suffix tokens are encoded in chunks whose inner values are computed again in the
    backward pass, so that memory does not grow with them. `class_names` are the runs' lists one after another.
    """

    prefix: Tensor  # (1, Lp, D)
    suffix: Tensor  # (T, D)

    def __init__(
        self, backbone: "Backbone", class_names: list[str], template: str, n_insert: int,
        dtype: torch.dtype = torch.float32, chunk_tokens: int = CHUNK_SUFFIX_TOKENS, runs: int = 1,
    ):  # fmt: skip
        super().__init__()
        blocks = backbone.frozen_blocks("text", dtype)
        self.lower, self.upper = blocks[: len(blocks) - n_insert], blocks[len(blocks) - n_insert :]
        self.head = (backbone.text.ln_final, backbone.text.text_projection)  # a tuple: they stay the backbone's alone
        token_ids = backbone.tokenize(class_names, template)
        start, lengths = _suffixes(token_ids)
        self.n_runs, chunks = runs, _split(lengths, chunk_tokens, runs)
        self.runs = [chunk.runs for chunk in chunks]  # of every packing
        self.packings = [pack(chunk.lengths, token_ids.device, chunk.runs.stop - chunk.runs.start) for chunk in chunks]
        self._set_constants(backbone, token_ids, start, lengths)

    @torch.no_grad()
    def _set_constants(self, backbone: "Backbone", token_ids: Tensor, start: int, lengths: list[int]) -> None:
        prefix = backbone.embed_tokens(token_ids[:1, :start])
        seen = []
        for block in self.lower:
            prefix, keys = self._prefix_layer(block, prefix)
            seen.append(keys)
        parts, row = [], 0
        for packing in self.packings:
            ids, count = token_ids[row : row + len(packing.ends)], len(packing.ends)
            real = [slice(start, start + length) for length in lengths[row : row + count]]
            width = start + max(lengths[row : row + count])
            embedded = backbone.embed_tokens(ids[:, :width])
            x = torch.cat([prompt[rows] for prompt, rows in zip(embedded, real, strict=True)])
            for block, keys in zip(self.lower, seen, strict=True):
                x = self._suffix_layer(block, x, keys, packing)
            parts.append(x)
            row += count
        self.register_buffer("prefix", prefix, persistent=False)
        self.register_buffer("suffix", torch.cat(parts), persistent=False)

    @torch.no_grad()
    def zero_shot(self) -> Tensor:
        """The frozen CLIP's class features (R C, E), L2-normalised."""
        return self._encode(lambda x, index: x, self.prefix)

    def adapted(self, tokens: Tensor, beta: float) -> Tensor:
        """Class features with tokens (n_insert, K, D) in the upper layers: (C, E), L2-normalised.

        With tokens of R runs (R, n_insert, K, D): (R C, E).
        """
        layers = tokens.unbind(-3)
        prefix = insert(self.prefix.expand(self.n_runs, -1, -1), layers[0], 1)
        return self._encode(lambda x, index: compose(x, layers[index], beta, 1) if index else x, prefix)

    def _encode(self, renew: Callable[[Tensor, int], Tensor], prefix: Tensor) -> Tensor:
        """`renew(x, i)` is the prefix as the i-th upper layer takes it."""
        seen = []
        for index, block in enumerate(self.upper[:-1]):
            prefix, keys = self._prefix_layer(block, renew(prefix, index))
            seen.append(keys)
        seen.append(keys_values(self.upper[-1], renew(prefix, len(self.upper) - 1)))
        sizes = [packing.n_tokens for packing in self.packings]
        if len(sizes) == 1:
            return self._suffixes(self.suffix, self.packings[0], *seen)
        features = []
        for x, packing, runs in zip(self.suffix.split(sizes), self.packings, self.runs, strict=True):
            own = [keys[runs] if len(keys) > 1 else keys for keys in seen]
            if torch.is_grad_enabled():
                part = checkpoint(self._suffixes, x, packing, *own, use_reentrant=False, preserve_rng_state=False)
            else:
                part = self._suffixes(x, packing, *own)
            features.append(part)
        return torch.cat(features)

    @staticmethod
    def _prefix_layer(block: Block, x: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's output for the prefix (1 or R, Lp, D), and its packed keys and values (1 or R, Lp, 2 D)."""
        packed = project(block, x)
        attended = attend(*unpack(packed, 3, block.heads), causal=True)
        return finish(block, x, attended), packed[..., x.shape[-1] :]

    @staticmethod
    def _suffix_layer(block: Block, x: Tensor, prefix: Tensor, packing: Packing) -> Tensor:
        """The layer's output for packed suffixes (T, D) behind a prefix whose keys and values are given."""
        width, packed = x.shape[-1], packing.group(project(block, x))
        q, own = split_heads(packed[..., :width], block.heads), packed[..., width:]
        attended = attend(q, *_behind(prefix, own, block.heads), mask=packing.mask(prefix.shape[1]))
        return finish(block, x, packing.ungroup(attended))

    def _suffixes(self, x: Tensor, packing: Packing, *seen: Tensor) -> Tensor:
        """All upper layers for the suffixes of a chunk (T, D), then ln_final and projection: (C, E)."""
        for block, prefix in zip(self.upper[:-1], seen[:-1], strict=True):
            x = self._suffix_layer(block, x, prefix, packing)
        block, prefix = self.upper[-1], seen[-1]
        ends = x.index_select(0, packing.ends)  # the last layer is needed for the end-of-text tokens alone
        q, own = packing.group_ends(queries(block, ends)), packing.group(keys_values(block, x))
        keys_and_values = _behind(prefix, own, block.heads)
        attended = attend(split_heads(q, block.heads), *keys_and_values, mask=packing.ends_mask(prefix.shape[1]))
        x = finish(block, ends, packing.ungroup_ends(attended))
        ln_final, projection = self.head
        return F.normalize(ln_final(x) @ projection, dim=-1)


def _behind(prefix: Tensor, own: Tensor, heads: int) -> list[Tensor]:
    """Keys and values of the shared prefix (1, Lp, 2 D), then of every group (n, Q, 2 D): two (n, H, Lp + Q, d).

    Of R runs, the prefix of each (R, Lp, 2 D) before its groups.
    """
    if len(prefix) == 1:
        shared = prefix.expand(len(own), -1, -1)
    else:
        shared = prefix.repeat_interleave(len(own) // len(prefix), dim=0)
    return unpack(torch.cat([shared, own], dim=1), 2, heads)


def _suffixes(token_ids: Tensor) -> tuple[int, list[int]]:
    """Where classes first differ, at the latest the first end-of-text, and how many tokens each has from there on."""
    eot = token_ids.argmax(dim=-1)
    differs = (token_ids != token_ids[:1]).any(dim=0).nonzero()
    first = int(differs[0]) if len(differs) else token_ids.shape[1]
    start = min(first, int(eot.min()))
    return start, (eot + 1 - start).tolist()


class _Chunk(NamedTuple):
    """Classes that are encoded together: of these runs, with suffixes of these lengths."""

    runs: slice
    lengths: list[int]


def _split(lengths: list[int], most: int, runs: int) -> list[_Chunk]:
    """Successive chunks of at most `most` tokens: of whole runs, or of one run's classes, each of one at least."""
    each = len(lengths) // runs
    of_runs = [lengths[start : start + each] for start in range(0, len(lengths), each)]
    if max(map(sum, of_runs)) > most:
        return [
            _Chunk(slice(run, run + 1), part)
            for run, own in enumerate(of_runs)
            for part in _parts(own, most, size=lambda length: length)
        ]
    chunks, first = [], 0
    for part in _parts(of_runs, most, size=sum):
        chunks.append(_Chunk(slice(first, first + len(part)), [length for own in part for length in own]))
        first += len(part)
    return chunks


def _parts(values: list[T], most: int, size: Callable[[T], int]) -> list[list[T]]:
    """Successive parts of at most `most` in size together, each of one value at least."""
    parts: list[list[T]] = [[]]
    total = 0
    for value in values:
        if parts[-1] and total + size(value) > most:
            parts.append([])
            total = 0
        parts[-1].append(value)
        total += size(value)
    return parts
