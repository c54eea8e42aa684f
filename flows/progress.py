"""Progress bars on stderr; silent where stderr is no terminal."""

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress(label: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """Yield `report(done, total=None, note="")`, which moves the bar."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    note = TextColumn("{task.fields[note]}")
    with Progress(*columns, note, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(label, total=total, note="")

        def report(done: int, total: int | None = total, note: str = "") -> None:
            bars.update(task, completed=done, total=total, note=note)

        yield report
