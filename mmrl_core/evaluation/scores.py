"""Scores of an adapter and of the frozen CLIP on the same images: probabilities, accuracy, calibration.

N images, C classes. Accuracies and probabilities are fractions in [0, 1].
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from mmrl_core.clip.backbone import Backbone
from mmrl_core.clip.feature_store import FeatureStore, FrozenFeatures, LoadedBatch, evaluation_key
from mmrl_core.clip.towers import ImageTower
from mmrl_core.data.images import decode
from mmrl_core.data.parallel import map_in_order
from mmrl_core.data.shards import Example
from mmrl_core.data.views import test_views
from mmrl_core.method.adapter import Adapter
from mmrl_core.method.adapter_stack import AdapterStack
from mmrl_core.method.joint_logits import joint_logits
from mmrl_core.method.logit_weights import PLAIN, logit_weights, without_probe
from mmrl_core.method.model import AdaptedCLIP, Output

ECE_BINS = 15
BATCH_SIZE = 64
CHUNK = 16  # images that go through the frozen tower together; the last few are filled up to as many

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

    def where(self, wanted: Callable[[str], bool]) -> "Scores":
        """Of the items alone that are wanted."""
        rows = [row for row, item in enumerate(self.items) if wanted(item)]
        items = [self.items[row] for row in rows]
        variants = {name: one[rows] for name, one in self.variants.items()}
        return Scores(items, self.labels[rows], self.adapted[rows], self.zero_shot[rows], self.classes, variants)


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


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = ECE_BINS) -> float:
    """ECE with equal-width bins of the top probability (Guo et al., 2017): (N, C), (N,) -> fraction."""
    confidence, prediction = probabilities.max(dim=-1)
    correct = (prediction == labels).double()
    index = (confidence * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins, dtype=torch.double).index_add_(0, index, correct - confidence.double())
    return float(gaps.abs().sum() / len(labels))


def summary(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """accuracy, n, calibration error (ece) and mean negative log-likelihood (nll, nats) of (N, C) against (N,)."""
    true = probabilities[torch.arange(len(labels)), labels].clamp_min(1e-12)
    return {
        "accuracy": float((probabilities.argmax(-1) == labels).double().mean()),
        "n": len(labels),
        "ece": expected_calibration_error(probabilities, labels),
        "nll": float(-true.double().log().mean()),
    }


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
    places = trained if isinstance(trained, Mapping) else {label: place for place, label in enumerate(trained)}
    columns = torch.tensor([places.get(label, -1) for label in labels])
    position = {label: index for index, label in enumerate(labels)}
    texts = [model.text_features() for model in models]
    batches: list[list[Scores]] = [[] for _ in models]  # by model
    done = 0
    towers = sorted((model.image_tower for model in models), key=lambda tower: tower.first)
    features = FrozenFeatures(towers[0], CHUNK, store)

    def load(batch: list[Example]) -> tuple[list[Example], LoadedBatch]:
        keys = [evaluation_key(_digest(example, digests)) if store else example.key for example in batch]
        return batch, features.load(keys, lambda rows: test_batch(models[0].backbone, [batch[row] for row in rows]))

    for batch, loaded in map_in_order(load, batched(examples, BATCH_SIZE), size=1):
        frozen = features.frozen(loaded)
        trunks = _trunks(towers, frozen.trunk, features.chunk)
        items = [example.path for example in batch]
        truth = torch.tensor([position[example.label] for example in batch], dtype=torch.long)
        for model, text, scored in zip(models, texts, batches, strict=True):
            output = model.from_trunk(trunks[model.image_tower.first], text, frozen.zero_shot)
            zero_shot = model.zero_shot_logits(frozen.zero_shot).softmax(-1).cpu()
            adapted, variants = _probabilities(output, columns, model)
            scored.append(Scores(items, truth, adapted, zero_shot, labels, variants))
        done += len(batch)
        if report:
            report(done)
    return [merged(scored, labels) for scored in batches]


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
    """The examples' test views (B, 3, S, S)."""
    images = [decode(example.image, example.path) for example in examples]
    return test_views(images, backbone.view_settings)
