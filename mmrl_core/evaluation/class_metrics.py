"""Metrics that count classes rather than images, or look beyond the most probable class. They are scikit-learn's, and
the tests hold them against it; its import, of most of a second, is left to those.

N images, C classes. All are fractions in [0, 1].
"""

import numpy as np

TOP = 5


def class_metrics(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Of (N, C) against (N,): `tested_classes`, those with an image; `macro_f1`, `balanced_accuracy`, and where they
    are defined `top5_accuracy` and `auroc`.

    Of equally probable classes the first is the answer, as for accuracy. Top-5 says nothing of five classes or fewer,
    and AUROC nothing where all images are of one class: neither is given then.
    """
    images = np.bincount(labels, minlength=probabilities.shape[1])
    answers = probabilities.argmax(1)
    right = np.bincount(labels[answers == labels], minlength=len(images))
    tested, answered = images > 0, images + np.bincount(answers, minlength=len(images))
    metrics = {
        "tested_classes": int(tested.sum()),
        "macro_f1": float((2 * right[answered > 0] / answered[answered > 0]).mean()),
        "balanced_accuracy": float((right[tested] / images[tested]).mean()),
    }
    if len(images) > TOP:
        metrics["top5_accuracy"] = float((_rank(probabilities, labels) < TOP).mean())
    if tested.sum() > 1:
        metrics["auroc"] = float(np.mean([_auroc(probabilities[:, c], labels == c) for c in np.flatnonzero(tested)]))
    return metrics


def _rank(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes come before the true one (N,): the more probable, and of equals those of a smaller index."""
    true = probabilities[np.arange(len(labels)), labels][:, None]
    equal_before = (probabilities == true) & (np.arange(probabilities.shape[1]) < labels[:, None])
    return (probabilities > true).sum(1) + equal_before.sum(1)


def _auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """The share of pairs of a positive and a negative image in which the positive has the higher score, of equal ones
    the half (Mann and Whitney's U), from scores (N,): the area under the ROC curve."""
    negatives, positives = np.sort(scores[~positive]), scores[positive]
    below, not_above = (int(np.searchsorted(negatives, positives, side).sum()) for side in ("left", "right"))
    return (below + not_above) / (2 * len(negatives) * len(positives))
