"""The datasets: which there are, and whether what they need is in place."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from flows.cli.options import DEFAULT_PARAMS, PATH, AsJson, Overrides, ParamsFile, show, text_table
from flows.project import paths
from flows.project.progress import progress
from flows.settings import own_data
from flows.settings.params import Params, load_params, params_or_shipped
from flows.settings.sections import BackboneSection, DataSection
from mmrl_core.data.own.settings import OwnSection
from mmrl_core.errors import UserError

SPLITS = ("train", "val", "test")
PROBLEMS = 20  # printed of a dataset; --json has all


def datasets(params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [], json_: AsJson = False) -> None:
    """List every dataset: its key, what it needs and where, its prompt template and published counts."""
    from mmrl_core.data.check import describe
    from mmrl_core.presets import tuned_per_dataset

    shipped = [row | tuned_per_dataset(row["dataset"]) for row in describe()]
    rows = shipped + [_describe_own(key, spec) for key, spec in _settings(params, set_).own.items()]
    if json_:
        print(json.dumps({"datasets": rows}))
        return
    print(text_table(["dataset", "kind", "train/val/test", "template", "needs"], map(_described, rows)))


def check(
    root: Annotated[Path | None, typer.Argument(help="Folder of the datasets; default: data.root.", **PATH)] = None,
    keys: Annotated[list[str] | None, typer.Option("--dataset", help="Only this one. Repeatable.")] = None,
    params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [], json_: AsJson = False,
) -> None:  # fmt: skip
    """See which datasets are complete below a folder; exit 2 unless those asked for are, or any.

    Every image of one's own data is opened. A FOLDER of class folders is checked as such data, whether it is named
    under data.own or not.
    """
    settings = _params(params, set_)
    data = settings.data if settings else DataSection()
    _check_arguments(root, settings)
    found = own_data.named(root, data.own) if root and not keys else None
    if found:
        rows = [_check_own(found[0], data.own | dict([found]), settings)]
        rows[0]["settings"] = _lines_for(*found) if found[0] not in data.own else None
    else:
        rows = _check_all(root or Path(data.root), data.own, keys, settings)
    rows = [{**row, "notes": [*row.get("notes", []), *_unknown(row, settings)]} for row in rows]
    if json_:
        print(json.dumps({"datasets": rows}))
    else:
        print(text_table(["dataset", "state", "found", "published"], map(_checked, rows)))
        print("".join(f"{line}\n" for line in [*_said(rows), *_next(rows, settings, root)]), end="")
    _refuse(rows, bool(keys or found), root or data.root)


def clean(
    older_than: Annotated[
        str | None, typer.Option(metavar="30d", help="Instead: what is older and that nothing kept needs.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --older-than: list it and remove nothing.")] = False,
    params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [], json_: AsJson = False,
) -> None:  # fmt: skip
    """Remove what only saves time: frozen features, digests of images, trials of searches, outputs made ahead. No
    result depends on it.

    With --older-than: run folders, DVC's cache, Ray's folders and MLflow runs that no registered version stands on.
    """
    if older_than is None:
        if dry_run:
            raise UserError("--dry-run lists what --older-than would remove; give that as well, such as 30d")
        from flows.maintenance.cleanup import clean as remove

        show({"freed_bytes": remove()}, json_, str(paths.STATE))
        return
    _clean_old(load_params(params, set_), older_than, dry_run, json_)


def _clean_old(settings: Params, older_than: str, dry_run: bool, as_json: bool) -> None:
    from flows.maintenance import cleanup

    removable = cleanup.removable(settings, cleanup.duration(older_than))
    if not dry_run:
        for item in removable:
            item.remove()
    rows = [{"kind": item.kind, "name": item.name, "bytes": item.size} for item in removable]
    total = {"items": len(removable), "bytes": sum(item.size or 0 for item in removable)}
    if as_json:
        print(json.dumps({"removed": not dry_run, **total, "found": rows}))
        return
    if removable:
        lines = [[item.kind, str(item.size or "-"), item.name] for item in removable]
        print(text_table(["kind", "bytes", "name"], lines))
    show(total, False, "would remove" if dry_run else "removed")


def _check_arguments(root: Path | None, settings: Params | None) -> None:
    from mmrl_core.data.catalog import canonical_key

    if root and not root.is_dir():
        is_table = root.exists() and root.suffix.lower() in (".csv", ".parquet")
        advice = f"name it as `data.own.NAME.table={root}`" if is_table else "give a folder of datasets or of images"
        raise UserError(f"{root} is {'no folder' if root.exists() else 'not there'}; {advice}")
    for name in [*settings.datasets, *settings.targets] if settings else []:
        canonical_key(name, settings.data.own if settings else {})


def _settings(params: Path, overrides: list[str]) -> DataSection:
    """The section `data`; its defaults in a folder without settings."""
    settings = _params(params, overrides)
    return settings.data if settings else DataSection()


def _params(params: Path, overrides: list[str]) -> Params | None:
    """The settings; None in a folder without."""
    if params == DEFAULT_PARAMS and not params.exists() and not overrides:
        return None
    return params_or_shipped(params, overrides)


def _lines_for(key: str, spec: OwnSection) -> dict[str, Any]:
    """What params.yaml needs to say of the data."""
    return {"datasets": [key], "data": {"own": {key: own_data.said(spec)}}}


def _describe_own(key: str, spec: OwnSection) -> dict[str, Any]:
    needs = spec.shards or spec.table or spec.images
    return {"dataset": key, "kind": "own", "needs": needs, "template": spec.template, "published": None}


def _described(row: dict[str, Any]) -> list[str]:
    return [row["dataset"], row["kind"], _counts(row["published"]), row["template"], row["needs"] or "nothing"]


def _checked(row: dict[str, Any]) -> list[str]:
    return [row["dataset"], row["state"], _counts(row["found"]), _counts(row["expected"])]


def _said(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Lines on datasets: classes, what makes them incomplete, what else should be known, once."""
    for row in rows:
        yield from _problems(row)
    for note in dict.fromkeys(note for row in rows for note in row["notes"]):
        yield f"{', '.join(row['dataset'] for row in rows if note in row['notes'])}: note: {note}"


