"""The trials of a search on disk: every partition's scores are there before the trial goes on.

A trial is known by its settings. Whoever runs it again, after a kill or in a resumed search, is given what is done.
"""

import hashlib
from pathlib import Path
from typing import Any

from mmrl_core.errors import UserError
from mmrl_core.files import canonical_json, read_json, write_json

RUNNING, COMPLETE, STOPPED, FAILED = "running", "complete", "stopped", "failed"
LOST = "lost"  # by no fault of its settings: its process died again and again; a resumed search tries it again
DIED = "its process died again and again"
KEYS = ("number", "params", "scores", "seconds", "state", "failure")


def trial_key(params: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(params)).hexdigest()[:16]


class Ledger:
    """Records by trial: number, params, scores and seconds of each partition, state, failure.

    A disk that takes no more ends the writing, not the search: `unwritten` then says why.
    """

    def __init__(self, folder: str | Path):
        self.folder, self.unwritten, self.warnings = Path(folder), None, {}
        self.records = {path.stem: record for path in self.folder.glob("*.json") if (record := _read(path))}

    def reopen(self) -> None:
        """Let the trials that were lost be tried again."""
        for record in self.records.values():
            if record["state"] == LOST:
                record |= {"state": RUNNING, "failure": None}

    def open(self, params: dict[str, Any]) -> dict[str, Any]:
        """The trial's record, a new one where there is none."""
        key = trial_key(params)
        if key not in self.records:
            blank = {"scores": [], "seconds": [], "state": RUNNING, "failure": None}
            self.records[key] = {"number": len(self.records), "params": params, **blank}
            self._write(key)
        return self.records[key]

    def add(self, params: dict[str, Any], index: int, scores: dict[str, Any], seconds: float) -> None:
        """Enter a partition's scores; one that is there already stays."""
        record = self.records[trial_key(params)]
        if len(record["scores"]) == index:
            record["scores"].append(scores)
            record["seconds"].append(seconds)
            self._write(trial_key(params))

    def end(self, params: dict[str, Any], state: str, failure: str | None = None) -> dict[str, Any]:
        """Close the trial; returns its record."""
        record = self.open(params)
        if record["state"] == RUNNING:
            record |= {"state": state, "failure": failure}
            self._write(trial_key(params))
        return record

    def all(self) -> list[dict[str, Any]]:
        """Records in the order in which the trials began."""
        return sorted(self.records.values(), key=lambda record: record["number"])

    def warn(self, warning: str) -> None:
        """Keep what a worker has to say to the person: its own output stays in Ray's logs."""
        self.warnings[warning] = None

    def troubles(self) -> list[str]:
        """Warnings, and why records are missing on disk."""
        lost = f"trials were not kept for a resume ({self.unwritten}); free some space"
        return [*self.warnings, *([lost] if self.unwritten else [])]

    def _write(self, key: str) -> None:
        try:
            write_json(self.folder / f"{key}.json", self.records[key])
            self.unwritten = None
        except OSError as error:
            self.unwritten = f"{self.folder}: {error.strerror or error}"


def _read(path: Path) -> dict[str, Any] | None:
    """A whole record; None for a damaged one, whose trial runs again."""
    try:
        record = read_json(path, made_by="mmrl tune", keys=KEYS)
    except UserError:
        return None
    return {key: record[key] for key in KEYS} if trial_key(record["params"]) == path.stem else None
