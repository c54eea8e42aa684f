"""One label space of trained and other classes: fused logits for the trained, class logits for the others.

The fused logits hold a part that training alone shaped, so the two families differ in level, and compared as they are
one family would win nearly always. The class logits, which score both kinds, therefore decide how much of the
probability goes to each kind; within its kind, every class is ranked by its own family.

B images, C classes.
"""

import torch
from torch import Tensor

from mmrl_core.method.logit_weights import PLAIN, LogitWeights
from mmrl_core.method.model import Output


def joint_logits(output: Output, columns: Tensor, weights: LogitWeights = PLAIN) -> Tensor:
    """(B, C): each class by the logits of its kind; `columns` (C,) are the classes' places among the trained ones, -1
    for those that were not trained on.

    `trained_logits` if all classes are trained, class logits if none is. Otherwise the former are shifted, image by
    image, to the class logits' log-sum-exp over the trained classes: the softmax is then the class logits' probability
    of the kind times the own family's probability of the class within it.
    """
    columns = columns.to(output.logits_class.device)
    if (columns >= 0).all():
        return trained_logits(output, columns, weights)
    if (columns < 0).all():
        return weights.other * output.logits_class
    return mixed_logits(output, columns, (columns >= 0).nonzero()[:, 0], weights)


def trained_logits(output: Output, columns: Tensor, weights: LogitWeights) -> Tensor:
    """(B, C): fused logits and, where there is a head, its own; of classes that were not trained on without meaning."""
    logits = weights.adapter * output.logits_fused
    if output.head is None or not weights.head:
        return logits
    return logits + weights.head * output.head.index_select(1, columns.clamp_min(0))


def mixed_logits(output: Output, columns: Tensor, indices: Tensor, weights: LogitWeights) -> Tensor:
    """(B, C): `joint_logits` where there are classes of both kinds; `indices` are the places of the trained ones."""
    ours, other = trained_logits(output, columns, weights), weights.other * output.logits_class
    return torch.where(columns >= 0, ours + _level(other, indices) - _level(ours, indices), other)


def _level(logits: Tensor, indices: Tensor) -> Tensor:
    return logits.index_select(1, indices).logsumexp(dim=-1, keepdim=True)
