"""The oracle's step in one cell: whether it fits into memory, its peak, and its time under glibc's own settings."""

import statistics
from typing import NamedTuple

from benchmarks.support.cases import Case, Step, oracle_step
from benchmarks.support.machine import seconds
from benchmarks.support.memory import SHARE, SPARE, as_found, available, peak_of

SLOW = 10.0  # seconds of a step beyond which one measurement has to do
PROBES = (10, 20)  # classes


class Baseline(NamedTuple):
    step: Step | None
    peak: int | None  # bytes
    found: float  # seconds under glibc's own settings
    rounds: int
    method: str


def measure_baseline(case: Case, rounds: int) -> Baseline:
    """Peak and time in the first step, the time again where it is short."""
    as_found()
    step, times = oracle_step(case), []
    peak = peak_of(lambda: times.append(seconds(step)))
    rounds = rounds if times[0] <= SLOW else 1
    times += [seconds(step) for _ in range(rounds - 1)]
    return Baseline(step, peak, statistics.median(times), rounds, case.method)


class Forecast:
    """The oracle's peaks so far, by batch and classes, and what they say of the next one."""

    def __init__(self):
        self.peaks: dict[int, dict[int, int]] = {}

    def note(self, case: Case, peak: int | None) -> None:
        if peak:
            self.peaks.setdefault(case.batch, {})[case.classes] = peak

    def refusal(self, case: Case) -> str | None:
        """Why the oracle's step is left out: it would take more of the memory than is safe; None if it fits."""
        limit, known = SHARE * available(), self.peaks.setdefault(case.batch, {})
        if case.classes in known or case.classes <= min(PROBES):
            return None
        if len(known) < 2 and (not known or predicted_peak(known, case.classes) > limit):
            as_found()
            for classes in PROBES:
                probe = case._replace(classes=classes)
                self.note(probe, peak_of(oracle_step(probe)))
        needed = SPARE * predicted_peak(known, case.classes) if known else 0  # the heap is warmed with as much
        return f"the oracle needs {needed / 1e9:.0f} GB of {limit / 1e9:.0f}" if needed > limit else None


def predicted_peak(peaks: dict[int, int], classes: int) -> float:
    """The peak at a class count from those at others: a straight line through the last two, or through zero."""
    *before, (c, peak) = sorted(peaks.items())[-2:]
    c_before, peak_before = before[0] if before else (0, 0)
    return peak + (peak - peak_before) / (c - c_before) * (classes - c)
