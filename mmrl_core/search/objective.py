"""The search's objective, on labelled items of the base classes alone.

The base classes are divided at random into seen and unseen (`partitions.py`). A trial trains on the few-shot
items of the seen ones; validation items of the seen ones are scored with the fused logits, all items of the unseen ones
with the class logits, each among their own kind: the base-to-novel protocol in small, without a novel class or a test
image.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmrl_core.clip.backbone import LOGIT_SCALE, Backbone
from mmrl_core.clip.feature_store import FeatureStore, evaluation_key
from mmrl_core.config import Resolved
from mmrl_core.data.pictures import Decoded, Pictures
from mmrl_core.data.sets import ImageSet
from mmrl_core.data.shards import Example
from mmrl_core.errors import UserError
from mmrl_core.evaluation.answers import answers_of, joined, summary_of
from mmrl_core.evaluation.figures import figures_of_examples
from mmrl_core.evaluation.frozen import frozen_features
from mmrl_core.evaluation.scores import ADAPTED, BATCH_SIZE, test_batch
from mmrl_core.method.adapter import Adapter
from mmrl_core.method.model import AdaptedCLIP
from mmrl_core.protocols import harmonic_mean
from mmrl_core.search.partitions import Partition, SearchData
from mmrl_core.search.trial import Scores
from mmrl_core.training.fit import Training, fit_together, groups

# Accuracy and negative log-likelihood of examples among labels, some of which are trained.
Summarise = Callable[[list[Example], list[int], Sequence[int]], dict[str, float]]
Piece = tuple[Resolved, Partition]


def partition_scores(
    backbone: Backbone, pieces: Sequence[Piece], data: SearchData, store: FeatureStore | None = None,
    pictures: Pictures | None = None,
) -> Iterator[tuple[int, Scores | UserError]]:  # fmt: skip
    """Settings on partitions: train on the seen classes and score both kinds; the place of a piece with its scores.

    As many as can be are trained together, and told of when they are done. Of settings that cannot be trained, the
    error. `store` keeps the frozen features that other trials want too, `pictures` the decoded training images.

    `log_likelihood` is balanced: the mean of the two kinds' mean log-probabilities of the truth, in nats an image.
    `losses` holds the training loss of every epoch, `step_time` is in seconds, a share of steps taken together.
    """
    pictures = pictures or Pictures()
    trainings = [_training(settings, data, part, pictures) for settings, part in pieces]
    for group in groups(backbone, trainings):
        yield from _group_scores(
            backbone, {index: (trainings[index], pieces[index][1]) for index in group}, data, store
        )


def _group_scores(
    backbone: Backbone, group: dict[int, tuple[Training, Partition]], data: SearchData, store: FeatureStore | None
) -> Iterator[tuple[int, Scores | UserError]]:
    trainings, start = [training for training, _ in group.values()], time.perf_counter()
    try:
        fitted = fit_together(backbone, trainings, store=store)
    except UserError as error:
        if len(group) == 1:
            yield next(iter(group)), error
            return
        for index, one in group.items():  # whose fault it is
            yield from _group_scores(backbone, {index: one}, data, store)
        return
    steps = sum(one.train.epochs * max(1, len(one.data.items) // one.train.batch_size) for one in trainings)
    step_time = (time.perf_counter() - start) / steps
    for (index, (_, part)), (adapter, history, _) in zip(group.items(), fitted, strict=True):
        summarise = _Adapted(backbone, adapter, data, store)
        cost = {"step_time": step_time, "trainable_parameters": adapter.n_trainable}
        losses = [metrics["loss"] for metrics in history]
        yield index, {**_both_kinds(summarise, data, part), **cost, "losses": losses}


def _training(settings: Resolved, data: SearchData, part: Partition, pictures: Pictures) -> Training:
    """Its images are decoded where their features are not kept."""
    place, seen, _ = part
    train = settings.train.model_copy(update={"seed": data.seeds[place]})
    among = {label: number for number, label in enumerate(seen)}
    examples = [example for example in data.train[place] if example.label in among]
    labels, names = [among[example.label] for example in examples], [data.class_names[label] for label in seen]
    keys, digests = [example.key for example in examples], [data.digests[example.path] for example in examples]
    images = ImageSet(keys, Decoded(pictures, examples, digests), labels, names, data.template, digests)
    return Training(settings.adapter, train, images)


def _both_kinds(summarise: Summarise, data: SearchData, partition: Partition) -> dict[str, float]:
    place, seen, unseen = partition
    by_seen = summarise(data.val[place], seen, seen)
    if not unseen:
        # One kind: it is its own balance and its own mean.
        return {"log_likelihood": -by_seen["nll"], "harmonic_mean": by_seen["accuracy"]}
    by_unseen = summarise(data.train[place] + data.val[place], unseen, ())
    return {
        "log_likelihood": -(by_seen["nll"] + by_unseen["nll"]) / 2,
        "harmonic_mean": harmonic_mean(by_seen["accuracy"], by_unseen["accuracy"]),
        "seen_accuracy": by_seen["accuracy"],
        "unseen_accuracy": by_unseen["accuracy"],
    }


@dataclass(frozen=True)
class _Adapted:
    """Summarise by a trained adapter."""

    backbone: Backbone
    adapter: Adapter
    data: SearchData
    store: FeatureStore | None

    def __call__(self, examples: list[Example], labels: list[int], trained: Sequence[int]) -> dict[str, float]:
        data = self.data
        model = AdaptedCLIP(self.backbone, self.adapter, [data.class_names[label] for label in labels], data.template)
        mine = _among(examples, labels)
        return figures_of_examples(model, mine, labels, trained, self.store, data.digests).summary(ADAPTED)


def _among(examples: list[Example], labels: list[int]) -> list[Example]:
    wanted = set(labels)
    mine = [example for example in examples if example.label in wanted]
    if not mine:
        raise UserError(
            "the search has no validation image; prepare data with a val split or set search.enabled: false"
        )
    return mine


@torch.inference_mode()
def hardest_first(
    backbone: Backbone, data: SearchData, parts: Sequence[Partition], store: FeatureStore | None = None
) -> list[Partition]:
    """The partitions by how badly the frozen CLIP does on them: these tell settings apart, and trials begin with them.

    Worse is a lower `log_likelihood` as `partition_scores` has it, to two digits, so that rounding orders nothing.
    """
    every = {example.path: example for examples in [*data.train, *data.val] for example in examples}
    features = _zero_shot(backbone, list(every.values()), data.digests, store)
    text = backbone.encode_text([data.class_names[label] for label in data.base], data.template).cpu()
    place_of = {label: at for at, label in enumerate(data.base)}

    def summarise(examples: list[Example], labels: list[int], trained: Sequence[int]) -> dict[str, float]:
        mine = _among(examples, labels)
        images = torch.stack([features[example.path] for example in mine])
        own, number_of = text[[place_of[label] for label in labels]], {label: at for at, label in enumerate(labels)}
        truth = torch.tensor([number_of[example.label] for example in mine])
        parts = zip(images.split(BATCH_SIZE), truth.split(BATCH_SIZE), strict=True)
        answers = joined(answers_of((LOGIT_SCALE * part @ own.T).softmax(-1), true) for part, true in parts)
        return summary_of(answers, truth)

    return sorted(parts, key=lambda part: round(_both_kinds(summarise, data, part)["log_likelihood"], 2))


def _zero_shot(
    backbone: Backbone, examples: list[Example], digests: dict[str, str], store: FeatureStore | None
) -> dict[str, Tensor]:
    """The frozen CLIP's features by path."""
    keys = [evaluation_key(digests[example.path]) for example in examples]

    def views(rows: list[int]) -> Tensor:
        return test_batch(backbone, [examples[row] for row in rows])

    features = frozen_features(backbone, keys, views, store)
    return {example.path: row for example, row in zip(examples, features, strict=True)}
