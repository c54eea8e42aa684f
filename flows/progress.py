"""Progress bars on stderr; silent where stderr is no terminal."""

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress(label: str, total: int | None = None, unit: str = "") -> Iterator[Callable[..., None]]:
    """Yield `report(done, total=None, note="")`, which moves the bar; with a `unit` it also shows how many a second."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

    class Rate(ProgressColumn):
        def render(self, task) -> str:
            speed = task.finished_speed or task.speed
            return f"{speed:.0f} {unit}/s" if unit and speed else ""

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    note = TextColumn("{task.fields[note]}")
    with Progress(*columns, Rate(), note, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(label, total=total, note="")

        def report(done: int, total: int | None = total, note: str = "") -> None:
            bars.update(task, completed=done, total=total, note=note)

        yield report
