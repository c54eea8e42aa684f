"""Whether the device computes what it should: these come first, since a fast wrong answer is none."""

import tempfile
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file

from benchmarks.gpu.bench import Bench, Row, noise_set
from benchmarks.support.cases import Case, drawn_features, model_of
from mmrl_core.clip.backbone import load_backbone
from mmrl_core.clip.graphs import FrozenPass, Graphed
from mmrl_core.config import AdapterConfig, TrainConfig
from mmrl_core.method.published_checkpoints import to_adapter_state
from mmrl_core.training.fit import fit, new_optimizer
from mmrl_core.training.step import TrainingStep
from mmrl_core.training.whole import WholeStep

METHODS = ("mmrl", "mmrlpp")
SAME = {"float32": 1e-3, "bf16": 2e-2, "fp16": 2e-2}  # relative difference of what is the same but for rounding
LOW, ALIGNED = 0.05, 0.99  # of a low precision's loss, relative; cosine of its gradient and float32's
TRAINED_ALIKE = 1e-3


def golden(bench: Bench) -> Iterator[Row]:
    """The published code's vectors, with the bounds of tests/core/method/test_golden.py."""
    from tests.core.method.test_golden import FORWARD, GRADIENT, TRAJECTORY, relative
    from tests.core.method.test_golden import Case as Golden

    for method in METHODS:
        case = Golden(method)
        case.model.to(bench.device)
        case.tensors = {name: tensor.to(bench.device) for name, tensor in case.tensors.items()}
        out, loss = case.model(case.batch(0)[0]), case.loss(0)
        found = {
            "image_features": out.image_features, "text_features": out.text_features, "logits": out.logits_class,
            "logits_rep": out.logits_rep, "logits_fusion": out.logits_fused, "loss": loss,
        }  # fmt: skip
        apart = max(relative(found[name], value) for name, value in case.group("forward.").items())
        yield within(f"{method}: forward", apart, FORWARD)
        loss.backward()
        gradients = to_adapter_state(case.group("grad."), method)
        own = dict(case.adapter.named_parameters())
        yield within(f"{method}: gradients", max(relative(own[k].grad, v) for k, v in gradients.items()), GRADIENT)
        yield within(f"{method}: losses of the trajectory", relative(*trajectory(case)), TRAJECTORY)


def trajectory(case) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of the golden steps, from the first one's gradient on, and the published ones."""
    optimizer, losses = new_optimizer(case.adapter, lr=1e-3), []
    for step in range(case.settings["steps"]):
        optimizer.zero_grad()
        loss = case.loss(step % 2)
        losses.append(loss.detach())
        loss.backward()
        optimizer.step()
    return torch.stack(losses), case.tensors["trajectory.losses"]


def within(what: str, value: float, most: float) -> Row:
    return Row(f"{what}: largest relative difference", value, "", value <= most, {"most": most})


def graphs(bench: Bench) -> Iterator[Row]:
    """Replayed against launched: steps with their update while the learning rate changes, and frozen features."""
    bench.needs_cuda()
    classes, batch = bench.sizes.cells[0]
    for method in METHODS:
        for precision in bench.precisions:
            case = bench.case(method, classes, batch)
            (replayed, kind), (launched, _) = losses(case, precision, True), losses(case, precision, False)
            expected = Graphed if precision == "fp16" else WholeStep
            difference = float(((replayed - launched).abs() / launched.abs().clamp_min(1e-3)).max())
            row = within(f"{method} {precision}: graph, 5 steps", difference, SAME[precision])
            yield row._replace(holds=row.holds and kind is expected, more={**row.more, "recorded": kind.__name__})
    for precision in bench.precisions:
        yield frozen_row(bench.case("mmrl", classes, batch), precision)


def frozen_row(case: Case, precision: str) -> Row:
    tower = model_of(case, case.adapter(), precision).image_tower
    images, run = case.inputs()[0], FrozenPass(tower, case.batch)
    run(torch.zeros_like(images))  # what is recorded must not stay
    pairs = list(zip(run(images), tower.frozen(images), strict=True))
    difference = max(float((a.float() - b.float()).abs().max() / b.float().abs().max()) for a, b in pairs)
    return Row(f"{precision}: frozen features, graph: largest relative difference", difference, "",
               difference <= SAME[precision] and isinstance(run._run, Graphed))  # fmt: skip


def losses(case: Case, precision: str, graphed: bool, steps: int = 5) -> tuple[torch.Tensor, type]:
    """Terms of the first steps, whose learning rate changes, and what took them."""
    model = model_of(case, case.adapter(), precision)
    optimizer = new_optimizer(model.adapter, 1e-4)
    step = TrainingStep(model, [optimizer], precision)
    if not graphed:
        step._run = step._passes
    torch.manual_seed(0)
    frozen, labels = drawn_features(case, model.dtype), case.inputs()[1]
    terms = []
    for number in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-4 * (number + 1)
        terms.append(step(frozen, labels)[:4])
    return torch.stack(terms).cpu(), type(step._run)


