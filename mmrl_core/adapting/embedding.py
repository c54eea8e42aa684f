"""Features of images: the frozen CLIP's, and with an adapter those that it makes of them.

N images, E embedding width; every row is L2-normalised.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmrl_core.adapting.devices import device_of
from mmrl_core.adapting.images import is_one_image, open_image
from mmrl_core.clip.backbone import Backbone, load_backbone
from mmrl_core.data.parallel import map_in_order
from mmrl_core.data.views import test_view
from mmrl_core.errors import UserError
from mmrl_core.evaluation.scores import BATCH_SIZE, batched
from mmrl_core.method.folded import FoldedCLIP
from mmrl_core.predict import Predictor

if TYPE_CHECKING:
    import numpy as np

FROZEN, IMAGE, REP = "frozen_features", "image_features", "rep_features"
Row = dict[str, "np.ndarray"]  # by the names above, each (E,) float32


class Encoder:
    """Images to features: of a backbone alone FROZEN, with an adapter's folded form also IMAGE (f_c) and REP (f_r), but
    for a baseline, which changes no feature."""

    def __init__(self, backbone: Backbone, model: FoldedCLIP | None = None, adapter_sha256: str | None = None):
        self.backbone, self.adapter_sha256 = backbone, adapter_sha256
        self.model = model if model is not None and model.tokens is not None else None
        self.names = (FROZEN, IMAGE, REP) if self.model else (FROZEN,)

    @classmethod
    def of(cls, predictor: Predictor) -> "Encoder":
        """That of an adapter."""
        return cls(predictor.model.backbone, predictor.model, predictor.card["sha256"])

    @property
    def facts(self) -> dict[str, Any]:
        """What the features depend on, beside the images, and their width."""
        backbone = self.backbone
        facts = {"backbone": backbone.name, "weights_sha256": backbone.weights_sha256, "width": backbone.embed_dim}
        return facts | ({"adapter_sha256": self.adapter_sha256} if self.adapter_sha256 else {})

    @torch.inference_mode()
    def __call__(self, views: Tensor) -> dict[str, Tensor]:
        """(N, 3, S, S) to (N, E) of every name, on a CPU."""
        views = views.to(self.backbone.device)
        if self.model is None:
            features = (self.backbone.encode_image(views),)
            return self._named(features)
        own = self.model.features(views)
        frozen = self.backbone.encode_image(views) if own.frozen is None else own.frozen
        return self._named((frozen, own.adapted, own.rep))

    def _named(self, features: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return {name: one.float().cpu() for name, one in zip(self.names, features, strict=True)}

    def stream(self, images: Iterable[Any], *, skip_damaged: bool = False) -> Iterator[Row | None]:
        """A row an image, in order, of any number of images; only a few are in memory at once.

        Raises UserError naming an image that cannot be read; with `skip_damaged` it gives None instead.
        """
        views = map_in_order(partial(self._view, skip_damaged), enumerate(images), size=1)
        for batch in batched(views, BATCH_SIZE):
            readable = [view for view in batch if view is not None]
            rows = self._rows(readable) if readable else iter(())
            yield from (None if view is None else next(rows) for view in batch)

    def _rows(self, views: list[Tensor]) -> Iterator[Row]:
        named = {name: one.numpy() for name, one in self(torch.stack(views)).items()}
        return ({name: one[row] for name, one in named.items()} for row in range(len(views)))

    def _view(self, skip_damaged: bool, numbered: tuple[int, Any]) -> Tensor | None:
        index, image = numbered
        try:
            return test_view(open_image(image, f"number {index}"), self.backbone.view_settings)
        except UserError:
            if skip_damaged:
                return None
            raise


def stacked(encoder: Encoder, images: Iterable[Any]) -> dict[str, "np.ndarray"]:
    """(N, E) of every name, of all images at once."""
    import numpy as np

    if is_one_image(images) or not isinstance(images, Iterable):
        raise UserError("features are made of a list of images; put the one into a list")
    rows = [row for row in encoder.stream(images) if row is not None]
    if not rows:
        return {name: np.empty((0, encoder.backbone.embed_dim), np.float32) for name in encoder.names}
    return {name: np.stack([row[name] for row in rows]) for name in encoder.names}


def embed(
    images: Iterable[Any], *, backbone: str | Backbone = "tiny", weights: str | None = None,
    device: str | torch.device | None = None,
) -> "np.ndarray":  # fmt: skip
    """The frozen CLIP's features of images (N, E) float32, L2-normalised: for search, clusters, other classifiers.

    Images and backbones are as `adapt` takes them. Raises UserError naming an image that cannot be read.
    """
    if isinstance(backbone, str):
        backbone = load_backbone(backbone, weights, device=device_of(device))
    return stacked(Encoder(backbone), images)[FROZEN]
