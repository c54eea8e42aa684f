"""Promotion: the gate's decision on a challenger, and the moves of the aliases that follow from it.

`champion` (registry.alias) says what is live, `challenger` what was last up for it, `previous` what was live before.
Promotions of one model wait for one another, so each is decided against the champion that it replaces.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from flows.registry import decisions
from flows.registry.decisions import PastDecision
from flows.registry.versions import fetch, known_version, registered_name, versions_by_alias
from flows.settings.params import Params
from flows.tracking.locks import exclusive
from flows.tracking.store import connect, store_errors, store_uri
from mmrl_core.errors import UserError
from mmrl_core.evaluation.gate import ACCEPTED, INCONCLUSIVE, REFUSED, Decision

CHALLENGER, PREVIOUS = "challenger", "previous"
DECLINED = (REFUSED, INCONCLUSIVE)
UNCHANGED, FIRST, FORCED, ROLLED_BACK = "unchanged", "first", "forced", "rolled back"
MOVES = (ACCEPTED, FIRST, FORCED, ROLLED_BACK)
GATE, REPLACED, WITHDRAWN = "gate", "replaced", "rolled_back"  # tags of versions
PATIENCE = 1800  # seconds: another promotion's evaluation may be under way


class PromotionDecision(NamedTuple):
    """What was decided about a version, and whether the alias moved to it; `previous` was the champion before.

    The alias moves by the verdicts accepted, first (there was no champion), forced and rolled back, and stays by
    unchanged, refused and inconclusive.
    """

    name: str
    version: int
    previous: int | None
    moved: bool
    verdict: str
    reasons: list[str]

    @property
    def live(self) -> str:
        """The champion after the decision, in words."""
        return f"models:/{self.name} version {self.previous if self.verdict in DECLINED else self.version}"

    @property
    def decided(self) -> str:
        """The verdict and its reasons, in one line."""
        return f"version {self.version} of {self.name} is {self.verdict}: {'; '.join(self.reasons)}"


class _LockedModel:
    """A registered model while its promotion lock is held, with its aliases as they were when the lock was taken."""

    def __init__(self, params: Params, dataset: str):
        self.params, self.dataset, self.uri = params, dataset, store_uri(params)
        self.name, self.alias = registered_name(dataset, params.data.protocol), params.registry.alias
        with store_errors(self.uri):
            self.client = connect(self.uri, create=False)
            self.aliases = versions_by_alias(self.client, self.name)

    @property
    def champion(self) -> int | None:
        return self.aliases.get(self.alias)

    def tags(self, version: int) -> dict[str, str]:
        return self.client.get_model_version(self.name, str(version)).tags

    def tag(self, version: int, name: str, value: str) -> None:
        self.client.set_model_version_tag(self.name, str(version), name, value)

    def decided(self, version: int, decision: Decision) -> PromotionDecision:
        moved = decision.verdict in MOVES
        return PromotionDecision(self.name, version, self.champion, moved, decision.verdict, decision.reasons)

    def apply(self, version: int, decision: Decision, rows: list[dict[str, Any]], previous: int | None) -> None:
        """Record the decision, then move the aliases where it says so. Raises UserError where another process moved
        them at the same time."""
        client, name, moves = self.client, self.name, decision.verdict in MOVES
        run_id = decisions.record(client, self.uri, name, version, self.champion, decision, rows)
        if moves:
            self._point(PREVIOUS, previous)
            self._point(self.alias, version)
            self._point(CHALLENGER, None)
            now = versions_by_alias(client, name).get(self.alias)
            if now != version:
                raise UserError(f"{name}@{self.alias} is version {now}, not {version}: another process moved it")
        decisions.close(client, run_id, moves)

    def _point(self, alias: str, version: int | None) -> None:
        """Set the alias to a version; None removes it."""
        if version is not None:
            self.client.set_registered_model_alias(self.name, alias, str(version))
        elif alias in versions_by_alias(self.client, self.name):
            self.client.delete_registered_model_alias(self.name, alias)


def promote(
    params: Params, dataset: str, version: int | None = None, *, new_classes: bool = False, force: str | None = None
) -> PromotionDecision:
    """Put a version, by default the one that `register` named last, to the gate; the alias moves if it passes.

    The first version passes as it is, and with `force`, a reason, any. `new_classes` lets the classes differ from the
    champion's. Raises UserError for a dataset or version that was never registered, and where the images of the gate
    are not at hand.
    """
    with _locked(params, dataset) as model:
        with store_errors(model.uri):
            version = known_version(model.client, model.name, version)
            tags = model.tags(version)
        known = known_decision(params, version, model.champion, tags, new_classes)
        if known and (known.verdict == UNCHANGED or not force):
            return model.decided(version, known)
        with store_errors(model.uri):
            model.client.set_registered_model_alias(model.name, CHALLENGER, str(version))
        decision, rows = _decide(model, version, tags, new_classes, force)
        with store_errors(model.uri):
            inputs = _gate_inputs(params, model.champion, tags, new_classes)
            outcome = {"verdict": decision.verdict, "reasons": decision.reasons}
            model.tag(version, GATE, json.dumps(inputs | outcome))
            if decision.verdict in MOVES:
                model.tag(version, REPLACED, str(model.champion or ""))
            model.apply(version, decision, rows, model.champion)
        return model.decided(version, decision)


def rollback(params: Params, dataset: str, reason: str) -> PromotionDecision:
    """Make the champion's predecessor the champion again, and that one's own predecessor `previous`. The version that
    is rolled back is not promoted again unless forced. Raises UserError where there is no predecessor."""
    with _locked(params, dataset) as model, store_errors(model.uri):
        champion, before = model.champion, model.aliases.get(PREVIOUS)
        if champion is None or before is None or before == champion:
            raise UserError(f"{model.name} has no champion before the present one; there is nothing to go back to")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        model.tag(champion, WITHDRAWN, f"{now}: {reason}")
        replaced, decision = model.tags(before).get(REPLACED), Decision(ROLLED_BACK, [reason], {})
        model.apply(before, decision, [], int(replaced) if replaced else None)
        return model.decided(before, decision)


def history(params: Params, dataset: str) -> list[PastDecision]:
    """Every decision about the dataset's model, the first one first."""
    uri = store_uri(params)
    with store_errors(uri):
        return decisions.history(connect(uri, create=False), uri, registered_name(dataset, params.data.protocol))


