"""The datasets: which there are, and whether what they need is in place."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.options import DEFAULT_PARAMS, AsJson, Overrides, ParamsFile, show, text_table
from flows.project import paths
from flows.settings.params import Params, load_params
from flows.settings.sections import BackboneSection, DataSection
from mmrl_core.data.own.settings import OwnSection
from mmrl_core.errors import UserError

SPLITS = ("train", "val", "test")


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
    root: Annotated[Path | None, typer.Argument(help="Folder of the datasets; default: data.root.")] = None,
    keys: Annotated[list[str] | None, typer.Option("--dataset", help="Only this one. Repeatable.")] = None,
    params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [], json_: AsJson = False,
) -> None:  # fmt: skip
    """See which datasets are complete below a folder; exit 2 unless those asked for are, or any."""
    settings = _settings(params, set_)
    rows = _check_all(root or Path(settings.root), settings.own, keys, _backbone(params, set_))
    if json_:
        print(json.dumps({"datasets": rows}))
    else:
        print(text_table(["dataset", "state", "found", "published"], map(_checked, rows)))
        print("".join(f"{row['dataset']}: {problem}\n" for row in rows for problem in row["problems"]), end="")
    _refuse(rows, bool(keys), root or settings.root)


def clean(
    older_than: Annotated[
        str | None, typer.Option(metavar="30d", help="Instead: what is older and that nothing kept needs.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --older-than: list it and remove nothing.")] = False,
    params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [], json_: AsJson = False,
) -> None:  # fmt: skip
    """Remove what only saves time: frozen features, trials of searches, outputs made ahead. No result depends on it.

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


def _settings(params: Path, overrides: list[str]) -> DataSection:
    """The section `data`; its defaults in a folder without settings."""
    if params == DEFAULT_PARAMS and not params.exists() and not overrides:
        return DataSection()
    return load_params(params, overrides).data


def _backbone(params: Path, overrides: list[str]) -> str:
    """Its name, which the settings of a folder without settings do not say."""
    return load_params(params, overrides).backbone.name if params.exists() else BackboneSection().name


def _describe_own(key: str, spec: OwnSection) -> dict[str, Any]:
    needs = spec.shards or spec.table or spec.images
    return {"dataset": key, "kind": "own", "needs": needs, "template": spec.template, "published": None}


def _described(row: dict[str, Any]) -> list[str]:
    return [row["dataset"], row["kind"], _counts(row["published"]), row["template"], row["needs"] or "nothing"]


def _checked(row: dict[str, Any]) -> list[str]:
    return [row["dataset"], row["state"], _counts(row["found"]), _counts(row["expected"])]


def _counts(counts: dict[str, int] | None) -> str:
    return "/".join(str(counts.get(split, "-")) for split in SPLITS) if counts else "-"


def _check_all(root: Path, own: dict[str, OwnSection], keys: list[str] | None, backbone: str) -> list[dict[str, Any]]:
    from mmrl_core.data.catalog import canonical_key
    from mmrl_core.data.check import check as check_shipped

    asked = [canonical_key(key, own) for key in keys or []]
    shipped = [key for key in asked if key not in own]
    rows = check_shipped(root, shipped or None) if shipped or not asked else []
    return rows + [_check_own(key, own, backbone) for key in own if key in asked or not asked]


def _check_own(key: str, own: dict[str, OwnSection], backbone: str) -> dict[str, Any]:
    """A dataset of the user's own is complete when it opens; its problems are the notes of its source, and the names
    that are too long for the backbone."""
    from mmrl_core.clip.prompts import cut_notes
    from mmrl_core.data.catalog import open_source

    row = {"dataset": key, "found": None, "expected": None, "missing": 0}
    try:
        source = open_source(key, "", own)
    except UserError as error:
        return row | {"state": "incomplete", "problems": [str(error)]}
    counts = {split: len(source.items(split)) for split in SPLITS}
    return row | {
        "state": "complete",
        "found": counts,
        "problems": [*source.notes, *cut_notes(source.class_names, source.templates, backbone)],
    }


def _refuse(rows: list[dict[str, Any]], asked: bool, root: Path | str) -> None:
    from mmrl_core.data.catalog import EMBEDDED

    lacking = [row["dataset"] for row in rows if row["state"] != "complete"]
    if asked and lacking:
        raise UserError(f"{', '.join(lacking)}: not complete below {root}; what is missing is listed above")
    if not asked and not any(row["dataset"] not in EMBEDDED and row["state"] == "complete" for row in rows):
        raise UserError(f"no dataset is complete below {root}; `mmrl datasets` tells what each one needs")
