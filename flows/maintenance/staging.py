"""Folders for what is being made: gone with the block, and what a killed process left goes with the next one."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

PREFIX, LOCK = ".mmrl-aside-", "lock"


@contextlib.contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """An empty folder in `folder`, on its file system, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_left(folder)
    place, lock = _claim(folder)
    try:
        content = place / "content"
        content.mkdir()
        yield content
    finally:
        shutil.rmtree(place, ignore_errors=True)
        lock.release()


def remove_left(folder: Path) -> None:
    """Remove the staging folders of processes that are gone."""
    for place in folder.glob(f"{PREFIX}*"):
        lock = FileLock(place / LOCK)
        with contextlib.suppress(OSError):  # in use, somebody else's, or gone by now
            lock.acquire(timeout=0)
            shutil.rmtree(place, ignore_errors=True)
            lock.release()


def _claim(folder: Path) -> tuple[Path, FileLock]:
    """A new folder whose lock is held; whoever clears up here may take it for a left one until then."""
    while True:
        place = Path(tempfile.mkdtemp(prefix=PREFIX, dir=folder))
        lock = FileLock(place / LOCK)
        with contextlib.suppress(Timeout, FileNotFoundError):
            lock.acquire(timeout=0)
            if (place / LOCK).exists():
                return place, lock
            lock.release()
