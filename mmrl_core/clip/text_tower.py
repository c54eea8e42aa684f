"""The text tower: frozen layers below the insertion depth, and upper ones that carry representation tokens.

C classes, K representation tokens, D the tower's width, A its attention's, E embedding width, R runs; of prompts that
begin alike T tokens of what follows, of whole prompts n rows of each. What is constant is computed once, what every
class shares is computed once a step, and the last layer computes only what is read. All of it is exact.

The tokens of R runs (R, n_insert, K, D) go through the tower in one pass, each run's with its own classes. Classes
beyond a chunk are encoded in chunks whose inner values are computed again in the backward pass, so that memory does not
grow with them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmrl_core.clip.blocks import Block, attend, finish, keys_values, project, queries, read, run, split_heads, unpack
from mmrl_core.clip.families.texts import Prompts
from mmrl_core.clip.insertion import carry, compose, insert, layers_of, spread
from mmrl_core.clip.packing import Packing, pack
from mmrl_core.clip.towers import CHUNK_TOKENS

if TYPE_CHECKING:
    from mmrl_core.clip.backbone import Backbone

T = TypeVar("T")
CHUNK_SUFFIX_TOKENS = 4096  # of classes that are encoded together; several such chunks are recomputed in backward


def text_tower(
    backbone: "Backbone", class_names: list[str], template: str, n_insert: int, dtype: torch.dtype = torch.float32,
    runs: int = 1,
) -> "TextTower":  # fmt: skip
    """The text tower of a backbone for the classes of R runs, as many of each, split below its last `n_insert` layers.

    `class_names` are the runs' lists one after another.
    """
    ids = backbone.tokenize(class_names, template)
    shared = backbone.text_form.causal and (ids[:, 0] == ids[0, 0]).all()  # mT5's prompts begin without a mark
    kind: type[TextTower] = SharedPrefix if shared else WholePrompts
    return kind(backbone, class_names, template, n_insert, dtype, runs=runs, token_ids=ids)


class TextTower(nn.Module, ABC):
    """Either kind of text tower."""

    _frozen: Tensor | None = None

    def zero_shot(self) -> Tensor:
        """The frozen CLIP's class features (R C, E), L2-normalised; computed once."""
        if self._frozen is None:
            with torch.inference_mode(False), torch.no_grad():  # whoever asks first: training needs them as well
                self._frozen = self._zero_shot()
        return self._frozen

    @abstractmethod
    def _zero_shot(self) -> Tensor: ...

    @abstractmethod
    def adapted(self, tokens: Tensor, beta: float) -> Tensor:
        """Class features with tokens (n_insert, K, D) in the upper layers: (C, E), L2-normalised.

        With tokens of R runs (R, n_insert, K, D): (R C, E).
        """


