"""Metrics that count classes rather than images, or look beyond the most probable class, by scikit-learn.

N images, C classes. All are fractions in [0, 1].
"""

import warnings

import numpy as np

TOP = 5


def class_metrics(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Of (N, C) against (N,): `tested_classes`, those with an image; `macro_f1`, `balanced_accuracy`, and where they
    are defined `top5_accuracy` and `auroc`, which is one-vs-rest, its mean over the tested classes.

    Top-5 says nothing of five classes or fewer, and AUROC nothing where all images are of one class: neither is given
    then.
    """
    from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score, top_k_accuracy_score

    answers, tested, classes = probabilities.argmax(1), np.unique(labels), probabilities.shape[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes without an image, which have no recall
        recall = balanced_accuracy_score(labels, answers)
    metrics = {
        "tested_classes": len(tested),
        "macro_f1": float(f1_score(labels, answers, average="macro", zero_division=0)),
        "balanced_accuracy": float(recall),
    }
    if classes > TOP:
        metrics["top5_accuracy"] = float(top_k_accuracy_score(labels, probabilities, k=TOP, labels=np.arange(classes)))
    if len(tested) > 1:
        metrics["auroc"] = float(np.mean([roc_auc_score(labels == one, probabilities[:, one]) for one in tested]))
    return metrics
