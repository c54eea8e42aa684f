"""What a training would cost, before anything is fetched or built."""

import json
import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.options import DEFAULT_PARAMS, METHODS, AsJson, Overrides, ParamsFile, _one_of, finite
from mmrl_core.errors import UserError

if TYPE_CHECKING:
    from flows.settings.params import Params
    from mmrl_core.clip.shapes import Config
    from mmrl_core.config import Resolved
    from mmrl_core.estimate.machine import Room
    from mmrl_core.estimate.training import Case, Estimate

UNITS = {"": 1, "MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def _size(text: str) -> int:
    """Bytes of `80GB`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", text.strip())
    if not match or match[2].upper() not in UNITS:
        raise typer.BadParameter(f"{text!r} is no size; say it as 80GB or 24GiB")
    return int(float(match[1]) * UNITS[match[2].upper()])


def estimate(
    classes: Annotated[int, typer.Option("--classes", min=1, max=10**6, help="Classes that are trained.")] = 50,
    batch: Annotated[int | None, typer.Option(min=1, max=10**6, help="In place of train.batch_size.")] = None,
    shots: Annotated[int | None, typer.Option(min=1, max=10**5, help="Images a class, in place of shots.")] = None,
    method: Annotated[str | None, typer.Option("--method", help="The first of methods.", **_one_of(METHODS))] = None,
    device_memory: Annotated[
        int | None, typer.Option("--device-memory", metavar="80GB", parser=_size, help="Of a GPU that is not here.")
    ] = None,
    tflops: Annotated[
        float | None, typer.Option("--tflops", min=1e-6, callback=finite, help="Rate that a step's time is told for.")
    ] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Take this machine's rate, measured by products.")] = False,
    params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [], json_: AsJson = False,
) -> None:  # fmt: skip
    """What a training costs, from the settings alone: parameters, memory, features on disk, operations, time a step.

    Nothing is fetched and no model is built. Without --device-memory it is for this machine's GPU, or for its CPU.
    """
    from flows.settings.params import params_or_shipped

    settings = params_or_shipped(params, set_)
    config = _config(settings)
    resolved = _resolved(settings, config, method or settings.methods[0], batch)
    case, room = _case(settings, config, resolved, classes, device_memory)
    result = _result(case, room, settings.backbone.name, tflops or (_rate(settings, case) if measure else None))
    views = (shots or max(settings.shots)) * classes * resolved.train.epochs
    result["features"] |= {"views": views, "bytes": views * result["features"]["view_bytes"]}
    if json_:
        print(json.dumps(result))
        return
    for line in _lines(result, settings):
        print(line)


def _config(settings: "Params") -> "Config":
    from mmrl_core.clip.catalogue import config_of
    from mmrl_core.clip.openclip import open_clip
    from mmrl_core.config import did_you_mean

    name = settings.backbone.name
    if (config := config_of(name)) is None:
        hint = did_you_mean(name, open_clip.list_models()) or "; `mmrl backbones` lists those that are"
        raise UserError(
            f"backbone.name {name!r} is no architecture of open_clip and no folder; others cannot be estimated{hint}"
        )
    return config


def _resolved(settings: "Params", config: "Config", method: str, batch: int | None) -> "Resolved":
    from flows.settings.resolve import resolve
    from mmrl_core.clip.shapes import shape_of
    from mmrl_core.estimate.training import check_depth

    name = settings.backbone.name
    try:
        shape = shape_of(config)
    except UserError as error:
        raise UserError(f"backbone {name} cannot be estimated: {error}") from None
    resolved = resolve(settings, settings.datasets[0], method, settings.seeds[0], shape.depth)
    check_depth(resolved.adapter, shape, name)
    return resolved._replace(train=resolved.train.model_copy(update={"batch_size": batch})) if batch else resolved


def _case(
    settings: "Params", config: "Config", resolved: "Resolved", classes: int, device_memory: int | None
) -> "tuple[Case, Room | None]":
    import torch

    from flows.project.resources import device_here
    from mmrl_core.clip.precision import settle_precision
    from mmrl_core.clip.shapes import shape_of
    from mmrl_core.estimate.machine import Room, room_on
    from mmrl_core.estimate.training import Case

    kind = "cuda" if device_memory else device_here(settings.device).type
    device, precision = torch.device(kind), str(resolved.train.precision)
    if device_memory and precision == "auto":
        precision = "bf16"
    elif not device_memory:
        precision = settle_precision(precision, device)
    case = Case(shape_of(config), resolved.adapter, resolved.train.batch_size, classes, precision, kind)
    return case, Room(device_memory, "that device") if device_memory else room_on(device)


def _rate(settings: "Params", case: "Case") -> float:
    """TFLOP a second of this machine."""
    from flows.project.resources import device_here
    from mmrl_core.estimate.machine import multiplications

    return multiplications(device_here(settings.device), case.precision) / 1e12


def _result(case: "Case", room: "Room | None", name: str, tflops: float | None) -> dict[str, Any]:
    from mmrl_core.clip.catalogue import config_of, problem_of
    from mmrl_core.estimate.training import estimate as of_case

    found: Estimate = of_case(case)
    needed = sum(found.memory)
    return {
        "backbone": name, "problem": problem_of(config_of(name) or {}), "method": case.config.method,
        "batch": case.batch, "classes": case.classes, "precision": case.precision, "device": case.device,
        "insertion_depth": case.config.insertion_depth,
        "parameters": {"frozen": found.frozen, "trainable": found.trainable},
        "memory": {**found.memory._asdict(), "certain": found.memory.certain, "peak": needed,
                   "room": room and room.bytes, "fits": None if room is None else needed <= room.bytes},
        "features": {"view_bytes": found.view_bytes},
        "operations": {"step": found.step, "given": found.given},
        "seconds": tflops and _seconds(found, tflops),
    }  # fmt: skip


def _seconds(found: "Estimate", tflops: float) -> dict[str, float]:
    rate = 1e12 * tflops
    return {"tflops": tflops, "step": found.step / rate, "given": found.given / rate}


def _lines(result: dict[str, Any], settings: "Params") -> list[str]:
    """For people."""
    parameters, memory, features, work = (result[key] for key in ("parameters", "memory", "features", "operations"))
    parts = {"weights": "weights", "adapter": "adapter with optimizer", "image_activations": "activations of images",
             "text_activations": "of classes", "working": "working"}  # fmt: skip
    listed = ", ".join(f"{words} {_bytes(memory[part])}" for part, words in parts.items())
    lines = [
        f"{result['backbone']}, {result['method']} from layer {result['insertion_depth']}, {result['batch']} images a "
        f"step, {result['classes']} classes, {result['precision']} on a {_device(result)}",
        f"parameters: {parameters['frozen'] / 1e6:,.1f} M frozen, {parameters['trainable'] / 1e6:,.1f} M trained",
        f"memory: {_bytes(memory['peak'])} at a step's peak: {listed}",
        f"features: {_bytes(features['view_bytes'])} a view, {features['views']:,} views "
        f"{_bytes(features['bytes'])} on disk; features.budget_gb is {settings.features.budget_gb:g}",
        f"operations: {work['step'] / 1e9:,.1f} GFLOP a step, {work['given'] / 1e9:,.1f} with features given",
    ]
    if result["seconds"]:
        time = result["seconds"]
        lines.append(f"time: at {time['tflops']:.3g} TFLOP/s {time['step']:.3g} s a step, {time['given']:.3g} with "
                     f"features given; products alone are counted")  # fmt: skip
    return [*lines, *_verdict(memory), *([f"note: not adapted: {result['problem']}"] if result["problem"] else [])]


def _verdict(memory: dict[str, Any]) -> list[str]:
    if memory["room"] is None:
        return []
    if memory["fits"]:
        return [f"fits: there are {_bytes(memory['room'])}"]
    word = "does not fit" if memory["certain"] > memory["room"] else "may not fit"
    return [f"{word}: there are {_bytes(memory['room'])}"]


def _device(result: dict[str, Any]) -> str:
    return "CPU" if result["device"] == "cpu" else "GPU"


def _bytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"
