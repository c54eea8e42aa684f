"""Counts what this process changes, in a store and below a folder, and kills the process before one of the changes.

A change is a transaction that wrote something, just before it is committed, or a call that alters the file system.
Requests that only read, locks, and files elsewhere are none. Neither can be taken back: it is for forked processes.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy.event
from sqlalchemy.engine import Engine

WRITES = ("INSERT", "UPDATE", "DELETE", "CREATE", "ALTER", "DROP", "TRUNCATE")
OPENED_TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
NOT_COUNTED = (".mmrl/locks",)


class Changes:
    """The changes of this process from now on, in words; before the one numbered `kill_before` (the first is 1) it
    kills itself."""

    def __init__(self, folder: Path, kill_before: int | None = None):
        self.made: list[str] = []
        self._folder, self._kill_before, self._heard = str(folder), kill_before, False
        self._watched: dict[str, Callable[..., None]] = {
            "open": self._open, "os.rename": self._move, "os.link": self._move, "os.symlink": self._move,
            "os.mkdir": self._mkdir, "os.remove": self._remove, "os.rmdir": self._remove, "os.truncate": self._truncate,
            "sqlite3.connect": self._connect, "subprocess.Popen": self._start,
        }  # fmt: skip
        sys.addaudithook(self._hear)
        sqlalchemy.event.listen(Engine, "after_cursor_execute", self._executed)
        sqlalchemy.event.listen(Engine, "commit", self._commit)
        sqlalchemy.event.listen(Engine, "rollback", lambda connection: connection.info.pop("wrote", None))

    def _before(self, what: str, last_act: Callable[[], object] = lambda: None) -> None:
        self.made.append(what)
        if len(self.made) == self._kill_before:
            last_act()
            os.kill(os.getpid(), signal.SIGKILL)

    def _hear(self, event: str, arguments: tuple) -> None:
        if event in self._watched and not self._heard:
            self._heard = True  # what is asked below raises events too
            try:
                self._watched[event](*arguments)
            finally:
                self._heard = False

    def _inside(self, path: Any, folder: int = -1) -> str | None:
        """The path relative to the folder; None for one elsewhere, and for what is not counted."""
        if not isinstance(path, (str, bytes, os.PathLike)):  # an open file's number
            return None
        base = os.getcwd() if folder is None or folder < 0 else os.readlink(f"/proc/self/fd/{folder}")
        name = os.path.relpath(os.path.join(base, os.fsdecode(path)), self._folder)
        return None if name.startswith("..") or any(one in name for one in NOT_COUNTED) else name

    def _open(self, path: Any, mode: Any, flags: int) -> None:
        """Killed when the file is there and empty: that is a worse state than none."""
        if flags & OPENED_TO_WRITE and (name := self._inside(path)):
            kept = flags & (os.O_CREAT | os.O_TRUNC | os.O_EXCL)
            self._before(f"write {name}", lambda: os.open(path, kept | os.O_WRONLY, 0o644) if kept else None)

    def _move(self, source: Any, target: Any, source_folder: int = -1, target_folder: int = -1) -> None:
        names = self._inside(source, source_folder), self._inside(target, target_folder)
        if any(names):
            self._before(f"move {names[0]} to {names[1]}")

    def _mkdir(self, path: Any, mode: int, folder: int = -1) -> None:
        name = self._inside(path, folder)
        path = os.path.join(self._folder, name or "")
        if name and not os.path.exists(path) and os.path.exists(os.path.dirname(path)):
            self._before(f"make {name}")

    def _remove(self, path: Any, folder: int = -1) -> None:
        name = self._inside(path, folder)
        if name and os.path.lexists(os.path.join(self._folder, name)):
            self._before(f"remove {name}")

    def _truncate(self, path: Any, length: int) -> None:
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        if name := self._inside(path):
            self._before(f"truncate {name}")

    def _connect(self, database: Any) -> None:
        """A database that is opened to be written without SQLAlchemy, whose commits are counted instead."""
        caller = sys._getframe(2).f_globals["__name__"]
        address, _, options = os.fsdecode(database).removeprefix("file:").partition("?")
        if not caller.startswith("sqlalchemy.") and "mode=ro" not in options and (name := self._inside(address)):
            self._before(f"open the database {name}")

    def _start(self, program: Any, arguments: Any, *_: Any) -> None:
        self._before(f"run {os.fsdecode(program)}")

    def _executed(self, connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.lstrip().upper().startswith(WRITES):
            connection.info.setdefault("wrote", []).append(" ".join(statement.split()[:3]))

    def _commit(self, connection: Any) -> None:
        if wrote := connection.info.pop("wrote", None):
            self._before(f"commit {', '.join(dict.fromkeys(wrote))}")
