"""Scores of an adapter and of the frozen CLIP on the same images: probabilities, accuracy, calibration.

N images, C classes, E embedding width. Accuracies and probabilities are fractions in [0, 1]. `Scores` hold the
probabilities, (N, C) of each kind; what an evaluation of many images among many classes needs of them is had from
their features, a batch at a time (`figures.py`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from mmrl_core.clip.backbone import Backbone
from mmrl_core.clip.feature_store import FeatureStore, FrozenFeatures, LoadedBatch, evaluation_key
from mmrl_core.clip.towers import ImageTower
from mmrl_core.data.images import decode
from mmrl_core.data.parallel import map_in_order
from mmrl_core.data.shards import Example
from mmrl_core.data.views import test_squares
from mmrl_core.method.adapter import Adapter
from mmrl_core.method.adapter_stack import AdapterStack
from mmrl_core.method.joint_logits import joint_logits
from mmrl_core.method.logit_weights import PLAIN, logit_weights, without_probe
from mmrl_core.method.model import AdaptedCLIP, ImageFeatures, Output

BATCH_SIZE = 64
CHUNK = 16  # images that go through the frozen tower together; the last few are filled up to as many

ADAPTED, ZERO_SHOT = "adapted", "zero_shot"
# What may be left out: the temperatures, the probe (and its temperature), or both.
UNCALIBRATED, WITHOUT_PROBE, NEITHER = VARIANTS = ("uncalibrated", "without_probe", "neither")

T = TypeVar("T")
Columns = Sequence[int] | Mapping[int, int]  # source labels of the trained classes in their order, or place by label


@dataclass(frozen=True)
class Scores:
    """Per-image results; labels index the model's class names."""

    items: list[str]
    labels: Tensor  # (N,)
    adapted: Tensor  # probabilities (N, C)
    zero_shot: Tensor  # probabilities (N, C)
    classes: list[int]  # the source label of each of the C classes
    variants: dict[str, Tensor] = field(default_factory=dict)  # probabilities (N, C) by what is left out, see VARIANTS


def merged(parts: Iterable[Scores], classes: list[int]) -> Scores:
    """The images of all parts, one part after another; without a part, scores of no image."""
    nothing = torch.empty(0, len(classes))
    parts = list(parts) or [Scores([], torch.empty(0, dtype=torch.long), nothing, nothing, classes)]
    return Scores(
        [item for part in parts for item in part.items],
        torch.cat([part.labels for part in parts]),
        torch.cat([part.adapted for part in parts]),
        torch.cat([part.zero_shot for part in parts]),
        classes,
        {name: torch.cat([part.variants[name] for part in parts]) for name in parts[0].variants},
    )


