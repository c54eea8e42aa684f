"""Releasing the champion: a bundle in releases/, checked in a process of its own, before the alias `released` names it.

A champion that fails the check is rolled back; a check that was killed says nothing about it. Serving that must wait
for the check follows the alias `released` instead of `champion`.
"""

import contextlib
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from flows.project.outputs import atomic_output, remove_leftovers
from flows.registry import decisions
from flows.registry.locked_model import PATIENCE, SHA256, Identity, locked
from flows.registry.promotion import rollback
from flows.registry.versions import FetchedVersion, fetch, registered_name, tags_by_version, versions_by_alias
from flows.settings.params import Params
from flows.tracking.locks import exclusive
from flows.tracking.store import connect, store_errors, store_uri
from mmrl_core.clip.weights.licences import licence_line
from mmrl_core.errors import BAD, Damaged, Failed, UserError
from mmrl_core.evaluation.gate import Decision
from mmrl_core.method.adapter_card import read_unverified_card

RELEASED = "released"  # the alias, and the verdict in the history
RELEASES = Path("releases")
ADAPTER = "adapter"  # its folder in a bundle
MEASURED = ("base_accuracy", "novel_accuracy", "all_accuracy", "harmonic_mean")
RECORDED = ("pool_digest", "git_commit", "dvc_lock_sha256", "preset", "protocol", "shots", "seed")


class ReleaseFailed(Failed):
    """A champion is damaged; the message says how, and which version is live now."""


class NotChecked(Failed):
    """The check came to no verdict: it was killed, or ran out of memory or disk. Nothing was changed."""


class ReleasedVersion(NamedTuple):
    """A champion whose bundle passed its check; `created` is false where it was released before."""

    name: str
    version: int
    folder: str
    created: bool


def release(params: Params, dataset: str) -> ReleasedVersion:
    """Bundle, check and release the dataset's champion; costs nothing when that is done already.

    Raises UserError where there is no champion, StoreFailed where it cannot be fetched, NotChecked where the check came
    to no verdict, all with nothing changed, and ReleaseFailed after a rollback.
    """
    uri, name = store_uri(params), registered_name(dataset, params.data.protocol)
    with exclusive(uri, f"release-{name}", PATIENCE):  # an event, a webhook and a watch may report the same move
        while True:
            champion, released = _champion_and_released(params, uri, name)
            folder = RELEASES / name / str(champion.version)
            if champion == released and _bundled(folder) == champion.adapter_sha256:
                _finish(params, dataset, uri, name)
                return ReleasedVersion(name, champion.version, str(folder), False)
            try:
                _build(uri, name, champion, folder)
            except Damaged as error:
                reason = f"release of version {champion.version} failed: {error}"
                raise ReleaseFailed(_roll_back(params, dataset, reason, champion)) from None
            if _name_released(params, dataset, champion, folder):
                return ReleasedVersion(name, champion.version, str(folder), True)


def _champion_and_released(params: Params, uri: str, name: str) -> tuple[Identity, Identity | None]:
    """The versions of these two aliases. Raises UserError where there is no champion."""
    with store_errors(uri):
        client = connect(uri, create=False)
        aliases, versions = versions_by_alias(client, name), tags_by_version(client, name)
    if params.registry.alias not in aliases:
        raise UserError(f"{name} has no {params.registry.alias}; run `mmrl promote` first")
    by_alias = {alias: Identity(one, versions.get(one, {}).get(SHA256)) for alias, one in aliases.items()}
    return by_alias[params.registry.alias], by_alias.get(RELEASED)


def _finish(params: Params, dataset: str, uri: str, name: str) -> None:
    """Close the decision of a release that was killed once its alias had moved."""
    with store_errors(uri):
        cut_off = decisions.is_open(connect(uri), uri, name, RELEASED)
    if cut_off:
        with locked(params, dataset):
            pass


