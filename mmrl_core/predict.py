"""Classify images with a trained adapter."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import PIL.Image
import torch
from torch import Tensor

from mmrl_core.clip.backbone import Backbone, refuse_one_name
from mmrl_core.data.views import ViewSettings, test_view
from mmrl_core.errors import Damaged, UserError
from mmrl_core.evaluation import abstain
from mmrl_core.evaluation.ranking import Names, names_of, ranked
from mmrl_core.evaluation.scores import BATCH_SIZE, batched
from mmrl_core.light.answers import ImageInput, Prediction, open_image
from mmrl_core.method.adapter import backbone_of, load_adapter
from mmrl_core.method.adapter_card import CARD, FOLDED, AdapterCard, read_card
from mmrl_core.method.adapter_stack import AdapterStack
from mmrl_core.method.folded import FoldedCLIP, tower_facts
from mmrl_core.method.heads import columns_of
from mmrl_core.method.joint_logits import joint_logits
from mmrl_core.method.model import AdaptedCLIP, ImageFeatures, class_features
from mmrl_core.method.shapes import folded_shapes
from mmrl_core.method.tensor_file import read_tensors
from mmrl_core.training.process import is_small

__all__ = ["Classes", "ImageInput", "Prediction", "Predictor"]

Features = Callable[[Tensor], ImageFeatures]  # of images (B, 3, S, S)

TOLERANCE = 1e-4  # of max|onnxruntime - PyTorch| / max|PyTorch|, for batches of these sizes
COMPARED = (1, 3)
DECODERS = 2  # threads; each holds one image at full size


class Classes(NamedTuple):
    """A list of C classes, ready to score images with."""

    names: list[str]
    text_features: Tensor  # (C, E)
    columns: Tensor  # (C,), their places among the classes that the adapter was trained on, -1 for others
    distinct: Names


class Predictor:
    """An adapter with its backbone. Class features are computed once per class list.

    `model` is the folded form: scoring an image costs one pass of the image tower.
    """

    def __init__(self, model: AdaptedCLIP, card: AdapterCard):
        self.card, self.model = card, FoldedCLIP.from_model(model).eval()
        self._adapter = model.adapter
        self._features: Features = self.model.features

    @classmethod
    def load(cls, path: str | Path, *, device: str | torch.device = "cpu") -> "Predictor":
        """Load a folder with adapter.safetensors and adapter.json, verified, and maybe folded.safetensors, which is
        left aside where it is not what the card says.

        Raises Damaged as `load_adapter` and for classes that no prompts can be made of, UserError for a missing file
        and a backbone that is not to be had.
        """
        card = read_card(path)
        backbone = backbone_of(card, device=device)
        adapter, card = load_adapter(path, backbone)
        try:
            text = _folded_text(Path(path), card, backbone)
            return cls(AdaptedCLIP(backbone, adapter, card["class_names"], card["template"], text=text), card)
        except UserError as error:  # two names that make one prompt
            raise Damaged(f"{Path(path) / CARD}: {error}") from None

    def check_answers(self) -> None:
        """Raises Damaged unless the probabilities of a blank image are numbers: finite weights can be too large."""
        blank = self.view(PIL.Image.new("RGB", (32, 32)), "blank")
        [answer] = self.score([blank], [self.classes()])
        if not all(map(math.isfinite, answer.probabilities.values())):
            raise Damaged(f"adapter {self.card['sha256'][:12]} answers with what is no number; train it again")

    def use_onnxruntime(self) -> bool:
        """Let onnxruntime compute image features from now on, in one thread; whether it does.

        It does not on a GPU and of a tower from a ViT-S on, where it would be no faster, of one that `light/graph.py`
        does not cover, and where its features differ from PyTorch's.
        """
        features = _onnx_features(self.model)
        self._features = features or self.model.features
        return features is not None

    @property
    def class_names(self) -> list[str]:
        """The classes the adapter was trained on."""
        return self.card["class_names"]

    def predict(self, images: Sequence[ImageInput], class_names: list[str] | None = None) -> list[Prediction]:
        """Classify image files (paths), encoded bytes or PIL images.

        Trained classes, the default, are scored by the fused logits, other classes by the class logits, and a list of
        both as `joint_logits` says. Raises UserError naming an image that cannot be read.
        """
        return [answer for answer in self.stream(images, class_names) if answer]  # None only if asked

    def stream(
        self, images: Iterable[ImageInput], class_names: list[str] | None = None, *, skip_damaged: bool = False,
        top_k: int | None = None,
    ) -> Iterator[Prediction | None]:  # fmt: skip
        """As `predict`, one at a time and in order, of any number of images; only a few are in memory at once.

        With `skip_damaged` an image that cannot be read gives None instead of a UserError; `top_k` as of `score`.
        """
        classes = self.classes(class_names)
        for views in _view_batches(images, self.model.backbone.view_settings, skip_damaged):
            readable = [view for view in views if view is not None]
            predictions = iter(self.score(readable, [classes] * len(readable), top_k))
            yield from (None if view is None else next(predictions) for view in views)

    def view(self, image: ImageInput, name: str) -> Tensor:
        """(3, S, S): what the model sees of an image. Raises UserError with its name when it cannot be read."""
        return test_view(open_image(image, name), self.model.backbone.view_settings)

    def classes(self, class_names: list[str] | None = None) -> Classes:
        """Any list of classes, by default the trained ones. Raises as `text_features`."""
        names = self.class_names if class_names is None else class_names
        return Classes(names, self.text_features(names), self.columns(names), names_of(names))

    @torch.inference_mode()
    def score(
        self, views: Sequence[Tensor], classes: Sequence[Classes], top_k: int | Sequence[int | None] | None = None
    ) -> list[Prediction]:
        """Predictions of views, each among its own list of classes; the image tower runs once over all of them.

        With `top_k`, one for all or one each, at least 1, a prediction holds so many names, the most probable first:
        of thousands of classes that is a tenth of the time. None: all names, in the order of the list.
        """
        if not views:
            return []
        counts = [top_k] * len(views) if isinstance(top_k, int | None) else top_k
        features = self._features(torch.stack(list(views)).to(self.model.backbone.device))
        by_row: dict[int, Prediction] = {}
        for own, rows in _rows_by_classes(classes):
            among = self.model.score(features.of(rows), own.text_features)
            probabilities = joint_logits(among, own.columns, self.model.weights).softmax(-1)
            answers = ranked(probabilities, own.distinct, [counts[row] for row in rows])
            for row, answer, confidence in zip(rows, answers, abstain.confidence(among).tolist(), strict=True):
                by_row[row] = Prediction(*answer, confidence)
        return [by_row[row] for row in range(len(views))]

    def columns(self, class_names: list[str]) -> Tensor:
        """(C,): the places of classes among the trained ones, by their names, -1 for others."""
        return columns_of(class_names, self.class_names)

    def cut_note(self, class_names: list[str]) -> str | None:
        """A line that names those classes, trained ones apart, whose prompts are too long for the backbone; or None."""
        new = [name for name in class_names if name not in self.class_names]
        return self.model.backbone.cut_note(new, self.card["template"]) if new else None

    @torch.no_grad()
    def text_features(self, class_names: list[str]) -> Tensor:
        """Class features w (C, E) of any classes. Raises UserError as `tokenize`, and for a list of one name alone."""
        if class_names == self.class_names:
            return self.model.text_features
        refuse_one_name(class_names)
        assert not isinstance(self._adapter, AdapterStack)  # which predicts nothing
        return class_features(self.model.backbone, self._adapter, class_names, self.card["template"])


def _folded_text(folder: Path, card: AdapterCard, backbone: Backbone) -> tuple[Tensor, None] | None:
    """The class features that lie beside an adapter, of thousands of classes most of what loading it would take; None
    without them, and where they are not what the card says: the adapter's own files do not depend on them."""
    if "folded_sha256" not in card or not (folder / FOLDED).is_file():
        return None
    with contextlib.suppress(UserError):
        tensors = read_tensors(folder / FOLDED, folded_shapes(card, backbone), card["folded_sha256"])
        return tensors["text_features"], None
    return None


