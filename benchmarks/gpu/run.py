"""Runs a part and keeps what it found, whatever becomes of it: rows are written down as they come."""

import json
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu.bench import Bench, NotHere, Row
from mmrl_core.errors import UserError

Work = Callable[[Bench], Iterator[Row]]


class Part(NamedTuple):
    work: Work
    seconds: int  # that it may take


class Found(NamedTuple):
    """`skipped`: why it is nothing for this device; `error`: what it failed of."""

    rows: list[dict[str, Any]]
    seconds: float
    skipped: str | None = None
    error: str | None = None


def in_process(part: Part, limit: float, device: str, toy: bool) -> Found:
    """In a process of its own, which is ended at its limit: a card's broken state ends with it."""
    import tempfile

    context = get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.gpu.parts"])
    with tempfile.TemporaryDirectory() as folder:
        file, start = Path(folder, "rows"), time.monotonic()
        process = context.Process(target=_keep, args=(part.work, device, toy, file))
        process.start()
        process.join(limit)
        late = process.is_alive()
        if late:
            process.kill()
            process.join()
        found = _read(file, time.monotonic() - start)
    if late:
        return found._replace(error=f"took longer than its {limit:.0f} s")
    if process.exitcode and not found.error:
        return found._replace(error=f"its process ended with {process.exitcode}")
    return found


def here(part: Part, device: str, toy: bool, file: Path) -> Found:
    """In this process, with no limit."""
    start = time.monotonic()
    _keep(part.work, device, toy, file)
    return _read(file, time.monotonic() - start)


def _keep(work: Work, device: str, toy: bool, file: Path) -> None:
    """A line a row, and one of how it ended."""
    from mmrl_core.adapting.devices import device_of

    with open(file, "w") as lines:

        def put(**line: Any) -> None:
            print(json.dumps(line), file=lines, flush=True)

        try:
            for row in work(Bench(device_of(device), toy)):
                put(row=row._asdict())
        except NotHere as reason:
            put(skipped=str(reason))
        except UserError as error:
            put(error=str(error))
        except Exception as error:  # whatever it is, the other parts go on
            put(error=_in_a_line(error))


def _in_a_line(error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    message = (str(error).splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {message} ({Path(place.filename).name}:{place.lineno})"


def _read(file: Path, seconds: float) -> Found:
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    ends: dict[str, str] = {}
    for line in lines:
        ends |= {name: line[name] for name in ("skipped", "error") if name in line}
    rows = [line["row"] for line in lines if "row" in line]
    wrong = [row["what"] for row in rows if row["holds"] is False]
    if wrong and "error" not in ends:
        ends["error"] = f"does not hold: {'; '.join(wrong)}"
    return Found(rows, seconds, **ends)
