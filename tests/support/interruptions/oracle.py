"""The registry as a plain Python object: what commands do to it, and what commands.py's `state` then says.

Deliberately without anything of flows: numbers, names and rules are written down once more here.
"""

import copy
from dataclasses import dataclass, field
from typing import Any

CHAMPION, PREVIOUS, CHALLENGER, RELEASED = "champion", "previous", "challenger", "released"
FORCED, REFUSED, ROLLED_BACK, UNCHANGED = "forced", "refused", "rolled back", "unchanged"
NEEDS_GATE = "the gate decides"
SAID = (FORCED, ROLLED_BACK)  # verdicts whose reason is a person's


class Refused(Exception):
    """The command is an error of the user's, which changes nothing."""


@dataclass
class Version:
    """`declined`: what the champion was when this version was refused."""

    adapter: str
    replaced: int | None = None
    was_champion: bool = False
    withdrawn: str | None = None
    declined: Any = None


@dataclass
class Registry:
    """`highest` is the last number that was given; one that is deleted is not given again. Bundles lie beside the store
    and are not in a backup: the adapter of each, by the version's number."""

    versions: dict[int, Version] = field(default_factory=dict)
    aliases: dict[str, int] = field(default_factory=dict)
    history: list[list[Any]] = field(default_factory=list)
    highest: int = 0
    bundles: dict[int, str] = field(default_factory=dict)

    def register(self, adapter: str) -> None:
        """One version for each adapter, known by its content."""
        if all(version.adapter != adapter for version in self.versions.values()):
            self.highest += 1
            self.versions[self.highest] = Version(adapter)

    def verdict(self, number: int) -> str:
        """Of a promotion that is not forced."""
        champion = self.aliases.get(CHAMPION)
        if number == champion:
            return UNCHANGED
        declined = self._had_champion() if champion is None else self.versions[number].withdrawn
        return REFUSED if declined else NEEDS_GATE

    def promote(self, number: int, force: str | None = None) -> None:
        champion, version = self.aliases.get(CHAMPION), self.versions[number]
        verdict = self.verdict(number)
        if verdict != UNCHANGED and force:
            verdict = FORCED
        against = (champion, champion and self.versions[champion].adapter)
        if verdict == UNCHANGED or (verdict == REFUSED and version.declined == against):
            return  # nothing new is decided
        version.declined = against if verdict == REFUSED else None
        self.history.append([number, champion, verdict, force if verdict == FORCED else None, verdict != REFUSED])
        if verdict == REFUSED:
            self.aliases[CHALLENGER] = number
        else:
            version.replaced, version.was_champion = champion, True
            self._move(number, champion)

    def rollback(self, reason: str) -> None:
        champion, before = self.aliases.get(CHAMPION), self.aliases.get(PREVIOUS)
        if before is None or before == champion or not (champion or self._had_champion()):
            raise Refused
        if champion:
            self.versions[champion].withdrawn = reason
        self.history.append([before, champion, ROLLED_BACK, reason, True])
        self._move(before, self.versions[before].replaced)

    def release(self) -> None:
        champion, released = self.aliases.get(CHAMPION), self.aliases.get(RELEASED)
        if champion is None:
            raise Refused
        if champion == released and not self.needs_bundle():
            return
        self.bundles[champion] = self.versions[champion].adapter
        self.history.append([champion, released, RELEASED, None, False])
        self.aliases[RELEASED] = champion

    def needs_bundle(self) -> bool:
        """Whether a release has to make one."""
        champion = self.aliases.get(CHAMPION)
        return champion is not None and self.bundles.get(champion) != self.versions[champion].adapter

    def delete(self, number: int) -> None:
        """As MLflow does: its aliases go too."""
        del self.versions[number]
        self.aliases = {alias: version for alias, version in self.aliases.items() if version != number}

    def saved(self) -> "Registry":
        """What a backup keeps of it."""
        return copy.deepcopy(self)

    def restored(self, archive: "Registry") -> "Registry":
        """The archive's moment, beside the bundles that lie here now."""
        restored = copy.deepcopy(archive)
        restored.bundles = self.bundles
        return restored

    def _had_champion(self) -> bool:
        return any(moved for *_, moved in self.history)

    def _move(self, champion: int, previous: int | None) -> None:
        self.aliases.pop(CHALLENGER, None)
        self.aliases.pop(PREVIOUS, None)
        self.aliases[CHAMPION] = champion
        if previous in self.versions:
            self.aliases[PREVIOUS] = previous

    def state(self) -> dict[str, Any]:
        return {
            "aliases": self.aliases,
            "versions": {str(number): _tags(self.versions[number]) for number in sorted(self.versions)},
            "history": self.history,
            "files": {str(number): True for number in sorted(self.versions)},
            "released": self._released(),
        }

    def _released(self) -> bool | None:
        """Whether the bundle of what is released is that version's."""
        number = self.aliases.get(RELEASED)
        if number not in self.bundles:
            return None if number else False
        return self.bundles[number] == self.versions[number].adapter


def _tags(version: Version) -> dict[str, str]:
    tags = {"adapter_sha256": version.adapter}
    if version.was_champion:
        tags["replaced"] = str(version.replaced or "")
    return tags | ({"rolled_back": f"...: {version.withdrawn}"} if version.withdrawn else {})


def comparable(state: dict[str, Any]) -> dict[str, Any]:
    """Of what commands.py's `state` says of a model, what this one knows too."""
    known = ("adapter_sha256", "replaced", "rolled_back")
    versions = {number: {key: tags[key] for key in known if key in tags} for number, tags in state["versions"].items()}
    history = [
        [version, champion, verdict, reasons[0] if verdict in SAID else None, moved]
        for version, champion, verdict, reasons, moved in state["history"]
    ]
    return state | {"versions": versions, "history": history}