class WholePrompts(TextTower):
    """Of a tower whose prompts share nothing: rows see what follows them, or hide what another prompt shows.

    Below the insertion depth every prompt is a constant. `chunk_tokens` rows are encoded together.
    """

    trunk: Tensor  # (C, n, D)
    share: Tensor  # (C, n), of each row in the feature
    sees: Tensor | None  # as Prompts.sees

    def __init__(
        self, backbone: "Backbone", class_names: list[str], template: str, n_insert: int,
        dtype: torch.dtype = torch.float32, chunk_tokens: int | None = None, runs: int = 1,
        token_ids: Tensor | None = None,
    ):  # fmt: skip
        super().__init__()
        blocks, self.form = backbone.frozen_blocks("text", dtype), backbone.text_form
        self.lower, self.upper = blocks[: len(blocks) - n_insert], blocks[len(blocks) - n_insert :]
        self.n_runs, self.chunk_tokens = runs, chunk_tokens or CHUNK_SUFFIX_TOKENS
        with torch.no_grad():
            ids = backbone.tokenize(class_names, template) if token_ids is None else token_ids
            self._set_constants(self.form.prompts(ids))

    def _set_constants(self, prompts: Prompts) -> None:
        self.n_classes, self.length = prompts.x.shape[:2]
        self.one_row = bool(((prompts.read == 0) | (prompts.read == 1)).all())  # a feature is read from one row
        self.register_buffer("sees", prompts.sees, persistent=False)
        self.register_buffer("share", prompts.read, persistent=False)
        parts = []
        for part in self._parts(self.length):
            x = prompts.x[part]
            for block in self.lower:
                x = run(block, x, mask=_rows(self.sees, part))
            parts.append(x)
        self.register_buffer("trunk", torch.cat(parts), persistent=False)

    def _parts(self, length: int) -> Iterator[slice]:
        """Classes that are encoded together."""
        together = self.chunk_tokens
        if self.share.device.type == "cpu":
            together = min(together, CHUNK_TOKENS)
        size = max(1, together // length)
        size = -(-self.n_classes // -(-self.n_classes // size))  # nearly equal parts
        return (slice(start, start + size) for start in range(0, self.n_classes, size))

    def _zero_shot(self) -> Tensor:
        parts = []
        for part in self._parts(self.length):
            x, sees = self.trunk[part], _rows(self.sees, part)
            for block in self.upper[:-1]:
                x = run(block, x, mask=sees)
            parts.append(self._read(x, self.share[part], sees))
        return torch.cat(parts)

    def adapted(self, tokens: Tensor, beta: float) -> Tensor:
        count = self.n_classes // self.n_runs
        layers = [spread(layer, count) for layer in layers_of(tokens, self.upper[0])]
        sees = self._with_tokens(tokens.shape[-2])
        again = torch.is_grad_enabled() and self.n_classes * self.length > self.chunk_tokens
        parts = []
        for part in self._parts(self.length + tokens.shape[-2]):
            own = [layer[part] if layer.dim() == 3 else layer for layer in layers]
            above = partial(self._above, self.trunk[part], self.share[part], _rows(sees, part), beta)
            if again:
                parts.append(checkpoint(above, *own, use_reentrant=False, preserve_rng_state=False))
            else:
                parts.append(above(*own))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _above(self, trunk: Tensor, read: Tensor, sees: Tensor | None, beta: float, *layers: Tensor) -> Tensor:
        """All upper layers for the prompts of a chunk: (C, E)."""
        return self._read(carry(self.upper, trunk, list(layers), beta, sees), read, sees)

    def _read(self, x: Tensor, share: Tensor, sees: Tensor | None) -> Tensor:
        """Input of the last layer (C, n or n + K, D) -> features (C, E), L2-normalised."""
        block, n = self.upper[-1], share.shape[1]
        if self.one_row:
            at = share.argmax(dim=1)
            each = torch.arange(len(x), device=x.device)
            seen = sees if sees is None else sees.expand(len(x), *sees.shape[1:])[each, :, at].unsqueeze(2)
            x = self.form.norm(read(block, x, x[each, at][:, None], mask=seen)[:, 0])
        else:
            x = self.form.norm(run(block, x, first=n, mask=sees))
            x = (x * share[..., None]).sum(dim=1)
        return F.normalize(self.form.project(x), dim=-1)

    def _with_tokens(self, k: int) -> Tensor | None:
        """What sees what with K tokens behind the rows. They are like words without a place; behind a BOS, which hides
        them from itself, they see it and the tokens before."""
        if self.sees is None:
            return None
        n, whole = self.length, self.sees
        if whole.is_floating_point():  # added to the scores: what is seen adds nothing
            hidden = whole.amax(dim=(1, 2), keepdim=True) == -torch.inf
            words = torch.zeros(hidden.shape, device=whole.device).masked_fill(hidden, -torch.inf)
            words, seen = words.expand(-1, whole.shape[1], k, n), whole.new_zeros
        else:
            words, seen = whole.any(dim=2, keepdim=True).expand(-1, -1, k, n), whole.new_ones
        rows_see = seen(*whole.shape[:2], n, k)
        tokens_see = seen(*whole.shape[:2], k, k)
        if self.form.tokens_follow_first:
            words, tokens_see = words.clone(), tokens_see.tril()
            rows_see[:, :, 0], words[..., 1:] = False, False
        upper, lower = torch.cat([whole, rows_see], dim=-1), torch.cat([words, tokens_see], dim=-1)
        return torch.cat([upper, lower], dim=-2)


def _rows(sees: Tensor | None, part: slice) -> Tensor | None:
    """The part of some prompts."""
    return sees if sees is None or len(sees) == 1 else sees[part]


class SharedPrefix(TextTower):
    """Of a causal tower, whose prompts are read at their ends.

    BOS, the representation tokens and the words before the first token in which two classes differ are the same for
    every class: they run once, as a prefix of batch 1. What follows up to a prompt's end-of-text token is its suffix;
    the suffixes lie packed (T, D). Below the insertion depth both are constants. Of classes beyond `chunk_tokens`
    suffix tokens a chunk at a time is encoded.
    """

    prefix: Tensor  # (1, Lp, D)
    suffix: Tensor  # (T, D)

    def __init__(
        self, backbone: "Backbone", class_names: list[str], template: str, n_insert: int,
        dtype: torch.dtype = torch.float32, chunk_tokens: int = CHUNK_SUFFIX_TOKENS, runs: int = 1,
        token_ids: Tensor | None = None,
    ):  # fmt: skip
        super().__init__()
        blocks, self.form = backbone.frozen_blocks("text", dtype), backbone.text_form
        self.lower, self.upper = blocks[: len(blocks) - n_insert], blocks[len(blocks) - n_insert :]
        token_ids = backbone.tokenize(class_names, template) if token_ids is None else token_ids
        start, lengths = _suffixes(token_ids, self.form.ends(token_ids))
        self.n_runs, chunks = runs, _split(lengths, chunk_tokens, runs)
        self.runs = [chunk.runs for chunk in chunks]  # of every packing
        self.packings = [pack(chunk.lengths, token_ids.device, chunk.runs.stop - chunk.runs.start) for chunk in chunks]
        self._set_constants(token_ids, start, lengths)

    @torch.no_grad()
    def _set_constants(self, token_ids: Tensor, start: int, lengths: list[int]) -> None:
        prefix = self.form.embed(token_ids[:1, :start])
        seen = []
        for block in self.lower:
            prefix, keys = self._prefix_layer(block, prefix)
            seen.append(keys)
        parts, row = [], 0
        for packing in self.packings:
            count = len(packing.ends)
            own = lengths[row : row + count]
            embedded = self.form.embed(token_ids[row : row + count, : start + max(own)])[:, start:]
            at = [place * embedded.shape[1] + token for place, length in enumerate(own) for token in range(length)]
            x = embedded.flatten(0, 1)[torch.tensor(at, device=token_ids.device)]
            for block, keys in zip(self.lower, seen, strict=True):
                x = self._suffix_layer(block, x, keys, packing)
            parts.append(x)
            row += count
        self.register_buffer("prefix", prefix, persistent=False)
        self.register_buffer("suffix", torch.cat(parts), persistent=False)

    def _zero_shot(self) -> Tensor:
        return self._encode(lambda x, index: x, self.prefix)

    def adapted(self, tokens: Tensor, beta: float) -> Tensor:
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
        """The layer's output for the prefix (1 or R, Lp, D), and its packed keys and values (1 or R, Lp, 2 A)."""
        packed = project(block, x)
        attended = attend(*unpack(packed, 3, block.heads), causal=True)
        return finish(block, x, attended), packed[..., block.width :]

    @staticmethod
    def _suffix_layer(block: Block, x: Tensor, prefix: Tensor, packing: Packing) -> Tensor:
        """The layer's output for packed suffixes (T, D) behind a prefix whose keys and values are given."""
        width, packed = block.width, packing.group(project(block, x))
        q, own = split_heads(packed[..., :width], block.heads), packed[..., width:]
        attended = attend(q, *_behind(prefix, own, block.heads), mask=packing.mask(prefix.shape[1]))
        return finish(block, x, packing.ungroup(attended))

    def _suffixes(self, x: Tensor, packing: Packing, *seen: Tensor) -> Tensor:
        """All upper layers for the suffixes of a chunk (T, D), then norm and projection: (C, E)."""
        for block, prefix in zip(self.upper[:-1], seen[:-1], strict=True):
            x = self._suffix_layer(block, x, prefix, packing)
        block, prefix = self.upper[-1], seen[-1]
        ends = x.index_select(0, packing.ends)  # the last layer is needed for the end-of-text tokens alone
        q, own = packing.group_ends(queries(block, ends)), packing.group(keys_values(block, x))
        keys_and_values = _behind(prefix, own, block.heads)
        attended = attend(split_heads(q, block.heads), *keys_and_values, mask=packing.ends_mask(prefix.shape[1]))
        x = finish(block, ends, packing.ungroup_ends(attended))
        return F.normalize(self.form.project(self.form.norm(x)), dim=-1)


def _behind(prefix: Tensor, own: Tensor, heads: int) -> list[Tensor]:
    """Keys and values of the shared prefix (1, Lp, 2 D), then of every group (n, Q, 2 A): two (n, H, Lp + Q, d).

    Of R runs, the prefix of each (R, Lp, 2 A) before its groups.
    """
    if len(prefix) == 1:
        shared = prefix.expand(len(own), -1, -1)
    else:
        shared = prefix.repeat_interleave(len(own) // len(prefix), dim=0)
    return unpack(torch.cat([shared, own], dim=1), 2, heads)


def _suffixes(token_ids: Tensor, eot: Tensor) -> tuple[int, list[int]]:
    """Where classes first differ, at the latest the first end-of-text, and how many tokens each has from there on."""
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
