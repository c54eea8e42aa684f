"""Classify images with a trained adapter."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL.Image import Image

from mmrl_core.adapter import load_adapter, read_card
from mmrl_core.backbone import load_backbone
from mmrl_core.data.images import decode
from mmrl_core.data.views import test_views
from mmrl_core.errors import UserError
from mmrl_core.evaluation import BATCH_SIZE, batched
from mmrl_core.model import AdaptedCLIP


class Prediction(NamedTuple):
    """The most probable class, its probability, and every class's."""

    label: str
    probability: float
    probabilities: dict[str, float]


class Predictor:
    """An adapter with its backbone. Class features are computed once per class list."""

    def __init__(self, model: AdaptedCLIP, card: dict):
        self.card, self._model = card, model.eval()
        self._text = self._text_features(model)

    @classmethod
    def load(cls, path: str | Path, *, device: str | torch.device = "cpu") -> "Predictor":
        """Load a folder with adapter.safetensors and adapter.json; hashes and backbone are verified (UserError)."""
        card = read_card(path)
        backbone = load_backbone(card["backbone"]["name"], card["backbone"]["weights"], device=device)
        adapter, card = load_adapter(path, backbone)
        return cls(AdaptedCLIP(backbone, adapter, card["class_names"], card["template"]), card)

    @property
    def class_names(self) -> list[str]:
        """The classes the adapter was trained on."""
        return self.card["class_names"]

    def predict(self, images: Sequence, class_names: list[str] | None = None) -> list[Prediction]:
        """Classify image files (paths), encoded bytes or PIL images.

        The trained classes, the default, are scored by the fused logits, any other list by the class logits.
        Raises UserError naming an image that cannot be read.
        """
        model, text, names = self._for_classes(class_names)
        logits = "fused" if set(names) <= set(self.class_names) else "class"
        found = []
        for batch in batched(enumerate(images), BATCH_SIZE):
            found += self._probabilities(model, text, [_open(image, index) for index, image in batch], logits)
        return [_prediction(names, row) for row in found]

    def _for_classes(self, class_names: list[str] | None):
        if class_names is None or class_names == self.class_names:
            return self._model, self._text, self.class_names
        model = AdaptedCLIP(self._model.backbone, self._model.adapter, class_names, self.card["template"])
        return model, self._text_features(model), class_names

    @staticmethod
    @torch.inference_mode()
    def _text_features(model: AdaptedCLIP) -> torch.Tensor:
        return model.text_features()

    @staticmethod
    @torch.inference_mode()
    def _probabilities(model: AdaptedCLIP, text: torch.Tensor, images: list[Image], logits: str) -> list[list[float]]:
        backbone = model.backbone
        views = test_views(images, backbone.image_size, backbone.mean, backbone.std).to(backbone.device)
        return getattr(model(views, text), f"logits_{logits}").softmax(-1).tolist()


def _open(image, index: int) -> Image:
    if isinstance(image, str | Path):
        try:
            return decode(Path(image).read_bytes(), str(image))
        except OSError as error:
            raise UserError(f"cannot read the image {image} ({error.strerror}); check the path") from None
    if isinstance(image, bytes | bytearray | memoryview):
        return decode(bytes(image), f"number {index}")
    return image.convert("RGB")


def _prediction(names: list[str], row: list[float]) -> Prediction:
    best = max(range(len(row)), key=row.__getitem__)
    return Prediction(names[best], row[best], dict(zip(names, row, strict=True)))
