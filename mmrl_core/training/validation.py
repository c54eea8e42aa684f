"""The validation curve of a training: figures of labelled images that it does not train on, epoch by epoch."""

import torch
import torch.nn.functional as F

from mmrl_core.data.sets import ImageSet
from mmrl_core.data.views import normalised, test_squares
from mmrl_core.method.model import AdaptedCLIP

MOST = 256  # images whose trunks are kept in memory; of more, as many spread over the set


class Validation:
    """Figures of images by the adapter as it is when called; the frozen trunk of these is computed once.

    It draws nothing and changes nothing of the model, so training goes on as it would without. Several workers make the
    same call at the same time, since each has a share of the classes alone.
    """

    def __init__(self, model: AdaptedCLIP, data: ImageSet):
        n, device = len(data.items), model.backbone.device
        chosen = range(n) if n <= MOST else [index * n // MOST for index in range(MOST)]
        squares = test_squares([data.images[index] for index in chosen], model.backbone.view_settings)
        views = normalised(squares.to(device), model.backbone.view_settings)
        self.model, self.trunk = model, model.image_tower.trunk(views)
        self.labels = torch.tensor([data.labels[index] for index in chosen], device=device)

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """`val_accuracy`, a fraction, and `val_nll`, the negative log-likelihood in nats an image, both of the fused
        logits among the trained classes."""
        logits = self.model.from_trunk(self.trunk).logits_fused.double()
        right = (logits.argmax(-1) == self.labels).double().mean()
        return {"val_accuracy": float(right), "val_nll": float(F.cross_entropy(logits, self.labels))}
