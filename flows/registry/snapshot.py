"""A registered model's aliases and tags, read from a sqlite store's file without MLflow, whose import takes seconds."""

import sqlite3
from contextlib import closing
from typing import NamedTuple

from flows.registry import promotion
from flows.registry import versions as registry
from flows.registry.promotion import PromotionDecision
from flows.registry.versions import RegisteredVersion
from flows.settings.params import Params
from flows.tracking.store import database_file, store_uri

ALIASES = "SELECT alias, version FROM registered_model_aliases WHERE name = ? AND workspace = 'default'"
VERSIONS = """SELECT version FROM model_versions
              WHERE name = ? AND workspace = 'default' AND current_stage != 'Deleted_Internal'"""
TAGS = "SELECT version, key, value FROM model_version_tags WHERE name = ? AND workspace = 'default'"


class Snapshot(NamedTuple):
    """A registered model at one moment: versions by alias, tags by version."""

    aliases: dict[str, int]
    versions: dict[int, dict[str, str]]


def unchanged(params: Params, dataset: str, commit: str | None) -> tuple[RegisteredVersion, PromotionDecision] | None:
    """What `register` and `promote` would return for the dataset's candidate, where they would change nothing but the
    tag `candidate_at` and an older release's lack of descriptions; else None. `commit` is what `git_commit` returns.

    Raises UserError or sqlite3.Error where that cannot be told.
    """
    name, facts = registry.registered_name(dataset, params.data.protocol), _facts(params, dataset, commit)
    aliases, versions = take_snapshot(store_uri(params), name)
    version = registry.same_adapter(versions, facts)
    if version is None or registry.named_last(versions) != version:
        return None
    champion = aliases.get(params.registry.alias)
    tags = versions[version]
    decision = promotion.known_decision(params, version, champion, versions)
    if decision is None or any(tags.get(key) != facts.get(key) for key in {*facts, "git_commit"}):
        return None
    registered = RegisteredVersion(name, version, facts["adapter_sha256"], created=False)
    return registered, promotion.told(name, versions, version, champion, decision.verdict, decision.reasons)


def _facts(params: Params, dataset: str, commit: str | None) -> dict[str, str]:
    return registry.facts(registry.candidate(params, dataset), commit)


def take_snapshot(uri: str, name: str) -> Snapshot:
    """The model's aliases and tags, read in one transaction.

    Raises sqlite3.Error where the store is no sqlite file, is being written, or has other tables than MLflow's.
    """
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
