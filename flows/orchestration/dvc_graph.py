"""The DVC pipeline as the flow uses it: its graph, which items are stale, running one. dvc.yaml defines the graph."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO

import yaml

from flows.orchestration import dvc_holders
from flows.processes.lifeline import Lifeline
from flows.project.paths import STATE
from flows.project.progress import MARK, say
from mmrl_core.errors import Failed, UserError

Graph = dict[str, list[str]]
OnLine = Callable[[str], object]  # takes one line of output

NODE, EDGE = re.compile(r'^"([^"]+)";$', re.M), re.compile(r'^"([^"]+)" -> "([^"]+)";$', re.M)
BUSY = ("Unable to acquire lock", "is busy, it is being blocked by")
EXIT_CODE = re.compile(r"exited with (-?\d+)")


class StageFailed(Failed):
    """A stage or DVC itself failed; the message names the stage, the last error line and the file of its output."""


class Ended(NamedTuple):
    """A DVC command that has ended: its exit status and the last lines of stdout and stderr."""

    code: int
    lines: deque[str]
    errors: deque[str]


def stage_graph(root: Path | str = ".") -> Graph:
    """Every stage item and the items it reads from, in topological order; data sources (`*.dvc`) are left out."""
    dot = _query(root, "dag", "--dot")
    upstream: Graph = {name: [] for name in NODE.findall(dot) if not name.endswith(".dvc")}
    for source, target in EDGE.findall(dot):
        if source in upstream and target in upstream:
            upstream[target].append(source)
    return {name: upstream[name] for name in TopologicalSorter(upstream).static_order()}


def source_checks(root: Path | str, graph: Graph) -> list[str]:
    """The `always_changed` items that read from no other: run first, they say what else is stale."""
    stages = yaml.safe_load((Path(root) / "dvc.yaml").read_text())["stages"]
    return [name for name, upstream in graph.items() if not upstream and _always_changed(stages, name)]


def stale_stages(root: Path | str, graph: Graph, checked: Collection[str] = ()) -> set[str]:
    """The items that `dvc status` reports as changed, and their descendants. `checked` items have just run: that they
    are always_changed does not count."""
    status = json.loads(_query(root, "status", "--json"))
    stale = {name for name, changes in status.items() if changes != ["always changed"] or name not in checked}
    for name, upstream in graph.items():
        if not stale.isdisjoint(upstream):
            stale.add(name)
    return stale & graph.keys()


def run_stage(
    root: Path | str,
    name: str,
    lifeline: Lifeline,
    log: OnLine = lambda line: None,
    env: Mapping[str, str] = os.environ,
    patience: float = 3600,
    timeout: float | None = None,
    show: OnLine = lambda line: None,
) -> bool:
    """Run `dvc repro --single-item`; whether anything was run or restored.

    While another DVC process holds the item, it is tried again for `patience` seconds. Lines of output go to `log` and
    to .mmrl/logs, those of progress and on who holds the item to `show` as well. Raises UserError when the stage's
    command exits 2, StageFailed when it fails otherwise or takes longer than `timeout` seconds.
    """
    path, args = _log_file(root, name), ("repro", "--single-item", name)

    def tell(line: str) -> None:
        log(line)
        show(line)

    code, lines, errors = _until_not_busy(
        root, patience, lambda: _run_dvc(root, args, lifeline, log, env, path, timeout, show), tell
    )
    if code:
        raise _failure(f"stage {name}", errors, path)
    return not any("didn't change, skipping" in line for line in lines)


def transfer(
    root: Path | str,
    direction: Literal["pull", "push"],
    remote: str,
    lifeline: Lifeline,
    log: OnLine = lambda line: None,
    env: Mapping[str, str] = os.environ,
    patience: float = 3600,
) -> None:
    """Run `dvc pull` or `dvc push` with the run cache. A pull from a remote that lacks files, such as a new one, is no
    failure. Raises StageFailed."""
    args = (direction, "--run-cache", "--remote", remote, *(["--allow-missing"] if direction == "pull" else []))
    path = _log_file(root, direction)
    code, _, errors = _until_not_busy(root, patience, lambda: _run_dvc(root, args, lifeline, log, env, path), log)
    if code:
        raise _failure(f"dvc {direction} with remote {remote!r}", errors, path)


def _log_file(root: Path | str, name: str) -> Path:
    """Where an item's output is kept: a worktree's folder of logs is a link, whose target outlives it."""
    folder = Path(root) / STATE / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    return (folder.resolve() if folder.is_symlink() else folder) / f"{name.replace('/', '-')}.log"


def _until_not_busy(root: Path | str, patience: float, attempt: Callable[[], Ended], tell: OnLine) -> Ended:
    """Attempt until no other DVC process holds what is needed, for at most `patience` seconds; `tell` gets a line on
    who does, and so do the errors in the end. What is held for a process that has ended is freed."""
    deadline, pause, told = time.monotonic() + patience, 0.5, set[str]()
    while True:
        ended = attempt()
        if ended.code == 0 or not _is_busy(ended.errors):
            return ended
        holders = dvc_holders.settle(root, ended.errors)
        for line in {holder.line: None for holder in holders if holder.line not in told}:
            tell(line)
            told.add(line)
        if any(holder.wrote_it is False for holder in holders):
            continue
        if time.monotonic() > deadline:
            ended.errors.extend(f"ERROR: {holder.line}" for holder in holders)
            return ended
        time.sleep(pause)
        pause = min(2 * pause, 15)


def _run_dvc(
    root: Path | str,
    args: Iterable[str],
    lifeline: Lifeline,
    log: OnLine,
    env: Mapping[str, str],
    path: Path,
    timeout: float | None = None,
    show: OnLine = lambda line: None,
) -> Ended:
    """Run one DVC command; no process of its group outlives it."""
    lines: deque[str] = deque(maxlen=200)
    errors: deque[str] = deque(maxlen=200)
    with path.open("w") as file:
        process = lifeline.start(
            "dvc", "--wait-for-lock", *args,
            cwd=root, env=env, text=True, errors="replace", stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        readers = [
            threading.Thread(target=_pump, args=(stream, kept, file, log, show), daemon=True)
            for stream, kept in ((process.stdout, lines), (process.stderr, errors))
        ]
        try:
            for reader in readers:
                reader.start()
            return Ended(process.wait(timeout), lines, errors)
        except subprocess.TimeoutExpired:
            errors.append(f"ERROR: it was stopped after {timeout:g} seconds")
            return Ended(1, lines, errors)
        finally:
            _kill_group(process)
            for reader in readers:
                reader.join(timeout=10)  # a daemon outside the group may hold the pipe open


def _pump(stream: Iterable[str], kept: deque[str], file: TextIO, log: OnLine, show: OnLine) -> None:
    """Pass on every line of a stream. Lines of progress are not kept: they do not say why a stage failed."""
    for raw in stream:
        line = raw.rstrip().removeprefix(MARK)
        file.write(line + "\n")  # at once: the other stream's lines go there too
        file.flush()
        log(line)
        if raw.startswith(MARK):
            show(line)
        else:
            kept.append(line)


def _kill_group(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class _Errors(NamedTuple):
    """What stderr says of a failure: the exit status of the stage's command, where DVC names one; the last line of the
    command and the last of DVC itself, "" where there is none."""

    exit_code: int | None
    of_command: str
    of_dvc: str


def _parse_errors(lines: Collection[str]) -> _Errors:
    of_dvc = [line for line in lines if line.startswith("ERROR: ")]
    of_command = [line for line in lines if not line.startswith("ERROR: ") and any(map(str.isalnum, line))]
    exit_code = next((int(match[1]) for line in of_dvc if (match := EXIT_CODE.search(line))), None)
    last_of_command, last_of_dvc = (kept[-1].strip() if kept else "" for kept in (of_command, of_dvc))
    return _Errors(exit_code, last_of_command, last_of_dvc)


def _failure(what: str, lines: Collection[str], path: Path) -> UserError | StageFailed:
    """The error to raise for a DVC command that failed with these lines on stderr."""
    errors = _parse_errors(lines)
    if errors.exit_code == 2 and errors.of_command:
        return UserError(f"{what}: {errors.of_command}")
    if errors.exit_code is None:
        reason = f"failed: {errors.of_dvc or errors.of_command or 'it was stopped'}"
    else:
        reason = f"failed (exit {errors.exit_code}): {errors.of_command or errors.of_dvc}"
    return StageFailed(f"{what} {reason} -- its output is in {path}")


def _query(root: Path | str, *args: str, patience: float = 3600) -> str:
    """A DVC query's stdout, waiting while another DVC process holds a lock. Raises UserError where it fails."""

    def attempt() -> Ended:
        command = [sys.executable, "-m", "dvc", "--wait-for-lock", *args]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
        return Ended(done.returncode, deque(done.stdout.splitlines()), deque(done.stderr.strip().splitlines()))

    ended = _until_not_busy(root, patience, attempt, say)
    if ended.code:
        errors = "\n".join(ended.errors)
        raise UserError(f"`dvc {' '.join(args)}` in {Path(root).resolve()}: {errors}")
    return "\n".join(ended.lines)


def _always_changed(stages: Mapping[str, Mapping[str, Any]], name: str) -> bool:
    return bool(stages.get(name.partition("@")[0], {}).get("always_changed"))


def _is_busy(lines: Collection[str]) -> bool:
    """Whether DVC failed because another DVC process held a lock."""
    return any(line.startswith("ERROR: ") and sign in line for line in lines for sign in BUSY)
