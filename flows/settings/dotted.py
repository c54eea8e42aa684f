"""Settings by dotted key ("train.lr"), as --set, adapter.json and MLflow have them, and nested, as in params.yaml."""

from collections.abc import Mapping
from typing import Any


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}. An empty section has no key and is dropped."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def unflatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """{"a.b": 1} -> {"a": {"b": 1}}. Raises ValueError when a key lies below another's value."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        section, name = section_of(nested, key)
        section[name] = value
    return nested


def section_of(values: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """The section of nested settings that a dotted key lies in, made where it is missing, and the key's name there.

    Raises ValueError naming the part of the key that holds a value and no section.
    """
    *path, name = key.split(".")
    for part in path:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise ValueError(f"{part!r} is not a section of the settings")
    return values, name
