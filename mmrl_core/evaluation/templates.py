"""The choice among a dataset's prompt templates: the zero-shot CLIP's best, which adapters then use as well."""

import torch
from torch import Tensor

from mmrl_core.clip.backbone import Backbone
from mmrl_core.data.shards import Example
from mmrl_core.data.views import normalised
from mmrl_core.evaluation.scores import BATCH_SIZE, batched, test_batch


@torch.inference_mode()
def template_accuracies(
    backbone: Backbone, templates: list[str], class_names: list[str], labels: list[int], examples: list[Example]
) -> dict[str, float]:
    """Zero-shot accuracy (fraction) of each template on labelled images, among the classes `labels`, in that order.

    `class_names` are by source label, as the examples' labels are; needs at least one example.
    """
    squares = (test_batch(backbone, part).to(backbone.device) for part in batched(examples, BATCH_SIZE))
    views = (normalised(part, backbone.view_settings) for part in squares)
    images = torch.cat([backbone.encode_image(part) for part in views])
    number_of = {label: number for number, label in enumerate(labels)}
    truth = torch.tensor([number_of[example.label] for example in examples])
    names = [class_names[label] for label in labels]
    return {template: _accuracy(images, backbone.encode_text(names, template), truth) for template in templates}


def _accuracy(images: Tensor, text: Tensor, truth: Tensor) -> float:
    """Of images (N, E) against class features (C, E) and true places (N,)."""
    best = torch.cat([(part @ text.T).argmax(-1) for part in images.split(BATCH_SIZE)])  # images x classes is too many
    return (best.cpu() == truth).double().mean().item()