def batched(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of up to `size` successive values (itertools.batched, which Python 3.11 lacks)."""
    values = iter(values)
    while batch := list(islice(values, size)):
        yield batch


def score(
    model: AdaptedCLIP,
    examples: Iterable[Example],
    labels: list[int],
    trained: Columns,
    report: Callable[[int], None] | None = None,
    store: FeatureStore | None = None,
    digests: Mapping[str, str] = {},
) -> Scores:
    """Score a stream of examples, batch by batch, by the adapter and zero-shot.

    `labels[i]` is the source label of the model's class i. Those among `trained`, the source labels of the adapter's
    classes in their order, get the logits of trained classes, the others the class logits (`joint_logits`).
    `report(n)` is called with the images done so far. `store` keeps frozen features for other calls, by the sha256 of
    the encoded images, of which some may be known by their paths (`digests`).
    """
    [scores] = score_each([model], examples, labels, trained, report, store, digests)
    return scores


@torch.inference_mode()
def score_each(
    models: Sequence[AdaptedCLIP],
    examples: Iterable[Example],
    labels: list[int],
    trained: Columns,
    report: Callable[[int], None] | None = None,
    store: FeatureStore | None = None,
    digests: Mapping[str, str] = {},
) -> list[Scores]:
    """What `score` gives for each of several models of one backbone and the same classes.

    Images are read, decoded and passed through the frozen tower once. On a CPU the scores are the same bits as alone.
    """
    columns, texts = columns_among(labels, trained), [model.text_features() for model in models]
    batches: list[list[Scores]] = [[] for _ in models]  # by model
    for each in encode_each(models, examples, labels, report, store, digests):
        for model, text, encoded, scored in zip(models, texts, each, batches, strict=True):
            found = probabilities_of(model, text, encoded, columns)
            adapted, zero_shot = found.pop(ADAPTED), found.pop(ZERO_SHOT)
            scored.append(Scores(encoded.items, encoded.labels, adapted, zero_shot, labels, found))
    return [merged(scored, labels) for scored in batches]


def columns_among(labels: Sequence[int], trained: Columns) -> Tensor:
    """(C,): the places of classes, by their source labels, among the trained ones; -1 for others."""
    places = trained if isinstance(trained, Mapping) else {label: place for place, label in enumerate(trained)}
    return torch.tensor([places.get(label, -1) for label in labels])


class Encoded(NamedTuple):
    """A batch of images as one model sees them, on a CPU; labels index its class names. `features.frozen` is there."""

    items: list[str]
    labels: Tensor  # (B,)
    features: ImageFeatures  # (B, E) each

    def where(self, wanted: Callable[[str], bool]) -> "Encoded":
        """Of the items alone that are wanted."""
        rows = [row for row, item in enumerate(self.items) if wanted(item)]
        return Encoded([self.items[row] for row in rows], self.labels[rows], self.features.of(rows))


@torch.inference_mode()
def encode_each(
    models: Sequence[AdaptedCLIP],
    examples: Iterable[Example],
    labels: list[int],
    report: Callable[[int], None] | None = None,
    store: FeatureStore | None = None,
    digests: Mapping[str, str] = {},
) -> Iterator[list[Encoded]]:
    """Of every batch of examples what each of several models sees; arguments as of `score`."""
    position = {label: index for index, label in enumerate(labels)}
    done = 0
    towers = sorted((model.image_tower for model in models), key=lambda tower: tower.first)
    features = FrozenFeatures(towers[0], CHUNK, store)

    def load(batch: list[Example]) -> tuple[list[Example], LoadedBatch]:
        keys = [evaluation_key(_digest(example, digests)) if store else example.key for example in batch]
        return batch, features.load(keys, lambda rows: test_batch(models[0].backbone, [batch[row] for row in rows]))

    for batch, loaded in map_in_order(load, batched(examples, BATCH_SIZE), size=1):
        frozen = features.frozen(loaded)
        trunks = _trunks(towers, frozen.trunk, features.chunk)
        items, zero_shot = [example.path for example in batch], frozen.zero_shot.cpu()
        truth = torch.tensor([position[example.label] for example in batch], dtype=torch.long)
        seen = [model.features(trunks[model.image_tower.first], frozen.zero_shot) for model in models]
        yield [Encoded(items, truth, ImageFeatures(one.adapted.cpu(), one.rep.cpu(), zero_shot)) for one in seen]
        done += len(batch)
        if report:
            report(done)


def probabilities_of(model: AdaptedCLIP, text: Tensor, encoded: Encoded, columns: Tensor) -> dict[str, Tensor]:
    """(B, C) as they are predicted (ADAPTED), by the frozen CLIP (ZERO_SHOT), and of every variant that there is.
    `text` are the model's class features; `columns` as `columns_among`."""
    device, (adapted, rep, frozen) = model.backbone.device, encoded.features
    assert frozen is not None
    frozen = frozen.to(device)
    output = model.score(ImageFeatures(adapted.to(device), rep.to(device), frozen), text)
    predicted, variants = _probabilities(output, columns, model)
    return {ADAPTED: predicted, ZERO_SHOT: model.zero_shot_logits(frozen).softmax(-1).cpu(), **variants}


def _probabilities(output: Output, columns: Tensor, model: AdaptedCLIP) -> tuple[Tensor, dict[str, Tensor]]:
    """(B, C) as they are predicted, and of every variant that there is."""
    adapter = model.adapter
    assert not isinstance(adapter, AdapterStack)  # whose logits are of several runs
    adapted = joint_logits(output, columns, adapter.weights).softmax(-1).cpu()
    weights = {}
    if adapter.calibration:
        weights[UNCALIBRATED] = logit_weights(adapter.head_card, None)
    if isinstance(adapter, Adapter) and adapter.head_card:
        weights[WITHOUT_PROBE] = without_probe(adapter.calibration)
        if adapter.calibration:
            weights[NEITHER] = PLAIN
    return adapted, {name: joint_logits(output, columns, one).softmax(-1).cpu() for name, one in weights.items()}


def _digest(example: Example, known: Mapping[str, str]) -> str:
    return known.get(example.path) or sha256(example.image).hexdigest()


def _trunks(towers: Sequence[ImageTower], trunk: Tensor, chunk: int) -> dict[int, Tensor]:
    """Trunks by number of blocks, each computed from that of the tower before; `trunk` is that of the first tower."""
    last = towers[0].first
    trunks = {last: trunk}
    for tower in towers:
        trunks[tower.first], last = tower.advance(trunks[last], last, chunk), tower.first
    return trunks


def test_batch(backbone: Backbone, examples: Iterable[Example]) -> Tensor:
    """The examples' test views as bytes (B, 3, S, S), not normalised."""
    images = [decode(example.image, example.path) for example in examples]
    return test_squares(images, backbone.view_settings)
