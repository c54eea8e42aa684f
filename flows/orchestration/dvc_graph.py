"""The DVC pipeline seen from outside: its graph, what is stale, and running one item. dvc.yaml owns the graph."""

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
from collections.abc import Callable, Collection, Mapping
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Literal, NamedTuple

import yaml

from flows.processes.lifeline import Lifeline
from flows.project.paths import STATE
from flows.project.progress import MARK
from mmrl_core.errors import Failed, UserError

Graph = dict[str, list[str]]

NODE, EDGE = re.compile(r'^"([^"]+)";$', re.M), re.compile(r'^"([^"]+)" -> "([^"]+)";$', re.M)
BUSY = ("Unable to acquire lock", "is busy, it is being blocked by")
EXIT_CODE = re.compile(r"exited with (-?\d+)")


class StageFailed(Failed):
    """A stage or DVC itself failed; the message names the stage, the last error line and the file of its output."""


class Ended(NamedTuple):
    """A DVC command: its exit status and the ends of stdout and stderr."""

    code: int
    lines: deque[str]
    errors: deque[str]


def stage_graph(root: Path | str = ".") -> Graph:
    """Every stage item and the items it reads from, in topological order; data sources (`*.dvc`) are left out."""
    dot = _ask(root, "dag", "--dot")
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
    """What one `dvc status` reports, and its descendants; `checked` items have just run, always_changed or not."""
    status = json.loads(_ask(root, "status", "--json"))
    stale = {name for name, changes in status.items() if changes != ["always changed"] or name not in checked}
    for name, upstream in graph.items():
        if not stale.isdisjoint(upstream):
            stale.add(name)
    return stale & graph.keys()


def run_stage(
    root: Path | str,
    name: str,
    lifeline: Lifeline,
    log: Callable[[str], object] = lambda line: None,
    env: Mapping[str, str] = os.environ,
    patience: float = 3600,
    timeout: float | None = None,
    show: Callable[[str], object] = lambda line: None,
) -> bool:
    """`dvc repro --single-item`, waiting for what another DVC works on; whether anything was run or restored.

    Its lines go to `log` and to .mmrl/logs, those of its progress to `show` as well. Raises UserError when the stage
    command exits 2, StageFailed otherwise and after `timeout` seconds.
    """
    path = _log_file(root, name)
    code, lines, errors = _patiently(
        patience, lambda: _dvc(root, ("repro", "--single-item", name), lifeline, log, env, path, timeout, show)
    )
    if code:
        raise _failure(f"stage {name}", errors, path)
    return not any("didn't change, skipping" in line for line in lines)


def transfer(
    root: Path | str,
    direction: Literal["pull", "push"],
    remote: str,
    lifeline: Lifeline,
    log: Callable[[str], object] = lambda line: None,
    env: Mapping[str, str] = os.environ,
    patience: float = 3600,
) -> None:
    """`dvc pull` or `dvc push` with the run cache. A remote that lacks files, as a new one does, is no failure."""
    args = (direction, "--run-cache", "--remote", remote, *(["--allow-missing"] if direction == "pull" else []))
    path = _log_file(root, direction)
    code, _, errors = _patiently(patience, lambda: _dvc(root, args, lifeline, log, env, path, None))
    if code:
        raise _failure(f"dvc {direction} with remote {remote!r}", errors, path)


def _log_file(root: Path | str, name: str) -> Path:
    """Where it is to be found later: the folder of logs outlives a worktree."""
    folder = Path(root) / STATE / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    return (folder.resolve() if folder.is_symlink() else folder) / f"{name.replace('/', '-')}.log"


def _patiently(patience: float, attempt: Callable[[], Ended]) -> Ended:
    """Attempts until one did not find another DVC in its way."""
    deadline, pause = time.monotonic() + patience, 0.5
    while True:
        ended = attempt()
        if not _busy(ended.errors) or ended.code == 0 or time.monotonic() > deadline:
            return ended
        time.sleep(pause)
        pause = min(2 * pause, 15)


def _dvc(root, args, lifeline, log, env, path: Path, timeout: float | None, show=lambda line: None) -> Ended:
    """One attempt. Nothing of the process group outlives it."""
    lines, errors = deque(maxlen=200), deque(maxlen=200)
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


def _pump(stream, kept: deque[str], file, log, show) -> None:
    """How far a stage is says nothing of why it failed, so that is not kept."""
    for raw in stream:
        line = raw.rstrip().removeprefix(MARK)
        file.write(line + "\n")  # at once: the other stream's lines go there too
        file.flush()
        log(line)
        show(line) if raw.startswith(MARK) else kept.append(line)


def _kill_group(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _failure(what: str, errors: Collection[str], path: Path) -> Exception:
    """DVC's own line says how the command ended, the one before it is the command's last."""
    own = [line for line in errors if line.startswith("ERROR: ")]
    said = [line for line in errors if line not in own and any(map(str.isalnum, line))]
    code = next((int(found[1]) for line in own if (found := EXIT_CODE.search(line))), None)
    if code == 2 and said:
        return UserError(f"{what}: {said[-1].strip()}")
    reason = (said if code is not None and said else own or said or ["it was stopped"])[-1].strip()
    ending = "" if code is None else f" (exit {code})"
    return StageFailed(f"{what} failed{ending}: {reason} -- its output is in {path}")


def _ask(root: Path | str, *args: str, patience: float = 3600) -> str:
    """A DVC query's stdout, once no other DVC process is in the way."""
    deadline = time.monotonic() + patience
    while True:
        command = [sys.executable, "-m", "dvc", "--wait-for-lock", *args]
        answer = subprocess.run(command, cwd=root, capture_output=True, text=True)
        if answer.returncode == 0:
            return answer.stdout
        if not _busy(answer.stderr.splitlines()) or time.monotonic() > deadline:
            raise UserError(f"`dvc {' '.join(args)}` in {Path(root).resolve()}: {answer.stderr.strip()}")
        time.sleep(2)


def _always_changed(stages: dict, name: str) -> bool:
    return bool(stages.get(name.partition("@")[0], {}).get("always_changed"))


def _busy(lines: Collection[str]) -> bool:
    return any(line.startswith("ERROR: ") and sign in line for line in lines for sign in BUSY)
