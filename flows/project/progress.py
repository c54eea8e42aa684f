"""Progress on stderr: a bar where that is a terminal, else lines such as `train digits: epoch 3/10, about 4 s left`."""

import contextlib
import functools
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from flows.project.progress_bar import Bar

GAP, BEAT = 2, 7  # seconds between two lines, least and most (plus up to one GAP): there is one every ten seconds
AT_ONCE = 0.05  # seconds: an epoch or trial that is reported sooner was read from disk, not computed
MARK, MARKED = "\x02", "MMRL_MARK_PROGRESS"  # lines begin with the first where the environment variable is set


class ProgressReport(Protocol):
    """Says that `done` of `total` are done (None: as many as before), with a note such as the loss."""

    def __call__(self, done: int, total: int | None = None, note: str = "") -> None: ...


def progress(
    label: str, total: int | None = None, unit: str = "", what: str = ""
) -> contextlib.AbstractContextManager[ProgressReport]:
    """A context that shows how far work is, and gives the function to report it with. With `unit` it is shown as
    `320/800 images`, with `what` as `epoch 3/10`. Of nested contexts the innermost is shown."""
    on_terminal = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    return _counting(_bar() if on_terminal else _lines, Count(label, total, unit, what, time.monotonic()))


def lines(
    label: str, total: int | None = None, unit: str = "", what: str = ""
) -> contextlib.AbstractContextManager[ProgressReport]:
    """As `progress`, but in lines also on a terminal, for work that prints other lines as well, and without the time
    that is left, for steps that take unequal times."""
    return _counting(_lines, Count(label, total, unit, what, time.monotonic(), alike=False))


def say(line: str) -> None:
    """Print a line on stderr, unbroken by the lines of other threads. It counts as a sign of life: see BEAT."""
    _lines.say(line)


class Count:
    """How far work is, in words. Times are seconds of any one clock; `alike`: its steps take equal times."""

    def __init__(self, label: str, total: int | None, unit: str, what: str, now: float, alike: bool = True):
        self.label, self.total, self.unit, self.what, self.alike = label, total, unit, what, alike
        self.done, self.note = 0, ""
        self.began = self.moved = now
        self.before = 0  # done by an earlier process

    @property
    def is_through(self) -> bool:
        return bool(self.done) and self.done == self.total

    def move(self, now: float, done: int, total: int | None = None, note: str = "") -> None:
        if self.what and (now - self.moved < AT_ONCE or (done > 1 and not self.done)):
            self.before += done - self.done
        self.done, self.total, self.note, self.moved = done, total or self.total, note, now

    def words(self, now: float) -> str:
        """`epoch 3/10, loss 0.412, about 4 s left`."""
        return ", ".join(filter(None, (self._counted(), self.note, self._time(now)))) or "starting"

    def last_words(self, now: float) -> str:
        return ", ".join(filter(None, (self._counted(), self.note, f"{_span(now - self.began)} in all")))

    def _counted(self) -> str:
        if self.total is None and not self.done:
            return ""
        count = f"{self.done}" if self.total is None else f"{self.done}/{self.total}"
        return " ".join(filter(None, (self.what, count, self.unit)))

    def _time(self, now: float) -> str:
        """The time that is left, at the speed of this process; where that is not known, the time it has taken."""
        here = self.done - self.before
        if self.alike and here > 0 and self.total and self.total > self.done:
            each, rest = (self.moved - self.began) / here, self.total - self.done
            left = max(each * rest - (now - self.moved), each * (rest - 1))  # a step that is overdue may end any moment
            return f"about {_span(5 * round(left / 5) if left > 10 else max(left, 1))} left" if left >= 0.5 else ""
        return f"{_span(now - self.began)} so far" if now - self.began >= 1 else ""


def _span(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 0.95 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.0f} h"


@contextlib.contextmanager
def _counting(display: "Lines | Bar", count: Count) -> Iterator[ProgressReport]:
    def report(done: int, total: int | None = None, note: str = "") -> None:
        is_news = (done, note) != (count.done, count.note)
        count.move(time.monotonic(), done, total, note)
        if is_news:
            display.moved(count)

    display.open(count)
    try:
        yield report
        display.ended(count)  # not after an error, which has a line of its own
    finally:
        display.close(count)


class Lines:
    """Prints lines about the innermost open count: when it changes, at most every `gap` seconds, and from a thread at
    least every `beat` seconds."""

    def __init__(self, gap: float = GAP, beat: float = BEAT):
        self.gap, self.beat = gap, beat
        self._lock = threading.RLock()
        self._counts: list[Count] = []  # open, the innermost last
        self._stop, self._news, self._last = threading.Event(), False, ""
        self._spoken = self._told = 0.0  # when the last line was printed, and when the last one about a count

    def open(self, count: Count) -> None:
        with self._lock:
            self._counts.append(count)
            if (
                line := _line(count, count.words(time.monotonic()))
            ) != self._last:  # the outer count may have printed the same
                self._tell(line)
            if len(self._counts) == 1:
                self._stop = threading.Event()
                threading.Thread(target=self._keep_speaking, args=(self._stop,), daemon=True).start()

    def moved(self, count: Count) -> None:
        with self._lock:
            self._news = not count.is_through  # where it is, `ended` prints the last line
            self._speak()

    def ended(self, count: Count) -> None:
        if count.done:
            self._tell(_line(count, count.last_words(time.monotonic())))

    def close(self, count: Count) -> None:
        with self._lock:
            self._counts.remove(count)
            self._news = False
            if not self._counts:
                self._last = ""
                self._stop.set()

    def say(self, line: str) -> None:
        with self._lock, contextlib.suppress(OSError, ValueError):  # nobody reads stderr any more: work goes on
            self._spoken = time.monotonic()
            if sys.stderr is not None:
                sys.stderr.write(line + "\n")
                sys.stderr.flush()

    def _keep_speaking(self, stop: threading.Event) -> None:
        while not stop.wait(self.gap):
            with self._lock:
                if not stop.is_set():
                    self._speak()

    def _speak(self) -> None:
        """Print a line about the innermost count if it is time for one."""
        now, count = time.monotonic(), self._counts[-1]
        if now - self._spoken >= self.beat or (self._news and now - self._told >= self.gap):
            self._tell(_line(count, count.words(now)))

    def _tell(self, line: str) -> None:
        with self._lock:
            self._told, self._news, self._last = time.monotonic(), False, line
            self.say(line)


def _line(count: Count, words: str) -> str:
    return f"{MARK if MARKED in os.environ else ''}{count.label}: {words}"


_lines = Lines()


@functools.cache
def _bar() -> "Bar":
    from flows.project.progress_bar import Bar

    return Bar()
