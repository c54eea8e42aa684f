"""One training step: loss, gradients, update. On a GPU all of it is captured as a CUDA graph and replayed.

Nothing here waits for the device: terms are checked when they are read, after the epoch.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mmrl_core.clip.graphs import Graphed, warn
from mmrl_core.clip.towers import Frozen
from mmrl_core.distributed import gradients
from mmrl_core.errors import UserError
from mmrl_core.method.baseline import Baseline
from mmrl_core.method.losses import LossTerms, mmrl_loss
from mmrl_core.method.model import AdaptedCLIP
from mmrl_core.training.whole import Passes, WholeStep

GRADIENT, ACCURACY = "gradient_norm", "train_accuracy"
TERMS = (*LossTerms._fields, GRADIENT, ACCURACY)


class TrainingStep:
    """A step of one run, or of the R runs of a StackedCLIP, each with its own adapter and optimizer.

    `scalers` scale the losses where `precision` is fp16, and skip the steps whose gradients overflow. Each of the
    model's workers takes `fraction` of a batch; the terms of all workers sum to those of the batch.
    """

    def __init__(
        self, model: AdaptedCLIP, optimizers: Sequence[torch.optim.Optimizer], precision: str, fraction: float = 1.0
    ):
        self.model, self.optimizers, self.workers, self.fraction = model, optimizers, model.workers, fraction
        self.parameters = [list(adapter.parameters()) for adapter in model.adapters]
        self.precision = precision
        device, enabled = model.backbone.device.type, precision == "fp16"
        self.scalers = [torch.amp.GradScaler(device, enabled=enabled) for _ in model.adapters]
        self._run: Passes | None = None

    def __call__(self, frozen: Frozen, labels: Tensor) -> Tensor:
        """One step on frozen features of B views and their labels (B,): its TERMS, left on the device.

        Of R runs, features and labels (R, B) give terms (R, TERMS).
        """
        if self._run is None:
            alone = self.workers.size == 1  # gloo cannot be captured
            self._run = self._graph(*frozen, labels) if labels.is_cuda and alone else self._passes
        terms = self._run(*frozen, labels)
        if not isinstance(self._run, WholeStep):
            for scaler, optimizer in zip(self.scalers, self.optimizers, strict=True):
                scaler.step(optimizer)
                scaler.update()
        return terms

    def _passes(self, trunk: Tensor, zero_shot: Tensor, labels: Tensor) -> Tensor:
        """Forward and backward."""
        model = self.model
        for parameter in model.adapter.parameters():
            parameter.grad = None
        out = model.from_trunk(trunk)
        assert not isinstance(model.adapter, Baseline)  # which has nothing to train
        weights = {"alpha": model.adapter.alpha, "reg_weight": model.adapter.reg_weight}
        terms = self._share(mmrl_loss(out, labels, zero_shot, model.zero_shot_text, **weights))
        totals = terms.total.view(-1).unbind()
        torch.autograd.backward([scaler.scale(total) for scaler, total in zip(self.scalers, totals, strict=True)])
        for parameters in self.parameters:
            self.workers.sum_gradients(parameters)
        accuracy = (out.logits_fused.argmax(-1) == labels).float().mean(-1) * self.fraction
        return torch.stack([*terms, self._norms().view_as(accuracy), accuracy], dim=-1).detach()

    def _norms(self) -> Tensor:
        """Each run's gradient norm (R,), before its scale."""
        norms = []
        for parameters, scaler in zip(self.parameters, self.scalers, strict=True):
            norm = torch.nn.utils.get_total_norm(gradients(parameters)) / self.workers.size
            norms.append(norm / scaler.scale(torch.ones_like(norm)) if scaler.is_enabled() else norm)
        return torch.stack(norms)

    def _share(self, terms: LossTerms) -> LossTerms:
        """What this worker adds to the terms of the whole batch: its images' share, and its part of the classes'."""
        if self.workers.size == 1:
            return terms
        *of_images, of_classes = terms
        return LossTerms._make([*(term * self.fraction for term in of_images), of_classes / self.workers.size])

    def _graph(self, *inputs: Tensor) -> Passes:
        """The step as a CUDA graph: a small batch is bound by launching its kernels one by one. Of fp16 the passes
        alone, since its scalers decide anew which updates are made."""
        error: RuntimeError | None = None
        if not self.scalers[0].is_enabled():
            try:
                return WholeStep(self._passes, self.optimizers, inputs)
            except RuntimeError as failed:  # an update that cannot be captured: the passes may be
                error = failed
        try:
            graph: Graphed[Tensor] = Graphed(self._passes, inputs)
        except RuntimeError as failed:
            warn("the step", failed)
            return self._passes
        if error:
            warn("the update", error)
        return graph

    def check(self, epoch: int, terms: Tensor, run: int = 0) -> list[dict[str, float]]:
        """The metrics of a run's steps of an epoch from their terms (n, TERMS), `loss` among them.

        Raises UserError naming the first step and term that is not finite: from there on the adapter is broken. A
        gradient that overflows in fp16 only skips its step, which then has the norm 0, unless every scale is too large.
        """
        scaler = self.scalers[run]
        scaled = scaler.is_enabled()
        rows = [dict(zip(TERMS, row, strict=True)) for row in terms.tolist()]
        for step, row in enumerate(rows):
            if scaled and not math.isfinite(row[GRADIENT]):
                row[GRADIENT] = 0.0
            if broken := [name for name, value in row.items() if not math.isfinite(value)]:
                where = f"epoch {epoch} step {step}: {broken[0]} is {row[broken[0]]}"
                raise UserError(f"training diverged at {where}; lower train.lr")
        if scaled and scaler.get_scale() < 1:
            raise UserError(f"training diverged at epoch {epoch}: fp16 gradients overflow; set train.precision: bf16")
        return [{"loss": sum(row[name] for name in LossTerms._fields), **row} for row in rows]
