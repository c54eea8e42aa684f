"""Releasing the champion: a bundle in releases/, checked in a process of its own, before the alias `released` names it.

A champion that fails the check is rolled back. Serving that must wait for the check follows the alias `released`
instead of `champion`.
"""

import contextlib
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from flows.project.outputs import atomic_output
from flows.registry import decisions
from flows.registry.promotion import PATIENCE, rollback
from flows.registry.versions import FetchedVersion, fetch, registered_name, versions_by_alias
from flows.settings.params import Params
from flows.tracking.locks import exclusive
from flows.tracking.store import StoreFailed, connect, store_errors, store_uri
from mmrl_core.clip.licences import licence_line
from mmrl_core.errors import Failed, UserError
from mmrl_core.evaluation.gate import Decision
from mmrl_core.method.adapter_card import read_unverified_card

RELEASED = "released"  # the alias, and the verdict in the history
RELEASES = Path("releases")
MEASURED = ("base_accuracy", "novel_accuracy", "all_accuracy", "harmonic_mean")
RECORDED = ("pool_digest", "git_commit", "dvc_lock_sha256", "preset", "protocol", "shots", "seed")


class ReleaseFailed(Failed):
    """A champion could not be bundled or failed its check; the message says why, and which version is live now."""


class ReleasedVersion(NamedTuple):
    """A champion whose bundle passed its check; `created` is false where it was released before."""

    name: str
    version: int
    folder: str
    created: bool


def release(params: Params, dataset: str) -> ReleasedVersion:
    """Bundle, check and release the dataset's champion; costs nothing when that is done already.

    Raises UserError where there is no champion, StoreFailed where it cannot be fetched, ReleaseFailed after a rollback.
    """
    uri, name = store_uri(params), registered_name(dataset, params.data.protocol)
    with exclusive(uri, f"release-{name}", PATIENCE):  # an event, a webhook and a watch may report the same move
        return _release(params, dataset, uri, name)


def _release(params: Params, dataset: str, uri: str, name: str) -> ReleasedVersion:
    champion, released = _champion_and_released(params, uri, name)
    folder = RELEASES / name / str(champion)
    if champion == released and folder.exists():
        return ReleasedVersion(name, champion, str(folder), False)
    try:
        _build(uri, name, champion, folder)
    except StoreFailed:  # no fault of the champion's
        raise
    except UserError as error:
        raise ReleaseFailed(_roll_back(params, dataset, f"release of version {champion} failed: {error}")) from None
    with store_errors(uri):
        client = connect(uri)
        decision = Decision(RELEASED, [f"checked in a process of its own; {folder}"], {})
        run_id = decisions.record(client, uri, name, champion, released, decision, [])
        client.set_registered_model_alias(name, RELEASED, str(champion))
        decisions.close(client, run_id, moved=False)
    return ReleasedVersion(name, champion, str(folder), True)


def _champion_and_released(params: Params, uri: str, name: str) -> tuple[int, int | None]:
    """The versions of these two aliases. Raises UserError where there is no champion."""
    with store_errors(uri):
        aliases = versions_by_alias(connect(uri, create=False), name)
    if params.registry.alias not in aliases:
        raise UserError(f"{name} has no {params.registry.alias}; run `mmrl promote` first")
    return aliases[params.registry.alias], aliases.get(RELEASED)


def _build(uri: str, name: str, version: int, folder: Path) -> None:
    """Bundle the version and check the bundle; one that an earlier release left only has to pass the check again."""
    with contextlib.suppress(UserError):
        if folder.exists():
            return _check(folder)
    with atomic_output(folder) as path:
        _bundle(uri, name, version, path)
        _check(path)


def _bundle(uri: str, name: str, version: int, path: Path) -> None:
    from mmrl_core.bundle import write_bundle

    with TemporaryDirectory() as folder:
        fetched = fetch(f"models:/{name}/{version}", uri, folder)
        write_bundle(fetched.adapter, path, _facts(name, fetched))


def _facts(name: str, fetched: FetchedVersion) -> dict[str, Any]:
    tags = fetched.tags
    figures = {key.replace("_", " "): f"{float(tags[key]):.2%}" for key in MEASURED if key in tags}
    recorded = {key.replace("_", " "): tags[key] for key in RECORDED if key in tags}
    backbone = read_unverified_card(fetched.adapter, made_by="mmrl register")["backbone"]
    licence = {"licence of the backbone's weights": licence_line(backbone["name"], backbone["weights"])}
    return {"model": name, "version": fetched.version, **figures, **recorded, **licence}


def _check(folder: Path) -> None:
    """Check a bundle in a process of its own. Raises UserError with the last line that it printed."""
    command = [sys.executable, "-m", "mmrl_core.bundle", str(folder.absolute())]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        last_line = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(last_line.removeprefix("mmrl_core.bundle: "))


def _roll_back(params: Params, dataset: str, reason: str) -> str:
    """Make the version before the champion again, where there is one; what was done, for people."""
    try:
        return f"{reason}; version {rollback(params, dataset, reason).version} is the champion again"
    except UserError as error:
        return f"{reason}; {error}"
