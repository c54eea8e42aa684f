"""Which version of each dataset's model is the champion, and why: for the head of the report."""

import hashlib
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from flows.project import paths
from flows.registry import decisions
from flows.registry.decisions import PastDecision
from flows.registry.descriptions import title_of
from flows.registry.versions import registered_name, tags_by_version, versions_by_alias
from flows.report.champions import Standing, script
from flows.settings.params import Params
from flows.tracking.redaction import first_line
from flows.tracking.run import git_commit
from flows.tracking.store import connect, store_errors, store_uri
from mmrl_core.files import write_bytes

SCORES = {"base_accuracy": "base", "novel_accuracy": "novel", "all_accuracy": "accuracy",
          "harmonic_mean": "harmonic mean"}  # fmt: skip


def show_champions(params: Params, warn: Callable[[str], object]) -> None:
    """Write champion.js beside the report, where there is one; what keeps it from being written is said to `warn`."""
    try:
        if paths.SUMMARY.exists():
            write_champions(params)
    except Exception as error:
        warn(f"the report does not name the champion: {first_line(error, store_uri(params))}")


def write_champions(params: Params) -> None:
    """Raises StoreFailed or UserError where the store does not tell."""
    of = hashlib.sha256(paths.SUMMARY.read_bytes()).hexdigest()
    standings = [one for dataset in params.datasets if (one := standing(params, dataset))]
    text = script(standings, git_commit(), _time(datetime.now(UTC).timestamp()), of)
    write_bytes(paths.CHAMPION, text.encode())


def standing(params: Params, dataset: str) -> Standing | None:
    """The champion of a dataset's model; None where there is none. Raises as `write_champions`."""
    uri, name = store_uri(params), registered_name(dataset, params.data.protocol)
    with store_errors(uri):
        client = connect(uri, create=False)
        versions = tags_by_version(client, name)
        champion = versions_by_alias(client, name).get(params.registry.alias) if versions else None
        if champion is None:
            return None
        tags, past = versions[champion], decisions.history(client, uri, name)
    by = next((one for one in reversed(past) if one.moved and one.version == champion), None)
    latest = _told(name, past[-1]) if past else ""
    shots, seed = (tags.get(key, "") for key in ("shots", "seed"))
    verdict, when = (by.verdict, _time(by.at / 1000)) if by else ("", "")
    return Standing(name, champion, title_of(tags), shots, seed, _scores(tags), verdict, when, latest)


def _scores(tags: Mapping[str, str]) -> dict[str, float]:
    """On the test images, as registered; tags that are no numbers are left out."""
    scores = {}
    for tag, name in SCORES.items():
        try:
            value = float(tags[tag])
        except (KeyError, ValueError):
            continue
        if math.isfinite(value):
            scores[name] = value
    return scores


def _told(name: str, past: PastDecision) -> str:
    return f"{name} version {past.version} is {past.verdict}: {'; '.join(past.reasons)} ({_time(past.at / 1000)})"


def _time(seconds: float) -> str:
    """Such as 2026-11-29 14:45 UTC."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
