"""Adapted: what `mmrl.adapt` gives. A Predictor that can also be saved, moved, shared and used in a training loop.

B images, C classes, S side in pixels, E embedding width.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast, overload

import torch
from huggingface_hub import ModelHubMixin
from torch import Tensor

from mmrl_core.adapting.devices import device_of, plainly
from mmrl_core.adapting.images import ENCODED, FORMS, is_one_image, open_image
from mmrl_core.adapting.transform import Transform
from mmrl_core.errors import UserError
from mmrl_core.method.adapter import Adapter, save_adapter
from mmrl_core.method.adapter_card import CARD, CardContent
from mmrl_core.method.baseline import Baseline
from mmrl_core.method.joint_logits import joint_logits
from mmrl_core.method.model import AdaptedCLIP
from mmrl_core.predict import ImageInput, Prediction, Predictor

if TYPE_CHECKING:
    import numpy as np
    from huggingface_hub import ModelCard


class Adapted(Predictor, ModelHubMixin):
    """An adapter with its backbone, ready to label images.

    `predict`, `features`, `logits` and `transform` use it; `save` and `load` keep it in a folder that `mmrl predict
    --model`, `mmrl export --model` and the other commands read; `save_pretrained`, `from_pretrained` and `push_to_hub`
    are Hugging Face's. `model` maps preprocessed images (B, 3, S, S) to features and logits
    (`mmrl_core.method.model.Output`). No file of it is unpickled.
    """

    _hub_mixin_config: Any = {}  # not the arguments of __init__, which the mixin would keep and write

    @classmethod
    @plainly()
    def load(cls, path: str | Path, *, device: str | torch.device | None = None) -> Self:
        """The adapter that `save`, or any command of `mmrl`, wrote to a folder; `device` is by default the GPU if there
        is one. Raises Damaged for files that are not what was saved, UserError for missing ones."""
        if not (Path(path) / CARD).exists():
            raise UserError(f"{path} holds no {CARD}; give a folder that `save`, or a command of `mmrl`, wrote")
        return cast(Self, super().load(path, device=device_of(device)))

    @overload
    def predict(self, images: ImageInput, class_names: list[str] | None = None) -> Prediction: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, images: Iterable[ImageInput], class_names: list[str] | None = None) -> list[Prediction]: ...
    def predict(self, images: Any, class_names: list[str] | None = None) -> Any:
        """The label of one image with every class's probability, or of each of several.

        An image is a path, encoded bytes, a PIL image or an array of bytes (height, width, 3). `class_names` are by
        default the trained classes; any others are scored as well, without training. Raises UserError naming an image
        that cannot be read.
        """
        several = not is_one_image(images)
        known = _forms(images if several else [images])
        predictions = super().predict(known, None if class_names is None else list(class_names))
        return predictions if several else predictions[0]

    @property
    def threshold(self) -> float | None:
        """Below this `confidence` of a prediction the image is likely of none of the classes; None where no image was
        held out to set it on."""
        entry = self.card.get("abstain")
        return entry["threshold"] if entry else None

    @property
    def transform(self) -> Transform:
        """What turns an image into what the model sees of it, (3, S, S)."""
        return Transform(self.model.backbone.view_settings)

    @property
    def _own(self) -> Adapter | Baseline:
        assert isinstance(self._adapter, Adapter | Baseline)  # no stack of runs
        return self._adapter

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.backbone.device

    def logits(self, views: Tensor) -> Tensor:
        """(B, C) of views (B, 3, S, S) by `transform`: their softmax are the probabilities that `predict` gives.

        Views are moved to its device. Gradients reach the views where autograd records.
        """
        side = self.model.backbone.image_size
        if not isinstance(views, Tensor) or views.dim() != 4 or views.shape[1:] != (3, side, side):
            got = tuple(views.shape) if isinstance(views, Tensor) else type(views).__name__
            raise UserError(f"views are {got}; give a tensor (images, 3, {side}, {side}) of what `transform` makes")
        output = self.model(views.to(self.device))
        return joint_logits(output, self.columns(self.class_names), self.model.weights)

    def features(self, images: Iterable[ImageInput]) -> "dict[str, np.ndarray]":
        """The frozen CLIP's features and the adapted ones of images, each (N, E) float32, by the names that
        `mmrl embed` gives them. Raises UserError as `predict`."""
        from mmrl_core.adapting.embedding import Encoder, stacked

        return stacked(Encoder.of(self), images)

    @plainly()
    def to(self, device: str | torch.device) -> Self:
        """Move it, and the backbone that it was made with, to a device; returns itself. Raises UserError for a device
        that is not there."""
        model = AdaptedCLIP(self.model.backbone, self._own, self.class_names, self.card["template"])
        Predictor.__init__(self, model.to(device_of(device)), self.card)
        return self

    def save(self, path: str | Path) -> Path:
        """Write adapter.safetensors and adapter.json to a folder, each whole or not at all; returns the folder. Raises
        UserError where it cannot be written."""
        content = {key: value for key, value in self.card.items() if key in CardContent.__annotations__}
        try:
            self.card = save_adapter(path, self._own, self.model.backbone, cast(CardContent, content))
        except OSError as error:
            raise UserError(f"cannot write the adapter to {path} ({error.strerror}); choose another folder") from None
        return Path(path)

    def _save_pretrained(self, save_directory: Path) -> None:
        """What `save_pretrained` and `push_to_hub` write, beside the model card."""
        from mmrl_core.adapting.hub import write_config

        self.save(save_directory)
        write_config(save_directory, self.card)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> "ModelCard":
        """README.md for the Hub; `license` is the licence that you give the adapter."""
        from mmrl_core.adapting.hub import model_card

        return model_card(self.card, **kwargs)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, device: str | torch.device | None = None, **options: Any
    ) -> Self:
        """An adapter of a folder or of a repository of the Hugging Face Hub; `device` is as `load`'s, other options
        (revision, token, cache_dir, local_files_only ...) are those of `huggingface_hub.snapshot_download`. Raises
        UserError where it is not to be had."""
        from mmrl_core.adapting.hub import fetched

        name = str(pretrained_model_name_or_path)
        return cls.load(name if Path(name).is_dir() else fetched(name, options), device=device)


def load(path: str | Path, *, device: str | torch.device | None = None) -> Adapted:
    """The adapter in a folder, as `Adapted.load`."""
    return Adapted.load(path, device=device)


def _forms(images: Iterable[Any]) -> Sequence[ImageInput]:
    """Images as Predictor takes them; others than paths and encoded ones are decoded."""
    if not isinstance(images, Iterable):
        raise UserError(f"images are of type {type(images).__name__}, no image and no list of images; give {FORMS}")
    return [
        image if isinstance(image, (str, Path, *ENCODED)) else open_image(image, f"number {index}")
        for index, image in enumerate(images)
    ]
