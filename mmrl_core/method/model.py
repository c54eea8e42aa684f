"""AdaptedCLIP: a frozen CLIP with an adapter's tokens in its upper layers, for one list of classes."""

from typing import Any, NamedTuple, Self

import torch.nn.functional as F
from torch import Tensor, nn

from mmrl_core.clip.backbone import LOGIT_SCALE, Backbone
from mmrl_core.clip.precision import DTYPES
from mmrl_core.clip.towers import ImageTower
from mmrl_core.distributed import Workers
from mmrl_core.method.adapter import Adapter
from mmrl_core.method.adapter_stack import AdapterStack
from mmrl_core.method.baseline import Baseline


def class_features(backbone: Backbone, adapter: "Adapter | Baseline", class_names: list[str], template: str) -> Tensor:
    """Adapted class features w (C, E) of an adapter, of a baseline the frozen CLIP's, and nothing else of a model."""
    tower = backbone.text_tower(class_names, template, adapter.n_insert)
    if isinstance(adapter, Baseline):
        return tower.zero_shot()
    return tower.adapted(adapter.text_tokens(), adapter.config.composition)


class Output(NamedTuple):
    """B images, C classes, E embedding width; features are L2-normalised."""

    logits_class: Tensor  # (B, C)
    logits_rep: Tensor  # (B, C)
    logits_fused: Tensor  # (B, C)
    image_features: Tensor  # f_c (B, E)
    rep_features: Tensor  # f_r (B, E)
    text_features: Tensor  # w (C, E)
    head: Tensor | None = None  # logits of the trained classes by the adapter's head on frozen features (B, C')


class ImageFeatures(NamedTuple):
    """B images, E embedding width; L2-normalised. Of a baseline all three are the same."""

    adapted: Tensor  # f_c (B, E)
    rep: Tensor  # f_r (B, E)
    frozen: Tensor | None  # f_c0 (B, E), where a head reads it

    def of(self, rows: list[int]) -> "ImageFeatures":
        """Those of some of the images."""
        frozen = None if self.frozen is None else self.frozen[rows]
        return ImageFeatures(self.adapted[rows], self.rep[rows], frozen)


class AdaptedCLIP(nn.Module):
    """Images to features and logits. Frozen parts of both towers are computed once and shared.

    `zero_shot_text` (C, E) holds the frozen CLIP's class features. In another precision than float32 the blocks'
    matrix products run in that type; residual stream, layer norms, features and logits stay in float32. Of several
    `workers` each encodes its share of the classes, and all get the features of all. With `text`, the adapted and the
    frozen class features (C, E) of another process, no text tower is built; who needs no frozen ones gives none.
    """

    adapter: Adapter | AdapterStack | Baseline
    zero_shot_text: Tensor

    def __init__(
        self, backbone: Backbone, adapter: Adapter | AdapterStack | Baseline, class_names: list[str], template: str,
        precision: str = "float32", workers: Workers | None = None, text: tuple[Tensor, Tensor | None] | None = None,
    ):  # fmt: skip
        super().__init__()
        adapter.check_fits(backbone)
        self.backbone, self.adapter = backbone, adapter
        self.class_names, self.template = list(class_names), template
        self.dtype, self.workers = DTYPES[precision], workers or Workers()
        self._given_text = text
        self._build_towers()

    def _build_towers(self) -> None:
        n_insert = self.adapter.n_insert
        self.image_tower = ImageTower(self.backbone, n_insert, self.dtype)
        if self._given_text:
            frozen = self._given_text[1]
            self.register_buffer(
                "zero_shot_text", None if frozen is None else frozen.to(self.backbone.device), persistent=False
            )
            return
        share = list(self.workers.share(self.class_names))
        self.text_tower = self.backbone.text_tower(share, self.template, n_insert, self.dtype)
        self.register_buffer("zero_shot_text", self._gathered(self.text_tower.zero_shot()), persistent=False)

    def _gathered(self, features: Tensor) -> Tensor:
        """Class features of all workers (C, E) from this one's share of them."""
        return self.workers.gather(features, len(self.class_names))

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        """`.to(device)`: the towers hold constants of the backbone's device and are made anew there."""
        before = self.backbone.device
        super()._apply(*args, **kwargs)
        if self.backbone.device != before:
            self._build_towers()
        return self

    @property
    def adapters(self) -> list[Adapter]:
        """Those that training changes: the one, or all of the stack; none of a baseline."""
        if isinstance(self.adapter, AdapterStack):
            return list(self.adapter.adapters)
        return [] if isinstance(self.adapter, Baseline) else [self.adapter]

    def text_features(self) -> Tensor:
        """Adapted class features w (C, E); constant once training is over."""
        if self._given_text:
            return self._given_text[0].to(self.backbone.device)
        if isinstance(self.adapter, Baseline):
            return self.zero_shot_text
        return self._gathered(self.text_tower.adapted(self.adapter.text_tokens(), self.adapter.config.composition))

    def forward(self, images: Tensor, text_features: Tensor | None = None) -> Output:
        """(B, 3, size, size) preprocessed images; pass `text_features` to reuse them over many batches."""
        return self.from_trunk(self.image_tower.trunk(images), text_features)

    def from_trunk(
        self, trunk: Tensor, text_features: Tensor | None = None, zero_shot_image: Tensor | None = None
    ) -> Output:
        """The same from the image tower's frozen trunk (B, n, D); frozen image features (B, E) are not computed
        where they are given."""
        w = self.text_features() if text_features is None else text_features
        return self.score(self.features(trunk, zero_shot_image), w)

    def features(self, trunk: Tensor, zero_shot_image: Tensor | None = None) -> ImageFeatures:
        """Features of images from their trunk (B, n, D), as `from_trunk`."""
        adapter, tower = self.adapter, self.image_tower
        if adapter.head is not None and zero_shot_image is None:
            zero_shot_image = tower.zero_shot(trunk)
        if isinstance(adapter, Baseline):
            assert zero_shot_image is not None  # a baseline has a head
            return ImageFeatures(zero_shot_image, zero_shot_image, zero_shot_image)
        rows, slots = tower.adapted(trunk, adapter.image_tokens(), adapter.config.composition)
        f_c = F.normalize(tower.proj(rows), dim=-1)
        return ImageFeatures(f_c, F.normalize(adapter.projection(slots, tower.proj), dim=-1), zero_shot_image)

    def score(self, features: ImageFeatures, text_features: Tensor) -> Output:
        """Logits of features among classes (C, E)."""
        (f_c, f_r, frozen), w, adapter = features, text_features, self.adapter
        by_class, by_rep = LOGIT_SCALE * f_c @ w.mT, LOGIT_SCALE * f_r @ w.mT
        head = None if adapter.head is None or frozen is None else adapter.head(frozen)
        return Output(by_class, by_rep, adapter.fused(by_class, by_rep), f_c, f_r, w, head)

    def zero_shot_logits(self, zero_shot_image: Tensor) -> Tensor:
        """The frozen CLIP's logits (B, C) from its image features (B, E)."""
        return LOGIT_SCALE * zero_shot_image @ self.zero_shot_text.T
