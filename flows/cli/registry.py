"""Adapters: register, promote, import, and the backbone that they stand on."""

import contextlib
import json
import sys
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.class_list import ClassFile, ClassNames, class_list
from flows.cli.options import (
    DEFAULT_PARAMS,
    KIND,
    LARGEST_SEED,
    MOST_SHOTS,
    PATH,
    AsJson,
    Overrides,
    ParamsFile,
    show,
    show_each,
    text_table,
)
from flows.project.outputs import atomic_output, check_out_path
from flows.project.paths import RunKey
from flows.settings.params import load_params
from mmrl_core.errors import UserError

if TYPE_CHECKING:
    from flows.registry.promotion import PromotionDecision
    from flows.settings.params import Params


def register(
    dataset: Annotated[str | None, typer.Option(help="By default every dataset of the settings.")] = None,
    method: Annotated[
        str | None, typer.Option(help="With --dataset, --shots and --seed: this run.", **KIND)
    ] = None,
    shots: Annotated[int | None, typer.Option(min=1, max=MOST_SHOTS, help="Of that run.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=LARGEST_SEED, help="Of that run.")] = None,
    params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [], json_: AsJson = False,
) -> None:  # fmt: skip
    """Register the adapter that is best on validation, or the named run's, once per content hash."""
    from flows.registry import versions

    settings, run = load_params(params, set_), _named_run(dataset, method, shots, seed)
    names = [dataset] if dataset else settings.datasets
    results = {name: versions.register(settings, run or versions.candidate(settings, name)) for name in names}
    show_each(results, json_, lambda result: "registered" if result.created else "already registered")


def _named_run(dataset: str | None, method: str | None, shots: int | None, seed: int | None) -> RunKey | None:
    """The run that the options name; None where they leave the choice to validation."""
    if method is None and shots is None and seed is None:
        return None
    if dataset is None or method is None or shots is None or seed is None:
        raise UserError("a run is named by --dataset, --method, --shots and --seed together; give all four, or no more "
                        "than --dataset for the one that is best on validation")  # fmt: skip
    return RunKey(dataset, method, shots, seed)


def promote(
    dataset: Annotated[
        str | None,
        typer.Option(help="By default every dataset of the settings; with --version or --force their only one."),
    ] = None,
    version: Annotated[
        int | None, typer.Option(min=1, max=2**31 - 1, help="By default the one that `register` chose last.")
    ] = None,
    new_classes: Annotated[bool, typer.Option("--allow-new-classes", help="They may differ.")] = False,
    force: Annotated[str | None, typer.Option(metavar="REASON", help="Pass the gate by; kept in the history.")] = None,
    params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [], json_: AsJson = False,
) -> None:  # fmt: skip
    """Move the alias `champion` to a version that passes the gate against the present one; exit 1 if it does not."""
    from flows.registry import promotion
    from flows.registry.versions import one_dataset

    settings = load_params(params, set_)
    names = [one_dataset(settings, dataset)] if dataset or version or force else settings.datasets
    promoted = {
        name: promotion.promote(settings, name, version, new_classes=new_classes, force=force) for name in names
    }
    show_each(promoted, json_, lambda one: f"{one.name} version {one.version}: {one.verdict}")
    _announce(settings, promoted.values())
    if any(one.verdict in promotion.DECLINED for one in promoted.values()):
        raise typer.Exit(1)


def rollback(
    reason: Annotated[str, typer.Argument(help="Why; kept in the history.")],
    dataset: Annotated[str | None, typer.Option(help="By default the settings' only dataset.")] = None,
    params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [], json_: AsJson = False,
) -> None:  # fmt: skip
    """Make the champion before the present one the champion again."""
    from flows.registry import promotion
    from flows.registry.versions import one_dataset

    settings = load_params(params, set_)
    name = one_dataset(settings, dataset)
    decisions = {name: promotion.rollback(settings, name, reason)}
    show_each(decisions, json_, lambda one: f"{one.name} version {one.version}: rolled back")
    _announce(settings, decisions.values())


def _announce(settings: "Params", decisions: Iterable["PromotionDecision"]) -> None:
    """In the report, and to Prefect's server, where these are."""
    from flows.orchestration import events
    from flows.registry.standing import show_champions

    show_champions(settings, lambda line: print(f"warning: {line}", file=sys.stderr))
    for decision in decisions:
        if decision.moved or decision.finished:
            events.announce(events.MOVED, decision.name, "mmrl flow release")


def history(
    dataset: Annotated[str | None, typer.Option(help="By default every dataset of the settings.")] = None,
    params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [], json_: AsJson = False,
) -> None:  # fmt: skip
    """Every decision about which version is the champion, with its reasons."""
    from flows.registry import promotion
    from flows.tracking.redaction import printable
    from flows.tracking.store import store_uri

    settings = load_params(params, set_)
    histories = {name: promotion.history(settings, name) for name in ([dataset] if dataset else settings.datasets)}
    for name in (name for name, entries in histories.items() if not entries):
        where = printable(store_uri(settings))
        print(f"{name}: no decision is in the store {where}; `mmrl promote` makes the first", file=sys.stderr)
    if json_:
        print(json.dumps({name: [entry._asdict() for entry in entries] for name, entries in histories.items()}))
        return
    for name, entries in histories.items():
        rows = [[_when(entry.at), str(entry.version), str(entry.champion or ""), entry.verdict,
                 "; ".join(entry.reasons)] for entry in entries]  # fmt: skip
        print(f"{name}\n{text_table(['when', 'version', 'champion', 'verdict', 'reasons'], rows)}")


def reproduce(
    model: Annotated[str, typer.Argument(help="NAME@ALIAS or NAME/VERSION of the registry.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the adapter.", **PATH)],
    params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [], json_: AsJson = False,
) -> None:  # fmt: skip
    """Train a registered adapter again from what its version recorded; exit 1 if it comes out otherwise."""
    from flows.stages.reproduce import reproduce as rebuild

    check_out_path(out, changed=True)
    settings = load_params(params, set_)
    with atomic_output(out) as path:
        result = rebuild(settings, f"models:/{model.removeprefix('models:/')}", path)
    show(result, json_, f"{out}: {'identical' if result['identical'] else 'not the same'}")
    if not result["identical"]:
        raise typer.Exit(1)


def _when(milliseconds: int) -> str:
    """Local time; the number itself where there is no such time."""
    with contextlib.suppress(OverflowError, ValueError, OSError):
        return datetime.fromtimestamp(milliseconds / 1000).isoformat(" ", "seconds")
    return str(milliseconds)


def import_(
    checkpoint: Annotated[Path, typer.Argument(help="A .pth.tar of the authors' code.", **PATH)],
    out: Annotated[Path, typer.Option("--out", help="Folder for the adapter.", **PATH)],
    class_names: ClassNames = None,
    classes: ClassFile = None,
    template: Annotated[str, typer.Option(help="Prompt template.")] = "a photo of a {}.",
    params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [], json_: AsJson = False,
) -> None:  # fmt: skip
    """Turn a checkpoint of the authors' code into an adapter; the classes are in the order of its training."""
    from flows.stages.import_checkpoint import import_published

    check_out_path(out, changed=True)
    names = class_list(class_names, classes)
    if names is None:
        raise UserError("import needs the classes in training order; give --class NAME for each, or --classes FILE")
    settings = load_params(params, set_)
    with atomic_output(out) as path:
        result = import_published(settings, checkpoint, names, template, path)
    show(result, json_, str(out))


def pretrain(
    out: Annotated[Path, typer.Option("--out", help="Folder for tiny.safetensors and tiny.json.", **PATH)],
    steps: Annotated[
        int | None, typer.Option(min=1, max=10**9, help="By default what the shipped weights took.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED)] = 0,
    json_: AsJson = False,
) -> None:
    """Train the bundled backbone `tiny` from scratch on rendered glyphs and objects."""
    from flows.project.progress import progress
    from mmrl_core.pretrain import pretrain as run

    with progress("pretrain", steps, what="step") as bar:
        card = run(out, seed=seed, report=lambda step, total, loss: bar(step, total, note=f"loss {loss:.3f}"),
                   **({"steps": steps} if steps else {}))  # fmt: skip
    show({"sha256": card["sha256"], **card["figures"]}, json_, str(out))
