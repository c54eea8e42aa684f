"""The bar at the bottom of a terminal."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from flows.project.progress import Count


class Words(ProgressColumn):
    """`epoch 3/10, loss 0.412, about 4 s left`; where the count has a unit, also how many per second."""

    def render(self, task: Task) -> Text:
        count, speed = task.fields["count"], task.finished_speed or task.speed
        rate = f", {speed:.0f} {count.unit}/s" if count.unit and speed else ""
        return Text(count.words(time.monotonic()) + rate)


class Bar:
    """Shows the innermost open count; when all are closed nothing of it stays on the terminal."""

    def __init__(self) -> None:
        self._counts: list[Count] = []  # open, the innermost last
        self._bars: Progress  # while a count is open

    def open(self, count: Count) -> None:
        if not self._counts:
            self._bars = _bars()
            self._bars.start()
        self._counts.append(count)
        self._show(count)

    def moved(self, count: Count) -> None:
        self._bars.update(self._bars.task_ids[0], completed=count.done, total=count.total)

    def ended(self, count: Count) -> None:
        pass

    def close(self, count: Count) -> None:
        self._counts.remove(count)
        if self._counts:
            self._show(self._counts[-1])
        else:
            self._bars.stop()

    def _show(self, count: Count) -> None:
        for task in self._bars.task_ids:
            self._bars.remove_task(task)
        self._bars.add_task(count.label, total=count.total, completed=count.done, count=count)


def _bars() -> Progress:
    """Lines printed meanwhile appear above the bar; those on stdout only if that is the terminal as well."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), Words())
    return Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty())
