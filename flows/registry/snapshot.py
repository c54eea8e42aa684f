"""What a sqlite registry says of a model, read from its file without MLflow, whose import takes seconds."""

import sqlite3
from contextlib import closing
from typing import NamedTuple

from flows.registry import promotion
from flows.registry import versions as registry
from flows.registry.promotion import Promoted
from flows.registry.versions import Registered
from flows.settings.params import Params
from flows.tracking.store import database_file, store_uri

ALIASES = "SELECT alias, version FROM registered_model_aliases WHERE name = ? AND workspace = 'default'"
VERSIONS = """SELECT version FROM model_versions
              WHERE name = ? AND workspace = 'default' AND current_stage != 'Deleted_Internal'"""
TAGS = "SELECT version, key, value FROM model_version_tags WHERE name = ? AND workspace = 'default'"


class Snapshot(NamedTuple):
    """One moment of a registered model: versions by alias, tags by version."""

    aliases: dict[str, int]
    versions: dict[int, dict[str, str]]


def unchanged(params: Params, dataset: str, commit: str | None) -> tuple[Registered, Promoted] | None:
    """What `register` and `promote` would return for the dataset's candidate, where they would change nothing but the
    time at which it was named last; else None. `commit` is what `git_commit` says.

    Raises UserError or sqlite3.Error where that cannot be told.
    """
    name, facts = registry.registered_name(dataset, params.data.protocol), _facts(params, dataset, commit)
    seen = take(store_uri(params), name)
    same = [version for version, tags in seen.versions.items() if tags.get("adapter_sha256") == facts["adapter_sha256"]]
    if not same or registry.named_last(seen.versions) != min(same):
        return None
    version, champion = min(same), seen.aliases.get(params.registry.alias)
    tags = seen.versions[version]
    decision = promotion.settled(params, version, champion, tags)
    if decision is None or any(tags.get(key) != facts.get(key) for key in {*facts, "git_commit"}):
        return None
    registered = Registered(name, version, facts["adapter_sha256"], created=False)
    return registered, Promoted(name, version, champion, False, decision.verdict, decision.reasons)


def _facts(params: Params, dataset: str, commit: str | None) -> dict[str, str]:
    return registry.facts(registry.candidate(params, dataset), commit)


def take(uri: str, name: str) -> Snapshot:
    """Raises sqlite3.Error where the store is no sqlite file, is being written, or has other tables than MLflow's."""
    database = database_file(uri)
    if database is None:
        raise sqlite3.NotSupportedError(f"{uri} is no file")
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=0)) as connection:
        connection.execute("BEGIN")  # one state for all three
        aliases, rows, tags = (connection.execute(query, [name]).fetchall() for query in (ALIASES, VERSIONS, TAGS))
    versions: dict[int, dict[str, str]] = {version: {} for (version,) in rows}
    for version, key, value in tags:
        versions.get(version, {})[key] = value
    return Snapshot(dict(aliases), versions)