def _bundled(folder: Path) -> str | None:
    """The sha256 of the adapter in a bundle, as its card says; None where there is none."""
    try:
        return read_unverified_card(folder / ADAPTER, made_by="mmrl flow release").get("sha256")
    except UserError:
        return None


def _name_released(params: Params, dataset: str, champion: Identity, folder: Path) -> bool:
    """Point the alias at a version whose bundle passed. False where it is no longer the champion: then the one that is
    has to be released, and this one may have been withdrawn while it was checked."""
    with locked(params, dataset) as model:
        if model.champion is None or model.identity(model.champion) != champion:
            return False
        if any(past.verdict == RELEASED for past in model.finished) and model.aliases.get(RELEASED) == champion.version:
            return True  # by the decision of one that was killed
        decision = Decision(RELEASED, [f"checked in a process of its own; {folder}"], {})
        model.apply(champion.version, decision, {RELEASED: champion.version}, {}, [], about=RELEASED)
    return True


def _build(uri: str, name: str, champion: Identity, folder: Path) -> None:
    """Bundle the version and check the bundle; one of this adapter that an earlier release left only has to pass the
    check again. Raises Damaged, NotChecked."""
    with contextlib.suppress(Damaged):
        if _bundled(folder) == champion.adapter_sha256:
            _check(folder, champion.version)
            remove_leftovers(folder)
            return
    try:
        with atomic_output(folder) as path:
            _bundle(uri, name, champion, path)
            _check(path, champion.version)
    except OSError as error:
        raise NotChecked(
            f"the bundle {folder} could not be written ({error.strerror or error}); nothing was changed, make room or "
            "mend that, then run `mmrl flow release` again"
        ) from None


def _bundle(uri: str, name: str, champion: Identity, path: Path) -> None:
    from mmrl_core.bundle import write_bundle

    with TemporaryDirectory() as folder:
        fetched = fetch(f"models:/{name}/{champion.version}", uri, folder)
        if fetched.tags.get(SHA256) != champion.adapter_sha256:
            raise NotChecked(
                f"version {champion.version} of {name} was replaced meanwhile; nothing was changed, repeat"
            )
        write_bundle(fetched.adapter, path, _facts(name, fetched))


def _facts(name: str, fetched: FetchedVersion) -> dict[str, Any]:
    tags = fetched.tags
    figures = {key.replace("_", " "): f"{float(tags[key]):.2%}" for key in MEASURED if key in tags}
    recorded = {key.replace("_", " "): tags[key] for key in RECORDED if key in tags}
    backbone = read_unverified_card(fetched.adapter, made_by="mmrl register")["backbone"]
    licence = {"licence of the backbone's weights": licence_line(backbone["name"], backbone["weights"])}
    return {"model": name, "version": fetched.version, **figures, **recorded, **licence}


def _check(folder: Path, version: int) -> None:
    """Check a bundle in a process of its own. Raises Damaged with the last line that it printed where that is its
    verdict, NotChecked where it ended in any other way."""
    command = [sys.executable, "-m", "mmrl_core.bundle", str(folder.absolute())]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if done.returncode == 0:
        return
    last_line = (done.stderr.strip().splitlines() or ["it said nothing"])[-1].removeprefix("mmrl_core.bundle: ")
    if done.returncode == BAD:
        raise Damaged(last_line)
    end = f"by signal {-done.returncode}" if done.returncode < 0 else f"with exit status {done.returncode}"
    raise NotChecked(
        f"the check of version {version} ended {end} ({last_line}), which says nothing about the version; nothing was "
        "changed, run `mmrl flow release` again"
    )


def _roll_back(params: Params, dataset: str, reason: str, failed: Identity) -> str:
    """Make the version before the champion again, where there is one and the champion is still the one that failed;
    what was done, for people."""
    try:
        return f"{reason}; version {rollback(params, dataset, reason, failed).version} is the champion again"
    except UserError as error:
        return f"{reason}; {error}"
