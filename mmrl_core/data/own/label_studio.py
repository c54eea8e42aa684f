"""What Label Studio writes into the CSV of a project: where an image lay for its server, and what was chosen for it.

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
