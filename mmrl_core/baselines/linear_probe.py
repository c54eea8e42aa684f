"""A linear probe: logistic regression on frozen features, as CLIP's authors compare with (Radford et al., 2021).

N images, C classes, E embedding width.
"""

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from mmrl_core.baselines.labelled import Labelled
from mmrl_core.errors import UserError
from mmrl_core.evaluation.calibration import cross_entropy, first_of_least
from mmrl_core.method.heads import LinearProbe
from mmrl_core.rounding import SCORE

STRENGTHS = [10.0 ** (half / 2) for half in range(-2, 11)]  # C of the features' unit length, 0.1 to 100,000
UNKNOWN = 100.0  # C where one image of a class leaves nothing to choose by; of the order that larger sets choose
FOLDS = 5
RISES = 2


def fit_linear_probe(train: Labelled, val: Labelled, n_classes: int) -> tuple[LinearProbe, float]:
    """A probe and its inverse regularisation C, by the cross-entropy of validation images, else of the training images
    in folds.

    Of strengths whose cross-entropy is within SCORE the least regularised one. Raises UserError where a class has no
    training image.
    """
    if lacking := n_classes - len(train.labels.unique()):
        raise UserError(f"{lacking} of {n_classes} classes have no training image; a linear probe needs one of each")
    strength = _best(train, val) if len(val.labels) else _best_of_folds(train, n_classes)
    probe = next(probe for probe, one in _path(train, [strength]))
    return probe, strength


def _best(train: Labelled, val: Labelled) -> float:
    """Strengths rise until the cross-entropy has risen twice in a row."""
    scored: list[tuple[float, float]] = []
    for probe, strength in _path(train):
        scored.append((strength, cross_entropy(probe(val.features), val.labels)))
        least = min(value for _, value in scored)
        if all(value > least + SCORE for _, value in scored[-RISES:]):
            break
    return first_of_least(reversed(scored))


def _best_of_folds(train: Labelled, n_classes: int) -> float:
    from sklearn.model_selection import StratifiedKFold

    folds = min(FOLDS, int(torch.bincount(train.labels, minlength=n_classes).min()))
    if folds < 2:
        return UNKNOWN
    logits = torch.zeros(len(STRENGTHS), len(train.labels), n_classes)
    for kept, held in StratifiedKFold(folds).split(train.features, train.labels):
        for row, (probe, _) in enumerate(_path(Labelled(train.features[kept], train.labels[kept]))):
            logits[row, held] = probe(train.features[held])
    scored = [(strength, cross_entropy(one, train.labels)) for strength, one in zip(STRENGTHS, logits, strict=True)]
    return first_of_least(reversed(scored))


def _path(train: Labelled, strengths: list[float] = STRENGTHS) -> Iterator[tuple[LinearProbe, float]]:
    """Probes of rising C, each fitted from the one before."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(tol=1e-6, max_iter=10_000, warm_start=True)
    features, labels = train.features.double().numpy(), train.labels.numpy()
    for strength in strengths:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a nearly separable set has no end
            model.set_params(C=strength).fit(features, labels)
        yield LinearProbe(*_multinomial(model.coef_, model.intercept_)), strength


def _multinomial(weight: np.ndarray, bias: np.ndarray) -> tuple[Tensor, Tensor]:
    """(C, E), (C,): of two classes scikit-learn gives the second one's row alone."""
    if len(weight) == 1:
        weight, bias = np.vstack([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return torch.from_numpy(weight).float().contiguous(), torch.from_numpy(bias).float()
