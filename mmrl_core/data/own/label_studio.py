"""What Label Studio exports of a project, as CSV, JSON-MIN or JSON: where an image lay for its server, and what was
chosen for it.

Its exports hold no images. Those that were uploaded lie below media/upload/PROJECT of its data folder, those of local
storage below its document root.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from mmrl_core.errors import UserError

COLUMNS = ("annotation_id", "was_cancelled")  # the first is in every export
UPLOADED, SERVED = "/data/upload/", "/data/local-files/?d="


def rows_of(document: Any, where: str) -> list[dict[str, Any]]:
    """The rows of a JSON export, or of any list of objects, values that have parts as JSON text; of the export with
    all that is known (`JSON`) a row an annotation, which JSON-MIN and CSV have. Raises UserError for anything else."""
    if not isinstance(document, list) or not all(isinstance(entry, dict) for entry in document):
        raise UserError(f"{where} is no list of objects; give a JSON export of Label Studio, or a CSV")
    rows = [row for entry in document for row in (_of_task(entry) if _is_task(entry) else [entry])]
    return [{name: _plain(value) for name, value in row.items()} for row in rows]


def _is_task(entry: dict[str, Any]) -> bool:
    return isinstance(entry.get("data"), dict) and isinstance(entry.get("annotations"), list)


def _of_task(task: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each annotation; one without a choice where there is none."""
    annotations = [one for one in task["annotations"] if isinstance(one, dict)] or [{}]
    facts = [{"annotation_id": one.get("id"), "was_cancelled": one.get("was_cancelled")} for one in annotations]
    return [{**task["data"], **fact, **_chosen(one)} for fact, one in zip(facts, annotations, strict=True)]


def _chosen(annotation: dict[str, Any]) -> dict[str, Any]:
    """What was chosen, by the name of the control that it was chosen with."""
    results = annotation.get("result")
    parts = [part for part in results if isinstance(part, dict)] if isinstance(results, list) else []
    named = [(part.get("from_name"), part.get("value")) for part in parts if part.get("type") == "choices"]
    return {name: value for name, value in named if isinstance(name, str)}


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict | list) else value


def path_below(root: Path, value: str, where: str) -> str:
    """The path below `root` that a cell names, any other cell as it is.

    An upload is found by its project's folder, with or without `upload` above it, or by its name, which is of that
    upload alone. Raises UserError where it is nowhere.
    """
    if value.startswith(SERVED):
        return unquote(value.removeprefix(SERVED))
    if not value.startswith(UPLOADED):
        return value
    path = unquote(value.removeprefix(UPLOADED))
    places = [f"upload/{path}", path, path.rpartition("/")[2]]
    for place in places:
        if os.path.lexists(root / place):
            return place
    raise UserError(
        f"{where}: {value} is not below {root}, neither as {places[0]} nor as {places[-1]}; "
        "copy Label Studio's folder media/upload there"
    )


def is_left_out(values: Mapping[str, Any], label: str | None) -> bool:
    """Whether a row is of an export and has no choice, since its annotator skipped or cancelled it."""
    cancelled = str(values.get("was_cancelled")).lower() in ("true", "1")
    return "annotation_id" in values and (cancelled or label in ("", "[]", None))


def choice(label: str, where: str) -> str:
    """The one choice of a cell that is JSON, such as {"choices": ["cat"]}; a cell of plain text as it is. Raises
    UserError where the JSON holds several, or something else."""
    if not label.startswith(("{", "[")):
        return label
    try:
        value = json.loads(label)
    except (ValueError, RecursionError):
        return label
    value = _only(value)
    value = _only(value.get("choices")) if isinstance(value, dict) else value
    if not _is_text(value):
        raise UserError(f"{where}: {label[:100]} is not one choice; put one class there, or leave the row out")
    return value.strip()


def _is_text(value: Any) -> bool:
    """Whether it is text that files can hold: JSON may spell half of a surrogate pair."""
    return isinstance(value, str) and bool(value.strip()) and value == value.encode(errors="ignore").decode()


def _only(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value
