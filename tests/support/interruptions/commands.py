"""What the children of server.py run, in a project's folder: the commands that are killed, and looks at what is there.

Imports what they need, so that it is imported once.
"""

import re
import shutil
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import alembic.autogenerate.api
import mlflow.artifacts
import mlflow.models
import mlflow.pyfunc
import mlflow.store.db.utils
import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store
import pandas
import psycopg2
import pyarrow
import sqlalchemy.dialects.postgresql
import sqlalchemy.dialects.sqlite

from flows.maintenance import backup as archive
from flows.project.paths import RunKey
from flows.registry import decisions, promotion, releases, versions
from flows.registry.releases import RELEASED
from flows.tracking.store import connect, database_file, store_uri
from flows.settings.params import Params
from mmrl_core.errors import Damaged
from mmrl_core.files import read_json

NAME = "digits-base-to-novel"
PARAMS = Params(datasets=["digits"], methods=["mmrl"], shots=[16], seeds=[1])
ARCHIVE = Path("../archives/saved.tar")
RANDOM = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
WHEN = re.compile(r"^[-0-9]+T[:0-9]+[+:0-9]*: ")  # before the reason of a rollback


def make(seeds: int) -> None:
    """Runs of so many seeds to be registered, and a store with its tables alone."""
    from tests.support.serving import make_run

    for seed in range(1, seeds + 1):
        make_run("digits", seed)
    make_run("letters", 1)
    Path("../archives").mkdir()
    _client()


def register(seed: int, dataset: str = "digits") -> None:
    versions.register(PARAMS, RunKey(dataset, "mmrl", 16, seed))


def promote(version: int | None = None, force: str | None = None) -> str:
    return promotion.promote(PARAMS, "digits", version, force=force).verdict


def rollback(reason: str) -> None:
    promotion.rollback(PARAMS, "digits", reason)


def release() -> None:
    releases.release(PARAMS, "digits")


def backup(file: str = str(ARCHIVE)) -> None:
    archive.backup(store_uri(PARAMS), Path(file))


def restore(overwrite: bool = False, file: str = str(ARCHIVE)) -> None:
    archive.restore(Path(file), store_uri(PARAMS), overwrite=overwrite)


def unname_released() -> None:
    """As if another version had been released meanwhile; its bundle stays."""
    _client().delete_registered_model_alias(NAME, RELEASED)


def delete_version(version: int) -> None:
    """As MLflow's page does, which removes its aliases too."""
    _client().delete_model_version(NAME, str(version))


def lose() -> None:
    """Everything that the store holds."""
    uri = store_uri(PARAMS)
    if database := database_file(uri):
        database.unlink()
    else:
        engine = sqlalchemy.create_engine(uri)
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
        engine.dispose()
    for folder in ("mlartifacts", "mlruns"):
        shutil.rmtree(folder, ignore_errors=True)


def state() -> dict[str, Any]:
    """All that the registry says, without times and random ids, and whether what it holds is what it says."""
    client = _client()
    return {model.name: _model_state(client, model.name) for model in client.search_registered_models()} | {
        "open decisions": _open_decisions(client)
    }


def _client() -> mlflow.MlflowClient:
    return connect(store_uri(PARAMS))


def _model_state(client: mlflow.MlflowClient, name: str) -> dict[str, Any]:
    past = decisions.history(client, store_uri(PARAMS), name)
    tags = versions.tags_by_version(client, name)
    aliases = versions.versions_by_alias(client, name)
    return {
        "aliases": dict(sorted(aliases.items())),
        "versions": {number: _timeless(tags[number]) for number in sorted(tags)},
        "history": [[one.version, one.champion, one.verdict, _without_time(one.reasons), one.moved] for one in past],
        "files": {number: _files_of(name, number) for number in sorted(tags)},
        "released": aliases.get(RELEASED) and _released(name, aliases[RELEASED], tags),
    }


def _timeless(tags: dict[str, str]) -> dict[str, str]:
    kept = {key: value for key, value in tags.items() if key not in ("candidate_at", "git_commit")}
    return {key: re.sub(WHEN, "", value) for key, value in sorted(kept.items()) if key != promotion.GATE}


def _without_time(reasons: list[str]) -> list[str]:
    return [re.sub(r"\d{4}-\d\d-\d\dT[:0-9]+[+:0-9]*", "...", reason) for reason in reasons]


def _files_of(name: str, version: int) -> str:
    try:
        with TemporaryDirectory() as folder:
            versions.fetch(f"models:/{name}/{version}", store_uri(PARAMS), folder)
    except Damaged as error:
        return str(error)
    return "verified"


def _released(name: str, version: int, tags: dict[int, dict[str, str]]) -> str:
    """What is in the bundle of the version that is released; whether it passes is asked by `check_bundle`."""
    folder = releases.RELEASES / name / str(version)
    held = read_json(folder / "adapter/adapter.json", made_by="mmrl flow release")["sha256"]
    return "its adapter" if held == tags[version]["adapter_sha256"] else "another adapter"


def check_bundle(version: int) -> None:
    from mmrl_core import bundle

    bundle.check_bundle(releases.RELEASES / NAME / str(version))


def _open_decisions(client: mlflow.MlflowClient) -> int:
    experiment = client.get_experiment_by_name(decisions.EXPERIMENT)
    if experiment is None:
        return 0
    return len(client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'"))


def files() -> list[str]:
    """Every path of the project and of the archives, with `*` for random ids; a run's files once, however many such
    runs there are, since MLflow keeps those of runs that are deleted."""
    paths = [path.relative_to(Path.cwd().parent) for path in Path.cwd().parent.rglob("*")]
    names = [str(path) for path in paths if ".mmrl/locks" not in str(path)]
    of_runs = {RANDOM.sub("*", name) for name in names if RANDOM.search(name) and "/m-" not in name}
    return sorted([*of_runs, *(RANDOM.sub("*", name) for name in names if not RANDOM.search(name) or "/m-" in name)])


COMMANDS = {
    one.__name__: one
    for one in (make, register, promote, rollback, release, backup, restore, unname_released, delete_version, lose,
                state, files, check_bundle)
}  # fmt: skip
