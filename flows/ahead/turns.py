"""Which of the flow's items wait a turn, since another one's process may make their outputs ahead."""

from collections.abc import Iterable

from mmrl_core.config import Params

BUNDLED = "tiny"  # the one backbone by name that is known to be small before anything is loaded


class Turns:
    """Trainings with the bundled backbone that differ in the seed alone: the first one's process trains all of them."""

    def __init__(self, params: Params):
        self.is_small = params.backbone.name == BUNDLED and not params.cluster.is_distributed
        self.waiting: dict[str, list[str]] = {}  # by the item that goes first

    def begin(self, ready: Iterable[str]) -> list[str]:
        """Those of the ready items that start now."""
        now, first = [], {self._family(name): name for name in self.waiting}
        for name in ready:
            family = self._family(name)
            if family is not None and family in first:
                self.waiting[first[family]].append(name)
                continue
            if family is not None:
                first[family] = name
                self.waiting[name] = []
            now.append(name)
        return now

    def end(self, name: str) -> list[str]:
        """Those that waited for the item, however it ended."""
        return self.waiting.pop(name, [])

    def _family(self, name: str) -> str | None:
        stage, _, item = name.partition("@")
        return item.rpartition("-")[0] if self.is_small and stage == "train" else None
