"""The figures of one model on one test set, in memory that does not grow with images times classes.

N images, C classes. Kept are the images' features; their probabilities are computed from these a batch at a time, once
for the answers, and where AUROC is asked for once more, to count them against those of each class's own images.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmrl_core.clip.feature_store import FeatureStore
from mmrl_core.data.shards import Example
from mmrl_core.evaluation.answers import Answers, answers_of, joined, summary_of
from mmrl_core.evaluation.class_metrics import metrics_by_class
from mmrl_core.evaluation.one_vs_rest import OneVsRest
from mmrl_core.evaluation.scores import (
    ADAPTED,
    WITHOUT_PROBE,
    ZERO_SHOT,
    Columns,
    Encoded,
    columns_among,
    encode_each,
    probabilities_of,
)
from mmrl_core.method.model import AdaptedCLIP, ImageFeatures

PAIRED = (ADAPTED, ZERO_SHOT, WITHOUT_PROBE)  # kinds of probabilities whose AUROC is told


@dataclass(frozen=True)
class Figures:
    """Of N images; labels index the model's class names. Answers by kind: ADAPTED, ZERO_SHOT, and each of VARIANTS that
    there is."""

    items: list[str]
    labels: Tensor  # (N,)
    classes: list[int]  # the source label of each of the C classes
    answers: dict[str, Answers]
    auroc: dict[str, float | None]

    def summary(self, kind: str) -> dict[str, float]:
        """As `summary_of`."""
        return summary_of(self.answers[kind], self.labels)

    def by_class(self, kind: str) -> dict[str, float]:
        """As `metrics_by_class`."""
        return metrics_by_class(self.answers[kind], self.labels, len(self.classes), self.auroc[kind])


@torch.inference_mode()
def figures_of(
    model: AdaptedCLIP, text: Tensor, batches: Sequence[Encoded], labels: list[int], trained: Columns,
    paired: Collection[str] = PAIRED,
) -> Figures:  # fmt: skip
    """Figures of encoded images with the model's class features (C, E); `labels` and `trained` as of `scores.score`.
    Kinds in `paired` get AUROC. Without a batch those of no image, which have no summary."""
    columns, batches = columns_among(labels, trained), batches or [_no_images(model)]
    parts: dict[str, list[Answers]] = {}
    for batch in batches:
        for kind, probabilities in probabilities_of(model, text, batch, columns).items():
            parts.setdefault(kind, []).append(answers_of(probabilities, batch.labels))
    answers = {kind: joined(own) for kind, own in parts.items()}
    truth = torch.cat([batch.labels for batch in batches])
    pairs = {kind: OneVsRest(truth, own.true) for kind, own in answers.items() if kind in paired}
    for batch in batches if pairs else ():
        found = probabilities_of(model, text, batch, columns)
        for kind, counted in pairs.items():
            counted.add(found[kind])
    items = [item for batch in batches for item in batch.items]
    return Figures(items, truth, labels, answers, {kind: counted.mean() for kind, counted in pairs.items()})


@torch.inference_mode()
def figures_of_examples(
    model: AdaptedCLIP, examples: Iterable[Example], labels: list[int], trained: Columns,
    store: FeatureStore | None = None, digests: Mapping[str, str] = {},
) -> Figures:  # fmt: skip
    """Figures of a stream of examples, without AUROC; arguments as of `scores.score`."""
    batches = [one for [one] in encode_each([model], examples, labels, store=store, digests=digests)]
    return figures_of(model, model.text_features(), batches, labels, trained, paired=())


def _no_images(model: AdaptedCLIP) -> Encoded:
    nothing = torch.empty(0, model.backbone.embed_dim)
    return Encoded([], torch.empty(0, dtype=torch.long), ImageFeatures(nothing, nothing, nothing))
