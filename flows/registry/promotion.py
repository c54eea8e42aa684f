"""Promotion: the gate's decision on a challenger, and the moves of the aliases that follow from it.

`champion` (registry.alias) says what is live, `challenger` what was last up for it, `previous` what was live before.
Promotions of one model wait for one another, so each is decided against the champion that it replaces.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from tempfile import TemporaryDirectory
from typing import NamedTuple

from flows.registry import decisions
from flows.registry.decisions import Entry
from flows.registry.versions import fetch, known_version, registered_name, standing
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


class Promoted(NamedTuple):
    """`previous` was the champion before. `verdict` says why the alias moved or did not: accepted, first (there was no
    champion), forced, rolled back; unchanged, refused, inconclusive."""

    name: str
    version: int
    previous: int | None
    moved: bool
    verdict: str
    reasons: list[str]

    @property
    def live(self) -> str:
        """What is the champion now."""
        return f"models:/{self.name} version {self.previous if self.verdict in DECLINED else self.version}"

    @property
    def decided(self) -> str:
        return f"version {self.version} of {self.name} is {self.verdict}: {'; '.join(self.reasons)}"


class _Model:
    """A registered model while its promotion lock is held."""

    def __init__(self, params: Params, dataset: str):
        self.params, self.dataset, self.uri = params, dataset, store_uri(params)
        self.name, self.alias = registered_name(dataset, params.data.protocol), params.registry.alias
        with store_errors(self.uri):
            self.client = connect(self.uri, create=False)
            self.aliases = standing(self.client, self.name)

    @property
    def champion(self) -> int | None:
        return self.aliases.get(self.alias)

    def tags(self, version: int) -> dict[str, str]:
        return self.client.get_model_version(self.name, str(version)).tags

    def tag(self, version: int, name: str, value: str) -> None:
        self.client.set_model_version_tag(self.name, str(version), name, value)

    def said(self, version: int, decision: Decision) -> "Promoted":
        moved = decision.verdict in MOVES
        return Promoted(self.name, version, self.champion, moved, decision.verdict, decision.reasons)

    def settle(self, version: int, decision: Decision, rows: list[dict], previous: int | None) -> None:
        """Write the decision down, then move the aliases where it says so, then see that they stand."""
        client, name, moves = self.client, self.name, decision.verdict in MOVES
        run_id = decisions.record(client, self.uri, name, version, self.champion, decision, rows)
        if moves:
            self._point(PREVIOUS, previous)
            self._point(self.alias, version)
            self._point(CHALLENGER, None)
            now = standing(client, name).get(self.alias)
            if now != version:
                raise UserError(f"{name}@{self.alias} is version {now}, not {version}: another process moved it")
        decisions.close(client, run_id, moves)

    def _point(self, alias: str, version: int | None) -> None:
        if version is not None:
            self.client.set_registered_model_alias(self.name, alias, str(version))
        elif alias in standing(self.client, self.name):
            self.client.delete_registered_model_alias(self.name, alias)


def promote(
    params: Params, dataset: str, version: int | None = None, *, new_classes: bool = False, force: str | None = None
) -> Promoted:
    """Put a version, by default the one that `register` named last, to the gate; the alias moves if it passes.

    The first version passes as it is, and with `force`, a reason, any. `new_classes` lets the classes differ from the
    champion's. Raises UserError for a dataset or version that was never registered, and where the images of the gate
    are not at hand.
    """
    with _held(params, dataset) as model:
        with store_errors(model.uri):
            version = known_version(model.client, model.name, version)
            tags = model.tags(version)
        known = settled(params, version, model.champion, tags, new_classes)
        if known and (known.verdict == UNCHANGED or not force):
            return model.said(version, known)
        with store_errors(model.uri):
            model.client.set_registered_model_alias(model.name, CHALLENGER, str(version))
        decision, rows = _contest(model, version, tags, new_classes, force)
        with store_errors(model.uri):
            question = _question(params, model.champion, tags, new_classes)
            answer = {"verdict": decision.verdict, "reasons": decision.reasons}
            model.tag(version, GATE, json.dumps(question | answer))
            if decision.verdict in MOVES:
                model.tag(version, REPLACED, str(model.champion or ""))
            model.settle(version, decision, rows, model.champion)
        return model.said(version, decision)


def rollback(params: Params, dataset: str, reason: str) -> Promoted:
    """Make the champion's predecessor the champion again, and its own one `previous`. What is taken back is not
    promoted again unless forced. Raises UserError where there is no predecessor."""
    with _held(params, dataset) as model, store_errors(model.uri):
        champion, before = model.champion, model.aliases.get(PREVIOUS)
        if champion is None or before in (None, champion):
            raise UserError(f"{model.name} has no champion before the present one; there is nothing to go back to")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        model.tag(champion, WITHDRAWN, f"{now}: {reason}")
        replaced, decision = model.tags(before).get(REPLACED), Decision(ROLLED_BACK, [reason], {})
        model.settle(before, decision, [], int(replaced) if replaced else None)
        return model.said(before, decision)


def history(params: Params, dataset: str) -> list[Entry]:
    """Every decision about the dataset's model, the first one first."""
    uri = store_uri(params)
    with store_errors(uri):
        return decisions.history(connect(uri, create=False), uri, registered_name(dataset, params.data.protocol))


@contextmanager
def _held(params: Params, dataset: str) -> Iterator[_Model]:
    uri, name = store_uri(params), registered_name(dataset, params.data.protocol)
    with exclusive(uri, f"promotion-{name}", PATIENCE):
        yield _Model(params, dataset)


def _contest(
    model: _Model, version: int, tags: dict[str, str], new_classes: bool, force: str | None
) -> tuple[Decision, list[dict]]:
    """The decision, and what it rests on image by image where there was a contest."""
    if force:
        return Decision(FORCED, [force], {}), []
    if model.champion is None:
        return Decision(FIRST, ["there was no champion"], {}), []
    if WITHDRAWN in tags:
        return Decision(
            REFUSED, [f"it was rolled back ({tags[WITHDRAWN]}); promote it by --version and --force"], {}
        ), []
    from flows.registry.contest import hold

    with TemporaryDirectory() as one, TemporaryDirectory() as other:
        rivals = (
            fetch(f"models:/{model.name}/{number}", model.uri, folder)
            for number, folder in ((model.champion, one), (version, other))
        )
        return hold(model.params, model.dataset, *rivals, new_classes=new_classes)


def settled(
    params: Params, version: int, champion: int | None, tags: dict[str, str], new_classes: bool = False
) -> Decision | None:
    """What is said of a version, by its tags, without a look at an image: it is the champion, or was declined before
    on this very question. None where there is something to decide."""
    if version == champion:
        return Decision(UNCHANGED, ["it is the champion"], {})
    return _known(tags, _question(params, champion, tags, new_classes))


def _question(params: Params, champion: int | None, tags: dict[str, str], new_classes: bool) -> dict:
    """What a decision is about beside the version: asked again, it need not be answered again."""
    bounds = params.registry.model_dump(exclude={"alias"})
    return {"champion": champion, "bounds": bounds, "pool": tags.get("pool_digest"), "new_classes": new_classes}


def _known(tags: dict[str, str], question: dict) -> Decision | None:
    """The decision on this very question where it was no; a yes whose alias did not move is looked at again."""
    found = json.loads(tags.get(GATE, "{}"))
    if found.get("verdict") not in DECLINED or any(found.get(key) != value for key, value in question.items()):
        return None
    return Decision(found["verdict"], found["reasons"], {})
