"""Figures from features, a batch at a time: those of all probabilities at once, in memory without images x classes."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, top_k_accuracy_score

from mmrl_core.clip.backbone import load_backbone
from mmrl_core.data.shards import Example
from mmrl_core.evaluation.answers import answers_of
from mmrl_core.evaluation.figures import figures_of, figures_of_examples
from mmrl_core.evaluation.one_vs_rest import OneVsRest
from mmrl_core.evaluation.scores import ADAPTED, ZERO_SHOT, Encoded, encode_each, score
from mmrl_core.method.model import AdaptedCLIP, ImageFeatures
from tests.core.evaluation.of_probabilities import class_metrics, summary
from tests.core.test_predict import noise
from tests.support.small import small_adapter


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """The most bytes that any tensor had which was made within."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple) else [out]:
            if torch.is_tensor(one):
                self.size = max(self.size, one.untyped_storage().nbytes())
        return out


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("tiny")


def test_they_are_those_of_all_probabilities_at_once(backbone):
    names = [f"a {first}{second}" for first in "bcdfgh" for second in "aeiou"]
    labels = list(range(10, 40))
    examples = [Example(f"k{i}", f"{i}.png", 10 + i * 7 % 30, "", noise(i)) for i in range(70)]  # two batches
    model = AdaptedCLIP(backbone, small_adapter(backbone), names, "a {}.")
    scores = score(model, examples, labels, labels[:20])
    batches = [one for [one] in encode_each([model], examples, labels)]
    with torch.no_grad():
        found = figures_of(model, model.text_features(), batches, labels, labels[:20])
    assert found.items == scores.items and found.labels.equal(scores.labels)
    for kind, probabilities in ((ADAPTED, scores.adapted), (ZERO_SHOT, scores.zero_shot)):
        assert found.summary(kind) == summary(probabilities, scores.labels)
        assert found.by_class(kind) == class_metrics(probabilities.numpy(), scores.labels.numpy())
        assert found.answers[kind].top.equal(probabilities.topk(5).indices)
    gate = figures_of_examples(model, examples, labels, labels[:20])
    assert gate.items == scores.items and gate.answers[ADAPTED].best.equal(scores.adapted.argmax(-1))
    assert gate.summary(ADAPTED) == summary(scores.adapted, scores.labels) and gate.auroc == {}
    kept = figures_of(model, model.text_features(), [batches[1]], labels, labels[:20], paired=())
    assert kept.summary(ADAPTED) == summary(scores.adapted[64:], scores.labels[64:]) and kept.auroc == {}


@pytest.mark.parametrize(("images", "classes", "levels"), [(300, 40, 50), (200, 150, 10**6), (60, 2, 3)])
def test_one_class_against_the_rest_is_scikit_learns_area(images, classes, levels):
    rng = np.random.default_rng(images)
    probabilities = rng.integers(0, levels, (images, classes)).astype(np.float32) / levels
    labels = np.minimum(
        rng.geometric(min(0.5, 3 / classes), images) - 1, classes - 1
    )  # some have many images, others none
    tested = np.unique(labels)
    expected = np.mean([roc_auc_score(labels == one, probabilities[:, one]) for one in tested])
    scores, truth = torch.from_numpy(probabilities), torch.from_numpy(labels)
    counted = OneVsRest(truth, scores[torch.arange(images), truth])
    for part in scores.split(17):
        counted.add(part)
    assert counted.mean() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("levels", [2, 4, 10**6])
def test_the_best_five_are_scikit_learns_equal_ones_among_them(levels):
    rng = np.random.default_rng(levels)
    probabilities, labels = rng.integers(0, levels, (90, 9)) / levels, rng.integers(0, 9, 90)
    expected = top_k_accuracy_score(labels, probabilities, k=5, labels=np.arange(9))
    found = answers_of(torch.from_numpy(probabilities), torch.from_numpy(labels))
    assert float((found.before < 5).double().mean()) == expected


def test_the_first_of_the_best_five_is_the_answer_also_among_equal_ones():
    probabilities = torch.from_numpy(np.random.default_rng(0).integers(0, 4, (200, 40))).float().softmax(-1)
    found = answers_of(probabilities, torch.zeros(200, dtype=torch.long))
    assert found.top[:, 0].equal(found.best) and found.top_values[:, 0].equal(found.confidence)
    assert found.top.equal(probabilities.argsort(dim=1, descending=True, stable=True)[:, :5])


def test_nothing_is_as_large_as_images_times_classes(backbone):
    images, classes, width = 1000, 2000, backbone.embed_dim
    names = [f"{first}{second} {third}" for first in "abcdefghij" for second in "aeiou" for third in range(40)]
    text = torch.nn.functional.normalize(torch.randn(classes, width, generator=torch.Generator().manual_seed(0)), dim=1)
    model = AdaptedCLIP(backbone, small_adapter(backbone), names, "a {}.", text=(text, text))
    drawn = torch.nn.functional.normalize(torch.randn(images, width), dim=1)
    batches = [Encoded([""] * len(part), torch.arange(len(part)), ImageFeatures(part, part, part))
               for part in drawn.split(64)]  # fmt: skip
    with Largest() as largest:
        figures_of(model, text, batches, list(range(classes)), list(range(classes)))
    assert largest.size <= 8 * 64 * classes < 4 * images * classes / 3


def test_a_stream_of_images_is_not_either(backbone):
    images, classes = 300, 4000
    text = torch.nn.functional.normalize(torch.randn(classes, backbone.embed_dim), dim=1)
    names = [f"class {number}" for number in range(classes)]
    model = AdaptedCLIP(backbone, small_adapter(backbone), names, "a {}.", text=(text, text))
    examples = (Example(f"k{i}", f"{i}.png", i, "", noise(i)) for i in range(images))
    with Largest() as largest:
        found = figures_of_examples(model, examples, list(range(classes)), list(range(classes)))
    assert len(found.items) == images and largest.size < 4 * images * classes


def test_without_an_image_there_are_answers_to_none(backbone):
    model = AdaptedCLIP(backbone, small_adapter(backbone), ["cat", "dog"], "a {}.")
    found = figures_of_examples(model, [], [4, 9], [4])
    assert found.items == [] and found.answers[ADAPTED].best.equal(found.labels)
    assert found.answers[ZERO_SHOT].best.equal(found.labels)
