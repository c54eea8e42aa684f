"""Promotion: the gate's decision on a challenger, and the moves of the aliases that follow from it.

`champion` (registry.alias) says what is live, `challenger` what was last up for it, `previous` what was live before.
Promotions of one model wait for one another, so each is decided against the champion that it replaces. One that is
killed is finished by whoever comes next (locked_model.py).
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from typing_extensions import TypedDict

from flows.registry import decisions
from flows.registry.decisions import PastDecision, shortened
from flows.registry.descriptions import in_words
from flows.registry.locked_model import (
    CHALLENGER,
    FIRST,
    FORCED,
    MOVES,
    PREVIOUS,
    REPLACED,
    ROLLED_BACK,
    SHA256,
    Identity,
    LockedModel,
    locked,
)
from flows.registry.versions import fetch, known_version, registered_name
from flows.settings.params import Params
from flows.tracking.store import connect, store_errors, store_uri
from mmrl_core.errors import UserError
from mmrl_core.evaluation.gate import ACCEPTED, INCONCLUSIVE, REFUSED, Decision
from mmrl_core.files import wrong_entry
from mmrl_core.parsing import parse_json, whole_number

DECLINED = (REFUSED, INCONCLUSIVE)
UNCHANGED = "unchanged"
GATE, WITHDRAWN = "gate", "rolled_back"  # tags of versions
OF_FIRST = {  # what the gate's verdict on a version means where zero-shot stands for a champion
    ACCEPTED: "there was no champion; it is better than zero-shot",
    INCONCLUSIVE: "there was no champion; it is not shown to be better than zero-shot, nor worse",
    REFUSED: "there is no champion, and it is worse than zero-shot; --force REASON makes it the champion all the same",
}
NOT_COMPARED = "there was no champion, and it could not be compared with zero-shot"


class _Verdict(TypedDict):
    """What is read of the tag GATE, beside the inputs."""

    verdict: str
    reasons: list[str]


class PromotionDecision(NamedTuple):
    """What was decided about a version, and whether the alias moved to it; `previous` was the champion before.

    The alias moves by the verdicts accepted, first (there was no champion), forced and rolled back, and stays by
    unchanged, refused and inconclusive. `adapter` is what is live after the decision, in words. `finished` names what
    killed processes had decided, which this one completed first.
    """

    name: str
    version: int
    previous: int | None
    moved: bool
    verdict: str
    reasons: list[str]
    adapter: str = ""
    finished: list[str] = []

    @property
    def live(self) -> str | None:
        """The champion after the decision: name and version, or None."""
        live = self.previous if self.verdict in DECLINED else self.version
        return None if live is None else f"models:/{self.name} version {live}"

    @property
    def champion(self) -> str:
        """The same for people, with what it is: method, shots, seed, test figures."""
        return f"{self.adapter}; {self.live}" if self.live else "none"

    @property
    def decided(self) -> str:
        """The verdict and its reasons, in one line."""
        return f"version {self.version} of {self.name} is {self.verdict}: {'; '.join(self.reasons)}"


def promote(
    params: Params, dataset: str, version: int | None = None, *, new_classes: bool = False, force: str | None = None
) -> PromotionDecision:
    """Put a version, by default the one that `register` named last, to the gate; the alias moves if it passes.

    The first version passes unless it is worse than zero-shot, and with `force`, a reason, any. `new_classes` lets the
    classes differ from the champion's. Raises UserError for a dataset or version that was never registered, and where
    the images of the gate are not at hand.
    """
    with locked(params, dataset) as model:
        with store_errors(model.uri):
            version = known_version(model.client, model.name, version)
        if repeated := _repeated(model, version):
            return repeated
        known = known_decision(params, version, model.champion, model.versions, new_classes)
        if known and (known.verdict == UNCHANGED or not force):
            return _decided(model, version, known)
        decision, rows = _decide(model, version, new_classes, force)
        inputs = _gate_inputs(params, model.champion, version, model.versions, new_classes)
        tags = {GATE: json.dumps(inputs | {"verdict": decision.verdict, "reasons": decision.reasons})}
        aliases: dict[str, int | None] = {CHALLENGER: version}
        if decision.verdict in MOVES:
            tags[REPLACED] = str(model.champion or "")
            aliases = {PREVIOUS: model.champion, model.alias: version, CHALLENGER: None}
        model.apply(version, decision, aliases, {version: tags}, rows)
        return _decided(model, version, decision)


def rollback(params: Params, dataset: str, reason: str, of: Identity | None = None) -> PromotionDecision:
    """Make the champion's predecessor the champion again, and that one's own predecessor `previous`. The version that
    is rolled back is not promoted again unless forced.

    With `of` only while that version is the champion. Raises UserError where it is not, and where there is no
    predecessor.
    """
    with locked(params, dataset) as model, store_errors(model.uri):
        if repeated := _rolled_back_already(model, reason):
            return repeated
        champion, before = model.champion, model.aliases.get(PREVIOUS)
        if of and (champion is None or model.identity(champion) != of):
            raise UserError(f"version {of.version} of {model.name} is no longer the champion; nothing was rolled back")
        if before is None or before == champion or not (champion or _last_champion(model)):
            raise UserError(f"{model.name} has no champion before the present one; there is nothing to go back to")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        tags = {champion: {WITHDRAWN: f"{now}: {shortened(reason)}"}} if champion else {}
        replaced, decision = model.versions[before].get(REPLACED), Decision(ROLLED_BACK, [shortened(reason)], {})
        earlier = number if (number := whole_number(replaced or "")) in model.versions else None
        model.apply(before, decision, {PREVIOUS: earlier, model.alias: before, CHALLENGER: None}, tags, [])
        return _decided(model, before, decision)


def history(params: Params, dataset: str) -> list[PastDecision]:
    """Every decision about the dataset's model, the first one first."""
    uri = store_uri(params)
    with store_errors(uri):
        return decisions.history(connect(uri, create=False), uri, registered_name(dataset, params.data.protocol))


