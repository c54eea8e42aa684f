"""The trials of a search on disk: every partition's scores are there before the trial goes on.

A trial is known by its settings. Whoever runs it again, after a kill or in a resumed search, is given what is done.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from mmrl_core.errors import UserError
from mmrl_core.files import canonical_json, read_json, write_json
from mmrl_core.method.adapter_card import is_number
from mmrl_core.rounding import DIGITS
from mmrl_core.search.trial import Objective, Record, Scores, State, TrialSettings

if TYPE_CHECKING:
    from ray.actor import ActorHandle

DIED = "its process died again and again"  # the failure of a lost trial; a resumed search tries it again
KEYS = ("number", "params", "scores", "seconds", "state", "failure")


def trial_key(params: TrialSettings) -> str:
    """The name of a trial's file, and of the trial in MLflow: by DIGITS digits of each setting, since the same searcher
    draws others beyond them on another machine."""
    return _digest({key: _rounded(value) for key, value in params.items()})


def _rounded(value: float | str) -> float | str:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _digest(params: TrialSettings) -> str:
    return hashlib.sha256(canonical_json(params)).hexdigest()[:16]


class Ledger:
    """Records by trial: number, params, scores and seconds of each partition, state, failure.

    A disk that takes no more ends the writing, not the search: `unwritten` then says why.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.unwritten: str | None = None
        self.warnings: dict[str, None] = {}
        records = filter(None, map(_read, sorted(self.folder.glob("*.json"))))
        self.by_key = {trial_key(record["params"]): record for record in records}

    def reopen(self) -> None:
        """Let the trials that were lost be tried again."""
        for record in self.by_key.values():
            if record["state"] == "lost":
                record |= {"state": "running", "failure": None}

    def open(self, params: TrialSettings) -> Record:
        """The trial's record, a new one where there is none."""
        key = trial_key(params)
        if key not in self.by_key:
            self.by_key[key] = {"key": key, "number": len(self.by_key), "params": params, "scores": [], "seconds": [],
                                "state": "running", "failure": None}  # fmt: skip
            self._write(self.by_key[key])
        return self.by_key[key]

    def add(self, params: TrialSettings, index: int, scores: Scores, seconds: float) -> None:
        """Enter a partition's scores; one that is there already stays."""
        record = self.by_key[trial_key(params)]
        if len(record["scores"]) == index:
            record["scores"].append(scores)
            record["seconds"].append(seconds)
            self._write(record)

    def end(self, params: TrialSettings, state: State, failure: str | None = None) -> Record:
        """Close the trial, unless it is closed; returns its record."""
        record = self.open(params)
        if record["state"] == "running":
            record |= {"state": state, "failure": failure}
            self._write(record)
        return record

    def all(self) -> list[Record]:
        """Records in the order in which the trials began."""
        return sorted(self.by_key.values(), key=lambda record: record["number"])

    def records(self, drawn: Iterable[TrialSettings]) -> list[Record]:
        """Those of these settings that there are, each once, in the order of the settings."""
        keys = dict.fromkeys(map(trial_key, drawn))
        return [self.by_key[key] for key in keys if key in self.by_key]

    def unfinished(self, drawn: Iterable[TrialSettings]) -> list[TrialSettings]:
        """Settings whose trial has no end, or has not begun, each once."""
        by_key = {trial_key(params): params for params in drawn}
        return [params for key, params in by_key.items() if key not in self.by_key or self._runs(key)]

    def warn(self, warning: str) -> None:
        """Keep what a worker has to say to the person: its own output stays in Ray's logs."""
        self.warnings[warning] = None

    def troubles(self) -> list[str]:
        """Warnings, and why records are missing on disk."""
        lost = f"trials were not kept for a resume ({self.unwritten}); free some space"
        return [*self.warnings, *([lost] if self.unwritten else [])]

    def _runs(self, key: str) -> bool:
        return self.by_key[key]["state"] == "running"

    def _write(self, record: Record) -> None:
        values = dict(record)
        del values["key"]
        try:
            write_json(self.folder / f"{record['key']}.json", values)
            self.unwritten = None
        except OSError as error:
            self.unwritten = f"{self.folder}: {error.strerror or error}"


class LedgerActor:
    """The Ray actor that keeps a search's ledger, as driver and workers call it: each call waits for its answer."""

    def __init__(self, actor: "ActorHandle"):
        self._actor = actor

    def reopen(self) -> None:
        self._call("reopen")

    def open(self, params: TrialSettings) -> Record:
        return self._call("open", params)

    def add(self, params: TrialSettings, index: int, scores: Scores, seconds: float) -> None:
        self._call("add", params, index, scores, seconds)

    def end(self, params: TrialSettings, state: State, failure: str | None = None) -> Record:
        return self._call("end", params, state, failure)

    def all(self) -> list[Record]:
        return self._call("all")

    def records(self, drawn: Iterable[TrialSettings]) -> list[Record]:
        return self._call("records", drawn)

    def unfinished(self, drawn: Iterable[TrialSettings]) -> list[TrialSettings]:
        return self._call("unfinished", drawn)

    def warn(self, warning: str) -> None:
        self._call("warn", warning)

    def troubles(self) -> list[str]:
        return self._call("troubles")

    def _call(self, method: str, *arguments: object) -> Any:
        import ray

        return ray.get(getattr(self._actor, method).remote(*arguments))


def _read(path: Path) -> Record | None:
    """A whole record; None for a damaged one, whose trial runs again. Earlier releases named it by every digit."""
    try:
        record = read_json(path, made_by="mmrl tune", keys=KEYS, shape=Record)
    except UserError:
        return None
    whole = cast(Record, {"key": path.stem, **{name: record[name] for name in KEYS}})
    names = trial_key(record["params"]), _digest(record["params"])
    return whole if path.stem in names and _compare(whole["scores"]) else None


def _compare(scores: list[Scores]) -> bool:
    """Whether every partition has the same numbers by name, among them the objectives."""
    numbers = [{name for name, value in one.items() if is_number(value)} | {"losses"} for one in scores]
    return all({*get_args(Objective)} <= names == numbers[0] and one.keys() <= names
               for names, one in zip(numbers, scores, strict=True))  # fmt: skip
