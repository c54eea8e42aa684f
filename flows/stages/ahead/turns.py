"""Which of the flow's items wait a turn, since another one's process may make their outputs ahead."""

from collections.abc import Iterable

from flows.settings.params import Params

BUNDLED = "tiny"  # the one backbone by name that is known to be small before anything is loaded


class Turns:
    """With the bundled backbone the first of the trainings that differ in the seed alone trains all of them; they are
    evaluated when all are there, in one pass."""

    def __init__(self, params: Params):
        self.is_small = params.backbone.name == BUNDLED and not params.cluster.is_distributed
        self.training: dict[str, list[str]] = {}  # by family: who goes first, and those that come after it
        self.waiting: dict[str, list[str]] = {}  # by family

    def begin(self, ready: Iterable[str]) -> list[str]:
        """Those of the ready items that start now."""
        now = []
        for name in ready:
            stage, family = _family(name)
            going = self.training.get(family, [])
            if going and stage in ("train", "evaluate"):
                self.waiting[family].append(name)
            else:
                now.append(name)
            if stage == "train" and family and self.is_small:
                self.training[family] = [*going, name]
                self.waiting.setdefault(family, [])
        return now

    def end(self, name: str) -> list[str]:
        """Those that waited for the item, however it ended."""
        stage, family = _family(name)
        if stage != "train" or family not in self.training:
            return []
        self.training[family].remove(name)
        trainings = [one for one in self.waiting[family] if one.startswith("train@")]
        free = trainings or ([] if self.training[family] else self.waiting[family])
        self.waiting[family] = [one for one in self.waiting[family] if one not in free]
        return free


def _family(name: str) -> tuple[str, str]:
    """Of `train@digits-mmrl-16-1`: `train`, and what its seeds share; nothing where the item is no run."""
    stage, _, item = name.partition("@")
    return stage, item.rpartition("-")[0] if item.count("-") >= 3 else ""
