"""Tip-Adapter (Zhang et al., ECCV 2022): labelled images as a cache beside the zero-shot logits, fine-tuned or not.

N images, C classes, E embedding width. Keys are features of one view an image, where the authors average ten augmented
ones; hyper-parameters are chosen on validation images, where the authors' code takes the best on test images.
"""

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from mmrl_core.baselines.labelled import Labelled
from mmrl_core.clip.backbone import LOGIT_SCALE
from mmrl_core.evaluation.calibration import first_of_least, loss
from mmrl_core.method.heads import ImageCache
from mmrl_core.training.optimizer import AdamW

SHARPNESS, RESIDUAL = 5.5, 1.0  # the authors' beta and alpha before any is chosen
SHARPNESSES = (1.0, 2.0, 4.0, SHARPNESS, 8.0, 16.0, 32.0, 64.0)
RESIDUALS = (0.25, 0.5, RESIDUAL, 2.0, 4.0, 8.0, 16.0)
EPOCHS, BATCH_SIZE, LEARNING_RATE, EPSILON = 20, 256, 1e-3, 1e-4  # of the authors' fine-tuning


def fit_image_cache(
    train: Labelled, val: Labelled, text: Tensor, *, tuned: bool, seed: int
) -> tuple[ImageCache, float]:
    """A cache and its weight alpha beside the zero-shot logits of class features (C, E). `tuned`: Tip-Adapter-F."""
    order = torch.argsort(train.labels, stable=True)
    rows = torch.bincount(train.labels, minlength=len(text)).tolist()
    cache = ImageCache(train.features[order].clone(), rows, SHARPNESS)
    if tuned:
        cache = ImageCache(_tuned(cache, train, text, seed), rows, SHARPNESS)
    if not len(val.labels):
        return cache, RESIDUAL
    zero_shot = LOGIT_SCALE * val.features @ text.T
    sharpness, residual = first_of_least(
        ((beta, alpha), loss(zero_shot + alpha * ImageCache(cache.keys, rows, beta)(val.features), val.labels))
        for beta, alpha in sorted(product(SHARPNESSES, RESIDUALS), key=lambda pair: pair[1])
    )
    return ImageCache(cache.keys, rows, sharpness), residual


def _tuned(cache: ImageCache, train: Labelled, text: Tensor, seed: int) -> Tensor:
    """The keys (M, E) after EPOCHS over the training images, by AdamW with a cosine schedule."""
    keys = torch.nn.Parameter(cache.keys.clone())
    zero_shot, generator = LOGIT_SCALE * train.features @ text.T, torch.Generator().manual_seed(seed)
    batches = -(-len(train.labels) // BATCH_SIZE)
    optimizer = AdamW([keys], lr=LEARNING_RATE, eps=EPSILON)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * batches)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(train.labels), generator=generator).chunk(batches):
            affinity = torch.exp(SHARPNESS * (train.features[rows] @ keys.T - 1)) @ cache.values
            optimizer.zero_grad()
            F.cross_entropy(zero_shot[rows] + RESIDUAL * affinity, train.labels[rows]).backward()
            optimizer.step()
            schedule.step()
    return keys.detach()