def told(
    name: str, versions: Mapping[int, Mapping[str, str]], version: int, champion: int | None, verdict: str,
    reasons: list[str],
) -> PromotionDecision:  # fmt: skip
    """A decision about a version of a model of which `champion` was the champion; `versions` are its versions' tags."""
    live = champion if verdict in DECLINED else version
    adapter = "" if live is None else in_words(versions.get(live, {}))
    return PromotionDecision(name, version, champion, verdict in MOVES, verdict, reasons, adapter)


def _decided(model: LockedModel, version: int, decision: Decision) -> PromotionDecision:
    others = [f"version {past.version}: {past.verdict}" for past in model.finished if past.moved]
    one = told(model.name, model.versions, version, model.champion, decision.verdict, decision.reasons)
    return one._replace(finished=others)


def _repeated(model: LockedModel, version: int) -> PromotionDecision | None:
    """The decision of a promotion of this version that was killed before it was done, and is done now."""
    for past in model.finished:
        if past.moved and past.verdict != ROLLED_BACK and past.version == version == model.champion:
            return told(model.name, model.versions, version, past.champion, past.verdict, past.reasons)
    return None


def _rolled_back_already(model: LockedModel, reason: str) -> PromotionDecision | None:
    """The decision of a rollback that was killed before it was done, where this one is the same: by its reason, or
    because the alias had not moved yet, so that both mean the same champion."""
    for past in model.finished:
        same = past.reasons == [shortened(reason)] or model.found == past.champion
        if past.verdict == ROLLED_BACK and past.version == model.champion and same:
            return told(model.name, model.versions, past.version, past.champion, past.verdict, past.reasons)
    return None


def _last_champion(model: LockedModel) -> int | None:
    """The champion of the history, where the alias names none."""
    return decisions.last_champion(model.client, model.uri, model.name, model.alias)


def _decide(
    model: LockedModel, version: int, new_classes: bool, force: str | None
) -> tuple[Decision, list[dict[str, Any]]]:
    """The decision, and its rows image by image where champion and challenger were compared."""
    if force:
        return Decision(FORCED, [shortened(force)], {}), []
    if model.champion is None:
        return _without_champion(model, version)
    if withdrawn := model.versions[version].get(WITHDRAWN):
        reason = f"it was rolled back ({withdrawn}); promote it by --version and --force"
        return Decision(REFUSED, [reason], {}), []
    from flows.registry.contest import compare_versions

    with TemporaryDirectory() as before, TemporaryDirectory() as after:
        champion = fetch(f"models:/{model.name}/{model.champion}", model.uri, before)
        challenger = fetch(f"models:/{model.name}/{version}", model.uri, after)
        decision, rows = compare_versions(model.params, model.dataset, champion, challenger, new_classes)
    return decision._replace(reasons=[shortened(reason) for reason in decision.reasons]), rows


def _without_champion(model: LockedModel, version: int) -> tuple[Decision, list[dict[str, Any]]]:
    """The first version passes unless it is worse than zero-shot; where there was a champion, deleting it opens no way
    past the gate."""
    with store_errors(model.uri):
        last = _last_champion(model)
    if last is not None:
        reason = (
            f"version {last} was the champion, and it or its alias {model.alias} was deleted in MLflow; "
            "`mmrl rollback` goes back to the one before, --force REASON passes the gate by"
        )
        return Decision(REFUSED, [reason], {}), []
    from flows.registry.contest import compare_with_zero_shot

    with TemporaryDirectory() as folder:
        first = fetch(f"models:/{model.name}/{version}", model.uri, folder)
        decision, rows = compare_with_zero_shot(model.params, model.dataset, first)
    verdict = REFUSED if decision.verdict == REFUSED else FIRST
    reasons = [OF_FIRST[decision.verdict] if rows else NOT_COMPARED, *decision.reasons]
    return Decision(verdict, reasons, decision.figures), rows


def known_decision(
    params: Params,
    version: int,
    champion: int | None,
    versions: Mapping[int, Mapping[str, str]],
    new_classes: bool = False,
) -> Decision | None:
    """The decision that the versions' tags give without an image being classified: it is the champion, or was declined
    before from the same inputs. None where it is still to be decided."""
    if version == champion:
        return Decision(UNCHANGED, ["it is the champion"], {})
    return _declined_before(versions[version], _gate_inputs(params, champion, version, versions, new_classes))


def _gate_inputs(
    params: Params,
    champion: int | None,
    version: int,
    versions: Mapping[int, Mapping[str, str]],
    new_classes: bool,
) -> dict[str, Any]:
    """What the gate decides by, beside the version: from the same inputs it need not decide again."""
    bounds, sha256 = params.registry.model_dump(exclude={"alias"}), champion and versions.get(champion, {}).get(SHA256)
    pool = versions[version].get("pool_digest")
    return {"champion": champion, "champion_sha256": sha256, "bounds": bounds, "pool": pool, "new_classes": new_classes}


def _declined_before(tags: Mapping[str, str], inputs: dict[str, Any]) -> Decision | None:
    """The earlier decision from these inputs where it declined; an accepted version whose alias did not move is decided
    again."""
    try:
        last = parse_json(tags.get(GATE, "{}"))
    except ValueError:
        return None
    if (
        wrong_entry(last, _Verdict)
        or last.get("verdict") not in DECLINED
        or any(last.get(key) != value for key, value in inputs.items())
    ):
        return None
    return Decision(last["verdict"], last.get("reasons", []), {})
