"""Metrics that count classes rather than images, or look beyond the most probable class.

N images, C classes. All are fractions in [0, 1].
"""

import torch
from torch import Tensor

from mmrl_core.evaluation.answers import TOP, Answers


def metrics_by_class(answers: Answers, labels: Tensor, classes: int, auroc: float | None) -> dict[str, float]:
    """`tested_classes`, those with an image; `macro_f1`, `balanced_accuracy`, and where they are defined
    `top5_accuracy` and `auroc`, which is one-vs-rest, its mean over the tested classes.

    Top-5 says nothing of five classes or fewer, and AUROC nothing where all images are of one class: neither is given
    then. F1 is a mean over the classes that have an image or are the answer to one.
    """
    images, answered = (torch.bincount(one, minlength=classes).double() for one in (labels, answers.best))
    right = torch.bincount(labels[answers.best == labels], minlength=classes).double()
    tested, named = images > 0, images + answered > 0
    metrics = {
        "tested_classes": int(tested.sum()),
        "macro_f1": float((2 * right / (images + answered))[named].mean()),
        "balanced_accuracy": float((right / images)[tested].mean()),
    }
    if classes > TOP:
        metrics["top5_accuracy"] = float((answers.before < TOP).double().mean())
    return metrics if auroc is None else metrics | {"auroc": auroc}
