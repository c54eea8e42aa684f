"""What settings call data of one's own that lie in a folder."""

import re
from pathlib import Path
from typing import Any

from mmrl_core.data.own.settings import OwnSection


def named(folder: Path, own: dict[str, OwnSection]) -> tuple[str, OwnSection] | None:
    """The user's own data that lie in a folder, as the settings name them or with a name made of the folder's."""
    from mmrl_core.data.catalog import ALIASES, known_keys
    from mmrl_core.data.check import holds_own
    from mmrl_core.data.own.beside import section_of
    from mmrl_core.data.own.listed import holds_metadata

    if not (holds_own(folder) or holds_metadata(folder)):
        return None
    for key, spec in own.items():
        if not spec.shards and folder.resolve() in _places(spec):
            return key, spec
    key = re.sub(r"[^A-Za-z0-9]+", "-", folder.resolve().name).strip("-") or "mine"
    key = f"my-{key[:90]}" if key[0].isdigit() else key[:90]  # YAML takes some for numbers
    while key in {*known_keys(own), *ALIASES} or Path("data", key).resolve() == folder.resolve():
        key = f"my-{key}"
    path = folder if Path.cwd() in folder.resolve().parents and ".." not in folder.parts else folder.resolve()
    return key, OwnSection(table=str(path)) if holds_metadata(folder) else section_of(path)


def _places(spec: OwnSection) -> list[Path]:
    """The folders that the data may be known by: of a table that is a file, the one that it lies in."""
    place = Path(spec.table or spec.images or "").resolve()
    return [place, place.parent] if spec.table and place.is_file() else [place]


def said(spec: OwnSection) -> dict[str, Any]:
    """What settings need to say of it: where it lies, and what its table calls its columns."""
    return spec.model_dump(include={"images", "table", "columns"}, exclude_none=True, exclude_defaults=True)