@contextmanager
def _locked(params: Params, dataset: str) -> Iterator[_LockedModel]:
    """The dataset's model under its promotion lock, which is waited for."""
    uri, name = store_uri(params), registered_name(dataset, params.data.protocol)
    with exclusive(uri, f"promotion-{name}", PATIENCE):
        yield _LockedModel(params, dataset)


def _decide(
    model: _LockedModel, version: int, tags: dict[str, str], new_classes: bool, force: str | None
) -> tuple[Decision, list[dict[str, Any]]]:
    """The decision, and its rows image by image where champion and challenger were compared."""
    if force:
        return Decision(FORCED, [force], {}), []
    if model.champion is None:
        return Decision(FIRST, ["there was no champion"], {}), []
    if WITHDRAWN in tags:
        return Decision(
            REFUSED, [f"it was rolled back ({tags[WITHDRAWN]}); promote it by --version and --force"], {}
        ), []
    from flows.registry.contest import compare_versions

    with TemporaryDirectory() as before, TemporaryDirectory() as after:
        champion = fetch(f"models:/{model.name}/{model.champion}", model.uri, before)
        challenger = fetch(f"models:/{model.name}/{version}", model.uri, after)
        return compare_versions(model.params, model.dataset, champion, challenger, new_classes)


def known_decision(
    params: Params, version: int, champion: int | None, tags: dict[str, str], new_classes: bool = False
) -> Decision | None:
    """The decision that a version's tags give without an image being classified: it is the champion, or was declined
    before from the same inputs. None where it is still to be decided."""
    if version == champion:
        return Decision(UNCHANGED, ["it is the champion"], {})
    return _declined_before(tags, _gate_inputs(params, champion, tags, new_classes))


def _gate_inputs(params: Params, champion: int | None, tags: dict[str, str], new_classes: bool) -> dict[str, Any]:
    """What the gate decides by, beside the version: from the same inputs it need not decide again."""
    bounds = params.registry.model_dump(exclude={"alias"})
    return {"champion": champion, "bounds": bounds, "pool": tags.get("pool_digest"), "new_classes": new_classes}


def _declined_before(tags: dict[str, str], inputs: dict[str, Any]) -> Decision | None:
    """The earlier decision from these inputs where it declined; an accepted version whose alias did not move is decided
    again."""
    last = json.loads(tags.get(GATE, "{}"))
    if last.get("verdict") not in DECLINED or any(last.get(key) != value for key, value in inputs.items()):
        return None
    return Decision(last["verdict"], last["reasons"], {})