def precisions(bench: Bench) -> Iterator[Row]:
    """Loss and gradient of a step in low precision against float32's."""
    classes, batch = bench.sizes.cells[-1]
    for method in METHODS:
        case = bench.case(method, classes, batch)
        loss, gradient = first_pass(case, "float32")
        for precision in bench.precisions[1:]:
            low, direction = first_pass(case, precision)
            yield within(f"{method} {precision}: loss", abs(low - loss) / abs(loss), LOW)
            cosine = float(torch.nn.functional.cosine_similarity(direction, gradient, dim=0))
            yield Row(f"{method} {precision}: cosine of the gradients", cosine, "", cosine >= ALIGNED)


def first_pass(case: Case, precision: str) -> tuple[float, torch.Tensor]:
    """Loss and gradient of one step from the same features."""
    model = model_of(case, case.adapter(), precision)
    step = TrainingStep(model, [new_optimizer(model.adapter, 1e-4)], precision)
    images, labels = case.inputs()
    terms = step._passes(*model.image_tower.frozen(images), labels)
    gradient = torch.cat([tensor.grad.flatten() for tensor in step.parameters[0]])
    return float(terms[:4].sum()), gradient / step.scalers[0].get_scale() if precision == "fp16" else gradient


class Broken(Exception):
    """A run that is broken off on purpose."""


class Trained(NamedTuple):
    losses: torch.Tensor  # of every epoch
    weights: torch.Tensor  # of every tensor of the adapter


def resume(bench: Bench) -> Iterator[Row]:
    """A training that is broken off within its epochs and resumed against one that is not."""
    whole = trained(bench.device.type)
    with tempfile.TemporaryDirectory() as folder:
        with suppress(Broken):
            trained(bench.device.type, Path(folder), break_at=1)
        resumed = trained(bench.device.type, Path(folder))
    yield alike(bench, "tiny, broken off after 2 of 3 epochs and resumed", resumed, whole)


def alike(bench: Bench, what: str, found: Trained, expected: Trained) -> Row:
    """On a CPU the same bits; sums on a GPU come in any order."""
    same = torch.equal(found.weights, expected.weights)
    difference = float(((found.losses - expected.losses).abs() / expected.losses.abs()).max())
    apart = float((found.weights - expected.weights).abs().max())
    row = within(f"{what}: losses", difference, TRAINED_ALIKE)
    holds = same if bench.device.type == "cpu" else row.holds
    return row._replace(holds=holds, more={**(row.more or {}), "same_bits": same, "weights_apart": apart})


def trained(device: str, folder: Path | None = None, break_at: int | None = None, seed: int = 1) -> Trained:
    """A small adapter trained on `tiny`."""

    def report(epoch: int, metrics: dict[str, float]) -> None:
        if epoch == break_at:
            raise Broken

    backbone = load_backbone("tiny", device=device)
    config = AdapterConfig(method="mmrlpp", insertion_depth=4)
    train = TrainConfig(epochs=3, batch_size=4, seed=seed, precision="float32")
    fitted = fit(backbone, config, train, noise_set(backbone, 8, 4, seed), report=report, checkpoints=folder)
    weights = [tensor.detach().cpu().flatten() for tensor in fitted.adapter.state_dict().values()]
    return Trained(torch.tensor([epoch["loss"] for epoch in fitted.history]), torch.cat(weights))


def two_at_once(bench: Bench) -> Iterator[Row]:
    """Two trainings in two processes on the device at the same time, against each of them alone."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.gpu.correct"])
    with tempfile.TemporaryDirectory() as folder:
        files = {seed: Path(folder, f"{seed}.safetensors") for seed in (1, 2)}
        both = [context.Process(target=keep_trained, args=(bench.device.type, *one)) for one in files.items()]
        for process in both:
            process.start()
        for process in both:
            process.join()
        for (seed, file), process in zip(files.items(), both, strict=True):
            if process.exitcode:
                raise RuntimeError(f"training {seed} of two at once ended with {process.exitcode}")
            together, alone = Trained(**load_file(file)), trained(bench.device.type, seed=seed)
            yield alike(bench, f"tiny, training {seed} of two at once", together, alone)


def keep_trained(device: str, seed: int, file: Path) -> None:
    torch.set_num_threads(1)  # two processes share the machine's cores
    save_file(trained(device, seed=seed)._asdict(), file)
