"""What children of server.py run, in a project's folder: the commands that are killed, and looks at what is there."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import sqlalchemy

from flows.maintenance.backup import backup as save
from flows.maintenance.restore import restore as bring_back
from flows.project.paths import RunKey
from flows.registry import promotion, releases, versions
from flows.registry.model_files import check_model
from flows.registry.releases import RELEASED
from flows.settings.params import Params
from flows.tracking.places import local_path
from flows.tracking.store import connect, database_file, store_uri
from mmrl_core.errors import Damaged
from mmrl_core.files import read_json

NAME = "digits-base-to-novel"
PARAMS = Params(datasets=["digits"], methods=["mmrl"], shots=[16], seeds=[1])
ARCHIVE = Path("../archives/saved.tar")
ALIASES = "SELECT alias, version FROM registered_model_aliases WHERE name = :name ORDER BY alias"
VERSIONS = """SELECT version, source FROM model_versions
              WHERE name = :name AND current_stage != 'Deleted_Internal' ORDER BY version"""
TAGS = "SELECT version, key, value FROM model_version_tags WHERE name = :name"
DECISIONS = """SELECT runs.run_uuid, status, key, value FROM runs JOIN tags ON tags.run_uuid = runs.run_uuid
               JOIN experiments ON experiments.experiment_id = runs.experiment_id
               WHERE experiments.name = 'promotions' AND runs.lifecycle_stage = 'active' ORDER BY start_time"""
# Ids of runs and models; and of experiments: PostgreSQL counts on from one that a killed command did not commit.
RANDOM = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
EXPERIMENT = re.compile(r"(?<=/mlruns/)\d+")
NOT_LITTER = re.compile(r"\.mmrl/locks|mlflow\.db-journal$")  # SQLite's own journal stays until the next write
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00")


def make(seeds: int) -> None:
    """Runs of so many seeds to be registered, and a store with its tables alone."""
    from tests.support.serving import make_run

    for seed in range(1, seeds + 1):
        make_run("digits", seed)
    make_run("letters", 1)
    Path("../archives").mkdir()
    connect(store_uri(PARAMS))


def register(seed: int, dataset: str = "digits") -> None:
    versions.register(PARAMS, RunKey(dataset, "mmrl", 16, seed))


def promote(version: int | None = None, force: str | None = None) -> str:
    return promotion.promote(PARAMS, "digits", version, force=force).verdict


def rollback(reason: str) -> None:
    promotion.rollback(PARAMS, "digits", reason)


def release() -> None:
    releases.release(PARAMS, "digits")


def backup(file: str = str(ARCHIVE)) -> None:
    save(store_uri(PARAMS), Path(file))


def restore(overwrite: bool = False, file: str = str(ARCHIVE)) -> None:
    bring_back(Path(file), store_uri(PARAMS), overwrite=overwrite)


def unname_released() -> None:
    """As if another version had been released meanwhile; its bundle stays."""
    connect(store_uri(PARAMS)).delete_registered_model_alias(NAME, RELEASED)


def open_store() -> None:
    connect(store_uri(PARAMS))


def adapters() -> list[str]:
    """The sha256 of the adapters that `make` made, in the order of their seeds."""
    folders = Path("models/digits/mmrl-16shot")
    seeds = range(1, len(list(folders.iterdir())) + 1)
    return [read_json(folders / f"seed{seed}/adapter.json", made_by="make")["sha256"] for seed in seeds]


def delete_version(version: int) -> None:
    """As MLflow's page does, which removes its aliases too."""
    connect(store_uri(PARAMS)).delete_model_version(NAME, str(version))


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
    """All that the store says of its registered models, without times and random ids, and whether their files are what
    it says. Read from the tables: a client takes ten times as long to open."""
    engine = sqlalchemy.create_engine(store_uri(PARAMS), poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        names = [name for (name,) in connection.execute(sqlalchemy.text("SELECT name FROM registered_models"))]
        past = _decisions(connection)
        return {name: _model_state(connection, name, past) for name in sorted(names)} | {
            "open decisions": sum(run["status"] == "RUNNING" for run in past)
        }


def _decisions(connection: sqlalchemy.Connection) -> list[dict[str, str]]:
    """The tags of every run in the experiment of decisions, and its status, in their order."""
    runs: dict[str, dict[str, str]] = {}
    for run, status, key, value in connection.execute(sqlalchemy.text(DECISIONS)):
        runs.setdefault(run, {"status": status})[key] = value
    return list(runs.values())


def _model_state(connection: sqlalchemy.Connection, name: str, past: list[dict[str, str]]) -> dict[str, Any]:
    def rows(query: str) -> list[tuple]:
        return [tuple(row) for row in connection.execute(sqlalchemy.text(query), {"name": name})]

    aliases = {alias: int(version) for alias, version in rows(ALIASES)}
    tags: dict[int, dict[str, str]] = {int(version): {} for version, _ in rows(VERSIONS)}
    for version, key, value in rows(TAGS):
        tags.get(int(version), {})[key] = value
    return {
        "aliases": aliases,
        "versions": {str(version): _timeless(of_version) for version, of_version in tags.items()},
        "history": [_entry(run) for run in past if run["model"] == name],
        "files": {str(version): _verified(source, tags[int(version)]) for version, source in rows(VERSIONS)},
        "released": RELEASED in aliases and _bundled(name, aliases[RELEASED], tags[aliases[RELEASED]]),
    }


def _entry(run: dict[str, str]) -> list:
    champion = int(run["champion"]) if run["champion"] else None
    reasons = [re.sub(TIME, "...", reason) for reason in json.loads(run["reasons"])]
    return [int(run["version"]), champion, run["verdict"], reasons, run.get("moved") == "true"]


def _timeless(tags: dict[str, str]) -> dict[str, str]:
    """But for what the gate keeps to itself."""
    gone = ("candidate_at", "git_commit", promotion.GATE)
    return {key: re.sub(TIME, "...", value) for key, value in sorted(tags.items()) if key not in gone}


def _verified(location: str, tags: dict[str, str]) -> bool | str:
    folder = local_path(location)
    assert folder
    try:
        return bool(check_model(folder, tags["adapter_sha256"], "it"))
    except Damaged as error:
        return str(error)


def _bundled(name: str, version: int, tags: dict[str, str]) -> bool | None:
    """Whether the bundle of a version holds its adapter, None without one; whether it passes says `check_bundle`."""
    card = releases.RELEASES / name / str(version) / "adapter/adapter.json"
    return read_json(card, made_by="mmrl flow release")["sha256"] == tags["adapter_sha256"] if card.exists() else None


def look() -> dict[str, Any]:
    """The state of the store, and what lies in the folder."""
    return {"files": files(), **state()}


def check_bundle(version: int) -> None:
    from mmrl_core import bundle

    bundle.check_bundle(releases.RELEASES / NAME / str(version))


def files() -> list[str]:
    """Every path of the project and of the archives, with `*` for random ids; a run's files once, however many such
    runs there are, since MLflow keeps those of runs that are deleted."""
    paths = [path.relative_to(Path.cwd().parent) for path in Path.cwd().parent.rglob("*")]
    names = [EXPERIMENT.sub("*", str(path)) for path in paths if not NOT_LITTER.search(str(path))]
    of_runs = {RANDOM.sub("*", name) for name in names if RANDOM.search(name) and "/m-" not in name}
    return sorted([*of_runs, *(RANDOM.sub("*", name) for name in names if not RANDOM.search(name) or "/m-" in name)])


COMMANDS = {
    one.__name__: one
    for one in (make, register, promote, rollback, release, backup, restore, unname_released, open_store, adapters,
                delete_version, lose, state, files, look, check_bundle)
}  # fmt: skip
