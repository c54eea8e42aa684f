"""Stage outputs: built aside under a lock, renamed into place at the end, by a process that dies with its parent."""

import contextlib
import ctypes
import hashlib
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from flows.paths import STATE
from mmrl_core.errors import UserError

TRACKED = ("data", "models", "results", "reports")
PR_SET_PDEATHSIG = 1


@contextlib.contextmanager
def building(final: Path) -> Iterator[Path]:
    """Yield a path that the block fills with a file or a folder, and that becomes `final` if the block succeeds.

    Waits while another process builds the same output. A killed process leaves nothing but a folder in .mmrl, which
    the next one removes.
    """
    die_with_dvc()
    name = hashlib.sha256(str(final.absolute()).encode()).hexdigest()[:16]
    with locked(name, f"another process is writing {final}"):
        work = STATE / "aside" / name
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            yield work / final.name
            _put(work / final.name, final, work / "replaced")
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _put(built: Path, final: Path, replaced: Path) -> None:
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.is_dir():
        os.rename(final, replaced)
    os.replace(built, final)


@contextlib.contextmanager
def locked(name: str, busy: str) -> Iterator[None]:
    """Hold a lock of this repository; says so once when it has to wait."""
    folder = STATE / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{name}.lock")
    try:
        lock.acquire(timeout=0.1)
    except Timeout:
        print(f"{busy}; waiting for it", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def die_with_dvc() -> None:
    """Under `dvc repro`, ask the kernel to kill this process when dvc dies: dvc itself leaves its child running."""
    if "DVC_STAGE" not in os.environ or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if not any("dvc" in command for command in _ancestors()):  # it died before the call above
        os.kill(os.getpid(), signal.SIGKILL)


def _ancestors() -> Iterator[str]:
    pid = os.getppid()
    while pid > 1:
        yield Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def check_out(out: Path | None, changed: bool) -> None:
    """Settings given on a stage's command line demand an output folder that DVC does not track."""
    if changed and out is None:
        raise UserError("--set and --params on a stage need --out DIR: DVC would revert what they write elsewhere")
    if out is not None and out.resolve().is_relative_to(Path.cwd()):
        top = out.resolve().relative_to(Path.cwd()).parts[:1]
        if not top or top[0] in TRACKED:
            raise UserError(f"--out {out} lies in a folder that DVC tracks; choose one outside {', '.join(TRACKED)}")
