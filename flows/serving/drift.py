"""Whether images have become unlike those that an adapter was validated on, from the predictions that serving logged.

An adapter's threshold leaves the share `expected` (5%) of its validation images below it. A version has drifted when
more of its predictions among the trained classes are below the threshold than chance explains (one-sided binomial
test), and at least twice as many as expected: among thousands of predictions any difference is significant, and not
every one matters.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from mmrl_core.errors import UserError
from mmrl_core.rounding import at_most

SIGNIFICANCE, FACTOR = 0.001, 2.0


class Row(BaseModel):
    """What is read of a line of the log, among the trained classes of an adapter with a threshold."""

    model_config = ConfigDict(strict=True)

    time: AwareDatetime
    name: Annotated[str, Field(pattern=r"^[^\r\n]+$")]
    version: Annotated[int, Field(ge=0)]
    adapter_sha256: str | None = None
    strange: bool
    expected: Annotated[float, Field(gt=0, le=1)]


class Drift(NamedTuple):
    """`strange` of a version's `n` predictions were below its threshold; without drift about `expected` would be."""

    name: str
    version: int
    n: int
    strange: int
    expected: float
    p_value: float
    drifted: bool

    @property
    def line(self) -> str:
        counts = f"{self.strange} of {self.n} predictions are strange, {self.expected:.1f} would be usual"
        verdict = "drift" if self.drifted else "no drift"
        return f"{self.name} version {self.version}: {verdict}; {counts} (p {self.p_value:.2g})"


def drift(folder: Path, hours: float) -> list[Drift]:
    """One result a model, of its version that answered last, from what was logged in `folder` in the last `hours`.
    Raises UserError where that is before all time."""
    try:
        since = datetime.now(UTC) - timedelta(hours=hours)
    except (OverflowError, ValueError):
        raise UserError(f"--hours {hours:g} is before all time; give less") from None
    rows = [row.model_dump() for row in _rows(folder) if row.time >= since]
    latest = {row["name"]: _identity(row) for row in sorted(rows, key=lambda row: row["time"])}
    return [
        measured(name, identity[1], [row for row in rows if _identity(row) == identity])
        for name, identity in latest.items()
    ]


def _identity(row: Mapping[str, Any]) -> tuple[str, int, str | None]:
    """The version that answered, by its adapter too: after a restore the same number can be another one's."""
    return row["name"], row["version"], row.get("adapter_sha256")


def measured(name: str, version: int, rows: list[dict[str, Any]]) -> Drift:
    """The result for a version, from its rows in the log."""
    from scipy.stats import binomtest

    n, strange = len(rows), sum(row["strange"] for row in rows)
    share = rows[-1]["expected"]
    p_value = float(binomtest(strange, n, share, alternative="greater").pvalue)
    drifted = p_value < SIGNIFICANCE and at_most(FACTOR * n * share, strange)
    return Drift(name, version, n, strange, n * share, p_value, drifted)


def _rows(folder: Path) -> Iterator[Row]:
    """Every whole line of every file that counts for drift; a replica may be writing its last one."""
    for file in sorted(folder.glob("*.jsonl*")):
        yield from _whole_lines(file.read_text(errors="replace").splitlines())


def _whole_lines(lines: Iterable[str]) -> Iterator[Row]:
    for line in lines:
        with suppress(ValidationError):
            yield Row.model_validate_json(line)
