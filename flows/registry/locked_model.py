"""A registered model whose aliases may be moved now: under its promotion lock, with nothing left open by others."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from flows.registry import decisions
from flows.registry.decisions import Entry, Intent, PastDecision
from flows.registry.versions import registered_name, tags_by_version, versions_by_alias
from flows.settings.params import Params
from flows.tracking.locks import Held, exclusive
from flows.tracking.store import connect, store_errors, store_uri
from mmrl_core.errors import UserError
from mmrl_core.evaluation.gate import ACCEPTED, Decision
from mmrl_core.parsing import whole_number

CHALLENGER, PREVIOUS = "challenger", "previous"
FIRST, FORCED, ROLLED_BACK = "first", "forced", "rolled back"
MOVES = (ACCEPTED, FIRST, FORCED, ROLLED_BACK)
REPLACED = "replaced"  # tag of a version that became champion: the champion before it
SHA256 = "adapter_sha256"
PATIENCE = 1800  # seconds: another promotion's evaluation may be under way


class Identity(NamedTuple):
    """A version by its number and its adapter: after a restore the same number can be another adapter's."""

    version: int
    adapter_sha256: str | None


class LockedModel:
    """A registered model while its promotion lock is held. Decisions that were cut off are `finished` first; `found` is
    the champion before that, `aliases` and `versions` (their tags) are as they are after it."""

    def __init__(self, params: Params, dataset: str, held: Held):
        self.params, self.dataset, self.uri = params, dataset, store_uri(params)
        self.name, self.alias = registered_name(dataset, params.data.protocol), params.registry.alias
        self._held = held
        with store_errors(self.uri):
            self.client = connect(self.uri, create=False)
            self._read()
            self.found = self.champion
            self.finished = list(self._finish())
            if self.finished:
                self._read()

    def _read(self) -> None:
        self.aliases = versions_by_alias(self.client, self.name)
        self.versions = tags_by_version(self.client, self.name)

    @property
    def champion(self) -> int | None:
        return self.aliases.get(self.alias)

    def identity(self, version: int) -> Identity:
        return Identity(version, self.versions[version].get(SHA256))

    def apply(
        self, version: int, decision: Decision, aliases: Mapping[str, int | None],
        tags: Mapping[int, Mapping[str, str]], rows: list[dict[str, Any]], about: str | None = None,
    ) -> None:  # fmt: skip
        """Record a decision about the alias `about`, by default the champion's, then set tags and aliases.

        Raises UserError where another process moved that alias, or the lock was lost, at the same time.
        """
        about = about or self.alias
        before = self.aliases.get(about)
        named = {version, *tags, *(one for one in aliases.values() if one is not None)}
        adapters = {str(one): self.versions[one].get(SHA256, "") for one in sorted(named)}
        written = {str(one): dict(of_version) for one, of_version in tags.items()}
        intent = Intent(alias=about, before=before, aliases=dict(aliases), tags=written, adapters=adapters)
        with store_errors(self.uri):
            self._held.check()
            entry = Entry(self.name, version, before, decision)
            run_id = decisions.record(self.client, self.uri, entry, about, rows)
            decisions.intend(self.client, run_id, intent)
            done = self._carry_out(intent)
            decisions.close(self.client, run_id, done and decision.verdict in MOVES, done=done)
            if not done:
                now = versions_by_alias(self.client, self.name).get(about)
                raise UserError(
                    f"{self.name}@{about} is version {now} now: another process moved it; look, then repeat"
                )

    def _finish(self) -> Iterator[PastDecision]:
        """Carry out what cut-off decisions intended, or close them where that is no longer possible."""
        for past, intent in decisions.unfinished(self.client, self.uri, self.name):
            done = self._carry_out(intent or self._of_an_older_release(past))
            moved = done and past.verdict in MOVES
            decisions.close(self.client, past.run_id, moved, done=done)
            if done:
                yield past._replace(moved=moved)

    def _of_an_older_release(self, past: PastDecision) -> Intent:
        """What is left to do of a decision without an intent: nothing unless the champion's alias has moved."""
        aliases: dict[str, int | None] = {}
        if past.verdict in MOVES and past.version == self.champion:
            replaced = self.versions[past.version].get(REPLACED)
            before = whole_number(replaced or "") if past.verdict == ROLLED_BACK else past.champion
            aliases = {PREVIOUS: before, self.alias: past.version, CHALLENGER: None}
        nowhere = -1  # no version: not to be carried out
        before = past.champion if aliases else nowhere
        return Intent(alias=self.alias, before=before, aliases=aliases, tags={}, adapters={})

    def _carry_out(self, intent: Intent) -> bool:
        """Set tags and aliases, those that are set already too. False, with the decisive alias as it was, where that
        one is neither where it was nor where it is to be, or a version is gone or another adapter's."""
        versions = tags_by_version(self.client, self.name)
        same = all(versions.get(int(one), {}).get(SHA256, "") == sha for one, sha in intent["adapters"].items())
        if not (same and self._can_move(intent)):
            return False
        for version, tags in intent["tags"].items():
            for key, value in tags.items():
                self.client.set_model_version_tag(self.name, version, key, value)
        for alias, target in intent["aliases"].items():
            self._held.check()
            if alias == intent["alias"] and not self._can_move(intent):
                return False
            self._point(alias, target if target in versions else None)
        return True

    def _can_move(self, intent: Intent) -> bool:
        """Whether the decisive alias is where it was when that was decided, or has been moved already."""
        alias, before = intent["alias"], intent["before"]
        return versions_by_alias(self.client, self.name).get(alias) in (before, intent["aliases"].get(alias, before))

    def _point(self, alias: str, version: int | None) -> None:
        """Set the alias to a version; None removes it."""
        if version is not None:
            self.client.set_registered_model_alias(self.name, alias, str(version))
        elif alias in versions_by_alias(self.client, self.name):
            self.client.delete_registered_model_alias(self.name, alias)


@contextmanager
def locked(params: Params, dataset: str) -> Iterator[LockedModel]:
    """The dataset's model under its promotion lock, which is waited for. Raises UserError for an unknown model."""
    uri, name = store_uri(params), registered_name(dataset, params.data.protocol)
    with exclusive(uri, f"promotion-{name}", PATIENCE) as held:
        yield LockedModel(params, dataset, held)