def _next(rows: list[dict[str, Any]], settings: Params | None, root: Path | None) -> Iterator[str]:
    """What to do with datasets that are complete."""
    complete = [row["dataset"] for row in rows if row["state"] == "complete"]
    if not complete:
        return
    if settings:
        first = "" if set(complete) & set(settings.datasets) else "put it under `datasets` in params.yaml, then "
        yield f"next: {first}mmrl flow adapt"
    elif root:
        yield f"next: mmrl init PROJECT --images {shlex.quote(str(root))}, then mmrl flow adapt in PROJECT"
    yield from _lines(rows)


def _lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    """How settings name data that they do not name yet."""
    for settings in (row["settings"] for row in rows if row.get("settings")):
        lines = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).splitlines()
        yield from ("to use it, let params.yaml say:", *(f"    {line}" for line in lines))


def _problems(row: dict[str, Any]) -> Iterator[str]:
    from mmrl_core.data.own.records import some

    problems = row["problems"]
    if names := row.get("class_names"):
        yield f"{row['dataset']}: {len(names)} classes: {some(names, 10)}"
    yield from (f"{row['dataset']}: {problem}" for problem in problems[:PROBLEMS])
    if len(problems) > PROBLEMS:
        yield f"{row['dataset']}: and {len(problems) - PROBLEMS} more; --json lists them all"


def _counts(counts: dict[str, int] | None) -> str:
    return "/".join(str(counts.get(split, "-")) for split in SPLITS) if counts else "-"


def _check_all(
    root: Path, own: dict[str, OwnSection], keys: list[str] | None, settings: Params | None
) -> list[dict[str, Any]]:
    from mmrl_core.data.catalog import canonical_key
    from mmrl_core.data.check import check as check_shipped

    asked = [canonical_key(key, own) for key in keys or []]
    shipped = [key for key in asked if key not in own]
    rows = check_shipped(root, shipped or None) if shipped or not asked else []
    return rows + [_check_own(key, own, settings) for key in own if key in asked or not asked]


def _check_own(key: str, own: dict[str, OwnSection], settings: Params | None) -> dict[str, Any]:
    """A dataset of the user's own, as the settings' protocol and shots ask for it."""
    from mmrl_core.clip.prompts import cut_notes
    from mmrl_core.data.check import check_own
    from mmrl_core.protocols import ON_TARGET, PROTOCOLS

    # What `mmrl init --images` says of one's own data.
    data, shots = (settings.data, max(settings.shots)) if settings else (DataSection(protocol="few-shot"), 1)
    known = paths.KNOWN if DEFAULT_PARAMS.exists() else None  # in a project
    with progress(f"check {key}", unit="images") as report:
        if settings and key in settings.targets:
            row = check_own(key, own, ON_TARGET, None, shots, report, known=known)
        else:
            row = check_own(key, own, PROTOCOLS[data.protocol], data.base_classes, shots, report, known=known)
    backbone = settings.backbone if settings else BackboneSection()
    row["notes"] += cut_notes(row["class_names"], [own[key].template], backbone.name)
    return row


def _unknown(row: dict[str, Any], settings: Params | None) -> list[str]:
    """A note where data that are there are photographs to a backbone that knows none."""
    from mmrl_core.data.catalog import photograph_note

    backbone = settings.backbone if settings else BackboneSection()
    note = photograph_note(row["dataset"], backbone.name)
    return [note] if note and row["found"] else []


def _refuse(rows: list[dict[str, Any]], asked: bool, root: Path | str) -> None:
    from mmrl_core.data.catalog import EMBEDDED

    lacking = [row["dataset"] for row in rows if row["state"] != "complete"]
    if asked and lacking:
        raise UserError(f"{', '.join(lacking)}: not complete below {root}; what is missing is listed above")
    if not asked and not any(row["dataset"] not in EMBEDDED and row["state"] == "complete" for row in rows):
        raise UserError(f"no dataset is complete below {root}; `mmrl datasets` tells what each one needs")