@torch.inference_mode()
def _onnx_features(model: FoldedCLIP) -> Features | None:
    """What gives the features that `model.features` gives; None where it is not to be used."""
    visual = model.backbone.visual.state_dict()
    here = all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in visual.values())
    facts = tower_facts(model.backbone)
    if not (facts and here and model.tower.dtype == torch.float32 and is_small(model.backbone)):
        return None
    from mmrl_core.light.graph import Tokens, feature_graph  # and onnx: 0.1 s that most commands do without
    from mmrl_core.light.session import session_of

    tokens = None
    if model.tokens is not None and model.projection is not None:
        tokens = Tokens(model.tokens.numpy(), model.projection.numpy(), model.beta, model.head is not None)
    graph = feature_graph({name: tensor.numpy() for name, tensor in visual.items()}, facts, tokens)
    session = graph and session_of(graph)
    if not session:
        return None

    def features(images: Tensor) -> ImageFeatures:
        parts = [session(part.numpy()) for part in images.split(model.tower.chunk(len(images)))]
        adapted, *others = [
            torch.cat([torch.from_numpy(part) for part in output]) for output in zip(*parts, strict=True)
        ]
        if tokens is None:
            return ImageFeatures(adapted, adapted, adapted)
        return ImageFeatures(adapted, others[0], others[1] if tokens.frozen else None)

    return features if all(_alike(features, model, batch) for batch in COMPARED) else None


def _alike(features: Features, model: FoldedCLIP, batch: int) -> bool:
    """Whether they are the model's own, of normally distributed images."""
    size = model.backbone.image_size
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(batch))
    pairs = zip(features(images), model.features(images), strict=True)
    return all(
        bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max())  # false of what is no number
        for found, expected in pairs
        if found is not None and expected is not None
    )


def _rows_by_classes(classes: Sequence[Classes]) -> list[tuple[Classes, list[int]]]:
    """Each list of classes, with the rows that are scored among it."""
    rows: dict[int, list[int]] = {}
    for row, own in enumerate(classes):
        rows.setdefault(id(own), []).append(row)
    return [(classes[places[0]], places) for places in rows.values()]


def _view_batches(
    images: Iterable[ImageInput], view_settings: ViewSettings, skip_damaged: bool
) -> Iterator[list[Tensor | None]]:
    """Test views (3, S, S), None for what is skipped; a batch is decoded while the caller uses the one before it."""
    view = partial(_view, view_settings)
    threads = ThreadPoolExecutor(DECODERS)
    try:
        ahead: list[Future[Tensor]] = []
        for batch in chain(batched(enumerate(images), BATCH_SIZE), [[]]):  # the empty one for the last to come out
            ready, ahead = ahead, [threads.submit(view, image, index) for index, image in batch]
            if ready:
                yield [_result(future, skip_damaged) for future in ready]
    finally:
        threads.shutdown(cancel_futures=True)


def _view(view_settings: ViewSettings, image: ImageInput, index: int) -> Tensor:
    return test_view(open_image(image, f"number {index}"), view_settings)


def _result(view: Future[Tensor], skip_damaged: bool) -> Tensor | None:
    try:
        return view.result()
    except UserError:
        if skip_damaged:
            return None
        raise
