"""How weights want images prepared: as open_clip's list of weights says, or a configuration beside their file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmrl_core.clip.weights.weight_files import CONFIGURATION
from mmrl_core.data.squares import INTERPOLATIONS, RESIZE_MODES
from mmrl_core.errors import UserError

CONFIG = CONFIGURATION  # beside weights in the layout that open_clip writes and reads
KEYS = ("mean", "std", "resize_mode", "interpolation", "fill_color")
KNOWN = {"resize_mode": RESIZE_MODES, "interpolation": (*INTERPOLATIONS, "random"), "fill_color": (0,)}


def preprocessing(facts: Mapping[str, Any] | None, path: Path | None, where: str) -> dict[str, Any]:
    """Those of KEYS that the facts on the weights state, or without such facts the configuration beside the file.

    Raises UserError for a configuration that cannot be read, and for what the views do not do.
    """
    if facts is None and path is not None and (path.parent / CONFIG).is_file():
        where = str(path.parent / CONFIG)
        facts = _read(path.parent / CONFIG)
    stated = {key: facts[key] for key in KEYS if facts and facts.get(key) is not None}
    check_preprocessing(stated, where)
    return stated


def check_preprocessing(stated: Mapping[str, Any], where: str) -> None:
    """Raises UserError for a way to prepare images that the views do not have."""
    for key, known in KNOWN.items():
        if stated.get(key) not in (None, *known):
            values = ", ".join(map(str, known))
            raise UserError(f"{where} asks for the {key} {stated[key]!r}, which is not supported ({values} are)")
    for key in ("mean", "std"):
        if key in stated and not _are_channels(stated[key], positive=key == "std"):
            raise UserError(f"{where}: {key} is {stated[key]!r}, not three numbers, a channel each; correct it")


def _are_channels(values: Any, positive: bool) -> bool:
    if not isinstance(values, list | tuple) or len(values) != 3:
        return False
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return len(numbers) == 3 and all(abs(value) < 1e6 and (value > 0 or not positive) for value in numbers)


def _read(path: Path) -> dict[str, Any]:
    try:
        stated = json.loads(path.read_text(encoding="utf-8")).get("preprocess_cfg", {})
    except (OSError, ValueError, RecursionError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as open_clip writes it ({error}); restore or remove it") from None
    if not isinstance(stated, dict):
        raise UserError(f"{path}: preprocess_cfg is no object; restore or remove the file")
    return stated
