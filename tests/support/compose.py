"""infra/compose.yaml as the engine reads it: variables filled in, merges done."""

import re
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).parents[2] / "infra" / "compose.yaml"
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(:(?P<kind>[-?])(?P<rest>[^}]*))?\}")


def resolved(values: dict[str, str]) -> dict[str, Any]:
    """The file with these variables; KeyError names one that is demanded and missing."""

    def value(match: re.Match) -> str:
        found = values.get(match["name"])
        if match["kind"] == "-":
            return found or match["rest"]
        if not found:
            raise KeyError(match["name"])
        return found

    lines = [line for line in FILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    return yaml.safe_load(VARIABLE.sub(value, "\n".join(lines)))


def variables() -> dict[str, set[str]]:
    """What follows each variable's name: `?`, `-` or nothing."""
    found: dict[str, set[str]] = {}
    for match in VARIABLE.finditer(FILE.read_text()):
        found.setdefault(match["name"], set()).add(match["kind"] or "")
    return found
