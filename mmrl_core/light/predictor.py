"""Classify a few images with a trained adapter, without PyTorch."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmrl_core.clip import LOGIT_SCALE, bundled
from mmrl_core.data.squares import ViewSettings, test_pixels
from mmrl_core.errors import UserError
from mmrl_core.light.activations import softmax
from mmrl_core.light.answers import ImageInput, Prediction, open_image
from mmrl_core.light.backbone import read_backbone
from mmrl_core.light.folded import LightCLIP, read_folded
from mmrl_core.method.adapter_card import FOLDED, AdapterCard, read_card
from mmrl_core.method.places import places

# Images that NumPy labels sooner than PyTorch is imported: with tiny up to 600, with a ViT-B-16 up to 11 to 50, by its
# activation.
FEW, FEW_OF_OTHERS = 256, 8


class LightPredictor:
    """What `Predictor` answers, for trained classes."""

    def __init__(self, model: LightCLIP, view: ViewSettings, card: AdapterCard):
        self.card, self.model, self.view_settings = card, model, view

    @classmethod
    def load(cls, path: str | Path, class_names: list[str] | None = None, images: int = 1) -> "LightPredictor | None":
        """Load a folder with adapter.safetensors, adapter.json and folded.safetensors, all verified.

        None where PyTorch is needed or faster: for more `images` than a few, other classes than trained ones, a folder
        without the third file, and weights that are neither the bundled ones nor a safetensors file.

        Raises as `Predictor.load`.
        """
        folder, card = Path(path), read_card(path)
        few = FEW if card["backbone"]["name"] == bundled.NAME else FEW_OF_OTHERS
        has_file = "folded_sha256" in card and (folder / FOLDED).is_file()
        if images > few or not has_file or not _trained(class_names, card):
            return None
        backbone = read_backbone(card["backbone"])
        found = backbone and read_folded(folder, card, backbone)
        return cls(*found, card) if found else None

    @property
    def class_names(self) -> list[str]:
        """The classes the adapter was trained on."""
        return self.card["class_names"]

    def cut_note(self, class_names: list[str]) -> str | None:
        """None, as of trained classes."""
        return None

    def stream(
        self, images: Iterable[ImageInput], class_names: list[str] | None = None, *, skip_damaged: bool = False,
        top_k: int | None = None,
    ) -> Iterator[Prediction | None]:  # fmt: skip
        """As `Predictor.stream`, among trained classes."""
        names = self.class_names if class_names is None else class_names
        columns, named = np.array(places(names, self.class_names)), _Names.of(names)
        for index, image in enumerate(images):
            try:
                view = test_pixels(open_image(image, f"number {index}"), self.view_settings)
            except UserError:
                if not skip_damaged:
                    raise
                yield None
                continue
            logits = self.model.logits(view)
            confidence = float(logits.by_class[columns].max()) / LOGIT_SCALE
            yield named.prediction(softmax(logits.trained[columns]), confidence, top_k)


class _Names(NamedTuple):
    """The names of C classes, each once, and which class has which."""

    distinct: list[str]
    places: np.ndarray  # (C,)

    @classmethod
    def of(cls, names: list[str]) -> "_Names":
        place = {name: index for index, name in enumerate(dict.fromkeys(names))}
        return cls(list(place), np.array([place[name] for name in names]))

    def prediction(self, probabilities: np.ndarray, confidence: float, top_k: int | None) -> Prediction:
        """Of one image's probabilities (C,); of equally probable names the first comes first."""
        sums = np.bincount(self.places, probabilities)
        best = int(sums.argmax())
        if top_k is None:
            named = dict(zip(self.distinct, sums.tolist(), strict=True))
        else:
            named = {self.distinct[place]: float(sums[place]) for place in np.argsort(-sums, kind="stable")[:top_k]}
        return Prediction(self.distinct[best], float(sums[best]), named, confidence)


def _trained(class_names: list[str] | None, card: AdapterCard) -> bool:
    """Whether the list leaves something to choose and holds trained classes alone."""
    return class_names is None or (set(class_names) <= set(card["class_names"]) and len(set(class_names)) > 1)
