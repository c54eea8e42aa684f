"""One label space of trained and other classes: fused logits for the trained, class logits for the others.

The fused logits hold a part that training alone shaped, so the two families differ in level, and compared as they are
one family would win nearly always. The class logits, which score both kinds, therefore decide how much of the
probability goes to each kind; within its kind, every class is ranked by its own family.

B images, C classes.
"""

import torch
from torch import Tensor

from mmrl_core.method.model import Output


def joint_logits(output: Output, trained: Tensor) -> Tensor:
    """(B, C): each class by the logits of its kind; `trained` (C,) is true for the classes that were trained on.

    Plain fused logits if all classes are trained, class logits if none is. Otherwise the fused logits are shifted,
    image by image, to the class logits' log-sum-exp over the trained classes: the softmax is then the class logits'
    probability of the kind times the own family's probability of the class within it. Nothing is fitted.
    """
    trained = trained.to(output.logits_class.device)
    if trained.all():
        return output.logits_fused
    if not trained.any():
        return output.logits_class
    return mixed_logits(output, trained, trained.nonzero()[:, 0])


def mixed_logits(output: Output, trained: Tensor, indices: Tensor) -> Tensor:
    """(B, C): `joint_logits` where there are classes of both kinds; `indices` are the places of the trained ones."""
    level = _level(output.logits_class, indices) - _level(output.logits_fused, indices)
    return torch.where(trained, output.logits_fused + level, output.logits_class)


def _level(logits: Tensor, indices: Tensor) -> Tensor:
    return logits.index_select(1, indices).logsumexp(dim=-1, keepdim=True)
