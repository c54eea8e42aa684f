"""Who holds the paths that DVC finds busy: it believes an entry of .dvc/tmp/rwlock while any process has its pid.

So an entry that a killed DVC left, also one of before a restart, is believed as long as another process has that pid.
"""

import json
from collections.abc import Collection, Iterable
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from flows.tracking.redaction import redacted

RWLOCK = Path(".dvc", "tmp", "rwlock")
LONGEST = 120  # characters of a command that are shown

Entry = dict[str, Any]  # {"pid": ..., "cmd": the words of DVC's command, sys.argv, with spaces between}


class Holder(NamedTuple):
    """An entry, the command of the process that has its pid, and what is certain: that it is that entry's process
    (True), that it is not (False), or neither (None)."""

    entry: Entry
    command: str
    wrote_it: bool | None

    @property
    def line(self) -> str:
        """One line for people."""
        pid, cmd = self.entry["pid"], shown(self.entry["cmd"])
        if self.wrote_it:
            return f"it is busy: pid {pid} works on the same files (`{shown(self.command)}`)"
        if self.wrote_it is None:
            doubt = f"if that is none of DVC's, remove {RWLOCK}"
            return f"it is busy: `{cmd}` locked the same files as pid {pid}, which is `{shown(self.command)}`; {doubt}"
        return f"the lock of `{cmd}`, which has ended, is removed: pid {pid} is now `{shown(self.command)}`"


def shown(command: str) -> str:
    """What may be printed of a command: no password, and not all of a long one."""
    text = redacted(command)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 4]} ..."


def settle(root: Path | str, errors: Iterable[str]) -> list[Holder]:
    """Those who hold what DVC found busy, as its error names them; entries of DVC processes that have certainly ended
    are removed, and no other. Nobody where DVC's file is busy itself or cannot be read."""
    from dvc.exceptions import DvcException

    file, named = Path(root) / RWLOCK, "\n".join(errors)
    try:
        written, lock = file.stat().st_mtime, json.loads(file.read_text())
        holders = [_holder(entry, written) for entry in _distinct(lock) if f"(PID {entry['pid']}): " in named]
        if ended := [holder.entry for holder in holders if holder.wrote_it is False]:
            _edit(root, ended)
    except (DvcException, OSError, ValueError):
        return []
    return holders


def _edit(root: Path | str, ended: list[Entry]) -> None:
    """Remove entries from DVC's file, under DVC's lock on it."""
    from dvc.repo import Repo
    from dvc.rwlock import _edit_rwlock

    with Repo(str(root)) as repo:
        hardlink = repo.config["core"].get("hardlink_lock", False)
        with _edit_rwlock(repo.tmp_dir, repo.fs, hardlink) as lock:
            _remove(lock, ended)


def _remove(lock: dict[str, Any], ended: list[Entry]) -> None:
    for path in [path for path, entry in lock["write"].items() if entry in ended]:
        del lock["write"][path]
    for path, readers in list(lock["read"].items()):
        lock["read"][path] = [entry for entry in readers if entry not in ended]
        if not lock["read"][path]:
            del lock["read"][path]


def _distinct(lock: dict[str, Any]) -> list[Entry]:
    writers, readers = (lock.get(kind, {}).values() for kind in ("write", "read"))
    entries = [*writers, *chain.from_iterable(readers)]
    return list({(entry["pid"], entry["cmd"]): entry for entry in entries}.values())


def _holder(entry: Entry, written: float) -> Holder:
    """`written` is when the file was, the entry with it or earlier."""
    try:
        process = psutil.Process(entry["pid"])
        if process.status() == psutil.STATUS_ZOMBIE:
            return Holder(entry, "a zombie", False)
        words, program, began = process.cmdline(), process.exe(), process.create_time()
    except psutil.NoSuchProcess:
        return Holder(entry, "nobody", False)
    except psutil.AccessDenied:
        return Holder(entry, "a process of another user", None)
    command = " ".join(words)
    arguments = entry["cmd"].partition(" ")[2]  # the first word is the program or its file
    if arguments and command.endswith(f" {arguments}"):
        return Holder(entry, command, True)
    other = began > written or not _may_be_dvc([program, *words])
    return Holder(entry, command, False if other else None)


def _may_be_dvc(words: Collection[str]) -> bool:
    """Whether a process can be DVC or a program that calls it: Python, by whatever title, or DVC's executable."""
    return any(name in word for word in words for name in ("py", "dvc"))
