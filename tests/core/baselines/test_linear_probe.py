"""The linear probe is scikit-learn's logistic regression, its strength chosen by validation."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold

from mmrl_core.baselines.labelled import Labelled
from mmrl_core.baselines.linear_probe import STRENGTHS, UNKNOWN, fit_linear_probe
from mmrl_core.errors import UserError
from mmrl_core.rounding import SCORE

NONE = Labelled(torch.empty(0, 12), torch.empty(0, dtype=torch.long))


def drawn(each: int, n_classes: int, noise: float = 0.5, seed: int = 0) -> Labelled:
    """So many images of each class about its mean, of unit length, in no order of classes."""
    means = torch.randn(n_classes, 12, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n_classes).repeat(each)
    features = means[labels] + noise * 3 * torch.randn(len(labels), 12, generator=generator)
    return Labelled(torch.nn.functional.normalize(features, dim=-1), labels)


def sklearns(train: Labelled, strength: float) -> LogisticRegression:
    model = LogisticRegression(C=strength, tol=1e-9, max_iter=20_000)
    return model.fit(train.features.double().numpy(), train.labels.numpy())


def largest_of_the_best(losses: list[float]) -> float:
    return max(one for one, value in zip(STRENGTHS, losses, strict=True) if value <= min(losses) + SCORE)


@pytest.mark.parametrize("n_classes", [2, 5])
def test_it_is_scikit_learns_logistic_regression_at_the_strength_that_validation_likes_best(n_classes):
    train, val, test = (drawn(each, n_classes, seed=seed) for each, seed in ((6, 0), (8, 1), (10, 2)))
    probe, strength = fit_linear_probe(train, val, n_classes)
    losses = [log_loss(val.labels, sklearns(train, one).predict_proba(val.features.double())) for one in STRENGTHS]
    assert strength == largest_of_the_best(losses) and STRENGTHS[0] < strength < STRENGTHS[-1]
    assert (probe.weight.shape, probe.bias.shape) == ((n_classes, 12), (n_classes,))
    found = probe(test.features).softmax(-1).numpy()
    expected = sklearns(train, strength).predict_proba(test.features.double().numpy())
    assert found == pytest.approx(expected, abs=2e-4)
    assert (found.argmax(-1) == test.labels.numpy()).mean() > 1.3 / n_classes


def test_the_worse_the_images_tell_the_classes_the_more_it_is_regularised():
    strengths = [fit_linear_probe(drawn(8, 3, noise), drawn(8, 3, noise, seed=1), 3)[1] for noise in (3.0, 0.6, 0.2)]
    assert strengths == sorted(strengths) and strengths[0] < strengths[-1]


def test_without_validation_the_training_images_in_folds_decide():
    train = drawn(3, 4)
    logits = np.zeros((len(STRENGTHS), len(train.labels), 4))
    for kept, held in StratifiedKFold(3).split(train.features, train.labels):
        for row, one in enumerate(STRENGTHS):
            model = sklearns(Labelled(train.features[kept], train.labels[kept]), one)
            logits[row, held] = model.predict_proba(train.features[held].double().numpy())
    expected = largest_of_the_best([log_loss(train.labels, one) for one in logits])
    probe, strength = fit_linear_probe(train, NONE, 4)
    assert strength == expected
    found = probe(train.features).softmax(-1).numpy()
    assert found == pytest.approx(sklearns(train, strength).predict_proba(train.features.double()), abs=2e-4)


def test_where_a_class_has_one_image_and_there_is_no_validation_nothing_is_chosen():
    train = drawn(1, 4)
    probe, strength = fit_linear_probe(train, NONE, 4)
    assert strength == UNKNOWN and probe(train.features).argmax(-1).equal(train.labels)


def test_the_order_of_the_images_does_not_matter():
    train, val = drawn(6, 3), drawn(6, 3, seed=1)
    order = torch.randperm(18, generator=torch.Generator().manual_seed(0))
    one, strength = fit_linear_probe(train, val, 3)
    other, again = fit_linear_probe(Labelled(train.features[order], train.labels[order]), val, 3)
    assert strength == again
    torch.testing.assert_close(one(val.features), other(val.features), atol=1e-3, rtol=0)


def test_a_class_without_an_image_is_named_in_one_line():
    train = drawn(2, 3)
    with pytest.raises(UserError, match="1 of 4 classes have no training image; a linear probe needs one of each"):
        fit_linear_probe(train, NONE, 4)
