"""The sqlite store of the working directory, its adapters, and archives of it."""

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from flows.registry import promotion, versions
from flows.tracking import store
from mmrl_core.files import sha256_file
from tests.support.serving import NAME, settings

LOCAL = "sqlite:///mlflow.db"


def state() -> tuple:
    """Aliases, tags and history of the store here, and each version's adapter as it loads."""
    client = store.connect(store.absolute(LOCAL), create=False)
    tags = versions.tags_by_version(client, NAME)
    loaded = {number: versions.load(f"models:/{NAME}/{number}").card["sha256"] for number in tags}
    return versions.versions_by_alias(client, NAME), tags, promotion.history(settings(), "digits"), loaded


def digest(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*"))
            if path.is_file() and path.suffix != ".lock"}  # fmt: skip


def rewrite(change: Callable[[Path, dict], None], name: str = "saved.tar") -> None:
    """Change an archive's files and manifest, with sums that are right again."""
    folder = Path("unpacked")
    with tarfile.open(name) as archive:
        archive.extractall(folder, filter="data")
    manifest = json.loads((folder / "manifest.json").read_text())
    change(folder, manifest)
    (folder / "manifest.json").unlink()
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if isinstance(manifest["sha256"], dict):
        manifest["sha256"] = {str(path.relative_to(folder)): sha256_file(path) for path in files}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with tarfile.open(name, "w") as archive:
        for path in [*files, folder / "manifest.json"]:
            archive.add(path, str(path.relative_to(folder)))
    shutil.rmtree(folder)


def execute(database: Path, *statements: str) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def altered(folder: Path) -> None:
    [tensors] = folder.rglob("adapter.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"\1")


def elsewhere(location: str) -> Callable[[Path, dict], None]:
    def change(folder: Path, manifest: dict) -> None:
        execute(folder / "database", f"UPDATE model_versions SET storage_location = '{location}' WHERE version = 2")

    return change


def kill(event: str, *command: str) -> None:
    """Run `mmrl` until Python tells its audit hooks of this event, which is as soon as it has been imported."""
    code = f"""
import os, signal, sys
from flows.cli import main
from flows.maintenance import backup, restore
sys.argv = ["mmrl", *{command!r}]
sys.addaudithook(lambda event, arguments: event == {event!r} and os.kill(os.getpid(), signal.SIGKILL))
main()
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == -signal.SIGKILL


def left() -> list[Path]:
    return [path for path in Path.cwd().rglob(".mmrl-aside-*") if path.is_dir()]
