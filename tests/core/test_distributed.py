"""Several workers train as one: who does what, and the gradients of classes divided among real processes."""

import shutil
from copy import deepcopy
from itertools import chain

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import distributed, multiprocessing

from mmrl_core.config import AdapterConfig, TrainConfig
from mmrl_core.data.sets import ImageSet
from mmrl_core.distributed import Distributed, Workers
from mmrl_core.method.losses import mmrl_loss
from mmrl_core.method.model import AdaptedCLIP
from mmrl_core.training.fit import fit, new_optimizer
from mmrl_core.training.step import TERMS, TrainingStep
from tests.oracle import Oracle
from tests.support.small import CLASSES, random_images, small_adapter, small_backbone

BATCH = 5


class Place(Workers):
    """A place among workers that do not talk."""

    def __init__(self, rank: int, size: int):
        self.rank, self.size = rank, size


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("n", [5, 6, 11])
def test_shares_are_nearly_equal_and_together_everything(size, n):
    shares = [Place(rank, size).share(list(range(n))) for rank in range(size)]
    assert list(chain.from_iterable(shares)) == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1 and len(shares[0]) == Place(0, size).largest_share(n)
    assert sum(Place(rank, size).fraction(n) for rank in range(size)) == pytest.approx(1)


def first_step(method: str, workers: Workers) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Terms and gradients of a step on this worker's share of a batch."""
    torch.set_num_threads(1)
    backbone = small_backbone()
    model = AdaptedCLIP(backbone, small_adapter(backbone, method), CLASSES, "a {}.", workers=workers)
    step = TrainingStep(model, [new_optimizer(model.adapter, 1e-3)], "float32", workers.fraction(BATCH))
    frozen = model.image_tower.frozen(random_images(BATCH))
    mine = [workers.share(list(part)) for part in (*frozen, torch.arange(BATCH))]
    trunk, zero_shot, labels = (torch.stack(part) for part in mine)
    terms = step._passes(trunk, zero_shot, labels)
    return workers.sum(terms), [parameter.grad for parameter in step.parameters[0]]


def trained(method: str, workers: Workers, folder: str, epochs: int) -> list[float]:
    """Losses and validation figures of all epochs, those behind the newest checkpoint in `folder` included."""
    images = [Image.new("RGB", (20, 16), (40 * i, 0, 0)) for i in range(BATCH)]
    data = ImageSet([str(i) for i in range(BATCH)], images, list(range(BATCH)), CLASSES[:BATCH], "a {}.")
    config = AdapterConfig(method=method, insertion_depth=2, n_tokens=2, rep_dim=8, projection_rank=4)
    train = TrainConfig(epochs=epochs, batch_size=BATCH)
    fitted = fit(small_backbone(), config, train, data, val=data, checkpoints=folder, workers=workers)
    return [epoch[name] for epoch in fitted.history for name in ("loss", "val_nll", "val_accuracy")]


def in_a_process(rank: int, size: int, method: str, file: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=size)
    terms, grads = first_step(method, Distributed())
    losses = trained(method, Distributed(), f"{file}.{rank}", epochs=3)
    torch.save(losses, f"{file}.{method}.{rank}.pt")
    if rank == size - 1:
        torch.save({"terms": terms, "grads": grads}, f"{file}.{method}.pt")
    distributed.destroy_process_group()


def exact_gradients(method: str) -> list[torch.Tensor]:
    """The oracle's, in float64: float32's rounding, alone up to 8e-6 here, differs with every division and machine."""
    backbone = small_backbone()
    clip, adapter = deepcopy(backbone.clip).double(), small_adapter(backbone, method).double()
    oracle, images = Oracle(clip, backbone.tokenizer, adapter, CLASSES, "a {}."), random_images(BATCH).double()
    loss = oracle.loss(images, torch.arange(BATCH), oracle.zero_shot(images)[1])
    return list(torch.autograd.grad(loss, list(adapter.parameters())))


@pytest.mark.slow
@pytest.mark.parametrize(("size", "method"), [(2, "mmrl"), (3, "mmrlpp")])
def test_processes_take_the_steps_of_one_and_go_on_from_what_the_first_of_them_finds(tmp_path, size, method):
    file = str(tmp_path / "meeting")
    for rank in range(size):  # the others find an epoch more: as where one lists what is kept a moment later
        trained(method, Workers(), f"{file}.{rank}", epochs=1 + bool(rank))
    shutil.copytree(f"{file}.0", f"{file}.alone")
    multiprocessing.spawn(in_a_process, (size, method, file), nprocs=size)
    alone = trained(method, Workers(), f"{file}.alone", epochs=3)
    for rank in range(size):
        assert torch.load(f"{file}.{method}.{rank}.pt") == pytest.approx(alone, rel=1e-5)

    found = torch.load(f"{file}.{method}.pt", weights_only=True)
    terms, grads = first_step(method, Workers())
    assert torch.allclose(found["terms"], terms, rtol=1e-5, atol=1e-6), dict(
        zip(TERMS, found["terms"] - terms, strict=True)
    )
    exact = flat(exact_gradients(method))
    for gradients in (found["grads"], grads):
        assert (flat(gradients) - exact).norm() <= 1e-5 * exact.norm()


def flat(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def test_the_share_of_a_loss_is_of_images_by_their_number_and_of_classes_evenly():
    backbone = small_backbone()
    model = AdaptedCLIP(backbone, small_adapter(backbone), CLASSES, "a {}.")
    frozen = model.image_tower.frozen(random_images(BATCH))
    out = model.from_trunk(frozen.trunk)
    labels = torch.arange(BATCH)
    terms = mmrl_loss(out, labels, frozen.zero_shot, model.zero_shot_text, alpha=0.7, reg_weight=0.5)
    step = TrainingStep(model, [new_optimizer(model.adapter, 1e-3)], "float32", fraction=0.6)
    step.workers = Place(0, 2)
    shared = step._share(terms)
    assert shared.class_ce == terms.class_ce * 0.6 and shared.text_reg == terms.text_reg / 2
    assert torch.allclose(terms.class_ce, 0.7 * F.cross_entropy(out.logits_class, labels))
