"""The image tower: a frozen trunk below the insertion depth, and an upper part that carries representation tokens.

B images, n rows of the frozen tower (class token if there is one, then patches), K representation tokens, D the tower's
width, D' that of what is read off it, E embedding width, R runs. What is constant is computed once, and the last layer
computes only the slots that are read. All of it is exact. `text_tower.py` is the other one.

The tokens of R runs (R, n_insert, K, D) go through the tower in one pass, each run's with its own images.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmrl_core.clip.blocks import Block, read, run
from mmrl_core.clip.insertion import carry, layers_of, spread

if TYPE_CHECKING:
    from mmrl_core.clip.backbone import Backbone

CHUNK_TOKENS = 1600  # that go through a CPU together: the products run at full rate, the rest stays in cache


class Frozen(NamedTuple):
    """What the frozen image tower gives for images: all that training and evaluation need of them."""

    trunk: Tensor  # input of the first token-carrying layer (B, n, D)
    zero_shot: Tensor  # the frozen CLIP's features (B, E), L2-normalised

    def to(self, device: torch.device) -> "Frozen":
        return Frozen(*(tensor.to(device, non_blocking=True) for tensor in self))


class ImageTower:
    """The image tower of a backbone, split below its last `n_insert` layers; matrix products in `dtype`.

    On a CPU images go through in chunks. The frozen part's chunks are all of `chunk` images, the last one filled up:
    then an image's bits do not depend on which others it came with.
    """

    def __init__(self, backbone: "Backbone", n_insert: int, dtype: torch.dtype = torch.float32):
        self.backbone, self.dtype = backbone, dtype
        self.blocks: list[Block] = backbone.frozen_blocks("image", dtype)
        self.first = len(self.blocks) - n_insert  # how many blocks the trunk is
        self.pool, self.proj = backbone.image_form.pool, backbone.image_form.projection()

    def chunk(self, batch: int) -> int:
        """Images a chunk for batches of this size: nearly equal parts of at most CHUNK_TOKENS, smaller ones where these
        would be filled up by more than a twentieth of the batch."""
        if self.backbone.device.type != "cpu":
            return batch
        most = max(1, CHUNK_TOKENS // self.backbone.image_tokens)
        size = -(-batch // -(-batch // most))
        if -batch % size <= batch / 20:
            return size
        return min(range(most, most // 2, -1), key=lambda other: -batch % other)

    @torch.no_grad()
    def trunk(self, images: Tensor, chunk: int | None = None) -> Tensor:
        """(B, 3, size, size) -> input of the first token-carrying layer (B, n, D); a constant of each image.

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
        """The frozen CLIP's image features, L2-normalised: (B, n, D) -> (B, E)."""
        return in_chunks(lambda x: self.frozen_above(x.float()), trunk, chunk or self.chunk(len(trunk)))

    def frozen_above(self, x: Tensor) -> Tensor:
        """Input of the first token-carrying layer -> the frozen CLIP's features, L2-normalised: (B, n, D) -> (B, E)."""
        for block in self.blocks[self.first : -1]:
            x = run(block, x)
        last = self.blocks[-1]
        x = read(last, x, x[:, :1]) if self.pool.reads_first else run(last, x)
        return F.normalize(self.proj(self.pool.rows(x)), dim=-1)

    def frozen(self, images: Tensor, chunk: int | None = None) -> Frozen:
        """Trunk and zero-shot features of images (B, 3, size, size)."""
        trunk = self.trunk(images, chunk)
        return Frozen(trunk, self.zero_shot(trunk, chunk))

    def adapted(self, trunk: Tensor, tokens: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        """Upper layers with tokens (n_insert, K, D): what is read of the frozen rows, and of the K slots, (B, D') each.

        Of R runs trunks (R, B, n, D) and tokens (R, n_insert, K, D) give (R, B, D') each.
        """
        *runs, count = trunk.shape[:-2]
        trunk, layers = trunk.flatten(0, -3), [spread(layer, count) for layer in self.layers(tokens)]
        size = self.chunk(len(trunk))
        parts = []
        for start, part in zip(range(0, len(trunk), size), trunk.split(size), strict=True):
            own = [layer[start : start + size] for layer in layers] if runs else layers
            parts.append(self.above(part.float(), own, beta))
        rows, slots = (torch.cat(part) if len(part) > 1 else part[0] for part in zip(*parts, strict=True))
        return rows.unflatten(0, (*runs, count)), slots.unflatten(0, (*runs, count))

    def layers(self, tokens: Tensor) -> list[Tensor]:
        """`layers_of` tokens (..., n_insert, K, D)."""
        return layers_of(tokens, self.blocks[self.first])

    def above(self, trunk: Tensor, layers: list[Tensor], beta: float) -> tuple[Tensor, Tensor]:
        """What is read of the frozen rows and of the slots of a part: (B, n, D) -> (B, D') each."""
        last, n = self.blocks[-1], trunk.shape[1]
        x = carry(self.blocks[self.first :], trunk, layers, beta)
        if self.pool.reads_first:
            x, n = read(last, x, torch.cat([x[:, :1], x[:, n:]], dim=1)), 1
        else:
            x = run(last, x)
        return self.pool.rows(x[:, :n]), self.pool.slots(x[:, n:])


def in_chunks(function: Callable[[Tensor], Tensor], x: Tensor, size: int) -> Tensor:
    """`function` of x in parts of exactly `size` rows, the last one filled up with its own last row."""
    if len(x) == size:
        return function(x)
    missing = -len(x) % size
    if missing:
        x = torch.cat([x, x[-1:].expand(missing, *x.shape[1:])])
    return torch.cat([function(part) for part in x.split(size)])[: len(x) - missing]
