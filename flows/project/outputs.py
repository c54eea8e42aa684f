"""Outputs of stages and commands: written to a temporary path under a lock, then renamed into place, by a process that
ends when DVC does."""

import contextlib
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from flows.processes.under_dvc import die_with_dvc
from flows.project.paths import STATE
from mmrl_core.errors import UserError

RESERVED = ("data", "models", "results", "reports", ".dvc", ".git", ".mmrl")


@contextlib.contextmanager
def atomic_output(final: Path, *, merge: bool = False) -> Iterator[Path]:
    """Yield a temporary path for the block to write a file or a folder to; renamed to `final` if the block succeeds.

    A folder replaces the one that was there, or with `merge` only the files of the same names. Waits while another
    process writes the same output. A killed process leaves only its temporary folder, which the next one removes.
    """
    die_with_dvc()
    name = _name(final)
    with locked(name, f"another process is writing {final}"):
        work = _temporary_folder(final) / name
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            yield work / final.name
            _move_into_place(work / final.name, final, work / "replaced", merge)
        finally:
            shutil.rmtree(work, ignore_errors=True)
            if work.parent != STATE / "aside":
                with contextlib.suppress(OSError):  # another output is being written beside it
                    work.parent.rmdir()


def remove_leftovers(final: Path) -> None:
    """Remove what a killed writer of an output left, where the output itself is as it should be."""
    name = _name(final)
    with claimed(name) as free:
        if free:
            shutil.rmtree(_temporary_folder(final) / name, ignore_errors=True)


def _name(final: Path) -> str:
    """Of the lock and the temporary folder of an output."""
    return hashlib.sha256(str(final.absolute()).encode()).hexdigest()[:16]


def _temporary_folder(final: Path) -> Path:
    """A folder on the file system of `final`: a rename does not work across file systems."""
    return STATE / "aside" if final.absolute().is_relative_to(Path.cwd()) else final.absolute().parent / ".mmrl-aside"


def _move_into_place(written: Path, final: Path, replaced: Path, merge: bool) -> None:
    final.parent.mkdir(parents=True, exist_ok=True)
    if merge and final.is_dir():
        for path in written.iterdir():
            os.replace(path, final / path.name)
        return
    if final.is_dir():
        os.rename(final, replaced)
    os.replace(written, final)


@contextlib.contextmanager
def locked(name: str, busy: str) -> Iterator[None]:
    """Hold a lock of this repository. Where another process has it, prints `busy` once and waits."""
    lock = _lock(name)
    try:
        lock.acquire(timeout=0.1)
    except Timeout:
        print(f"{busy}; waiting for it", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def claimed(name: str) -> Iterator[bool]:
    """Try to take a lock of this repository without waiting; yields whether it was taken."""
    lock = _lock(name)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _lock(name: str) -> FileLock:
    folder = STATE / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{name}.lock")


def is_held(path: Path) -> bool:
    """Whether a process holds the lock file."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def check_out_path(out: Path | None, changed: bool) -> None:
    """Raise UserError unless `--out` names a new path that can be written and that DVC does not track; settings
    `changed` on the command line need one."""
    if changed and out is None:
        raise UserError("--set and --params on a stage need --out DIR: DVC would revert what they write elsewhere")
    if out is None:
        return
    if out.exists():
        raise UserError(f"--out {out} exists; name a new path, or remove it first")
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"--out {out} cannot be made: {parent} is no folder that can be written to")
    inside = out.resolve().is_relative_to(Path.cwd()) and out.resolve().relative_to(Path.cwd()).parts
    if inside and inside[0] in RESERVED:
        raise UserError(f"--out {out} lies in {inside[0]}/, which is kept by other tools; choose another folder")
