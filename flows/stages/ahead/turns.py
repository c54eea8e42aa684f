"""Which of the flow's items wait, because the process of one that runs may make their outputs ahead."""

from collections.abc import Iterable

from flows.project.resources import gpu_facts
from flows.settings.params import Params

HIDDEN = ("", "-1")  # values of CUDA_VISIBLE_DEVICES under which PyTorch finds no GPU
BUNDLED = "tiny"  # the one backbone by name that is known to be small before anything is loaded


class Turns:
    """With the bundled backbone or a GPU, of the trainings that differ in the seed alone, a family, the first makes
    all: the others wait for it, and their evaluations wait until all are trained, since one process makes them in one
    pass.
    """

    def __init__(self, params: Params):
        makes_all = params.backbone.name == BUNDLED or (params.device in ("auto", "cuda") and has_gpu())
        self.makes_all = makes_all and not params.cluster.is_distributed
        self.training: dict[str, list[str]] = {}  # by family: those that have not ended, the first one ahead
        self.waiting: dict[str, list[str]] = {}  # by family

    def begin(self, ready: Iterable[str]) -> list[str]:
        """Those of the ready items that start now; `end` gives the others later."""
        now = []
        for name in ready:
            stage, family = _family(name)
            going = self.training.get(family, [])
            if going and stage in ("train", "evaluate"):
                self.waiting[family].append(name)
            else:
                now.append(name)
            if stage == "train" and family and self.makes_all:
                self.training[family] = [*going, name]
                self.waiting.setdefault(family, [])
        return now

    def end(self, name: str) -> list[str]:
        """The items that may start since this one has ended, whether or not it failed."""
        stage, family = _family(name)
        if stage != "train" or family not in self.training:
            return []
        self.training[family].remove(name)
        trainings = [item for item in self.waiting[family] if item.startswith("train@")]
        free = trainings or ([] if self.training[family] else self.waiting[family])
        self.waiting[family] = [item for item in self.waiting[family] if item not in free]
        return free


def has_gpu() -> bool:
    """Whether PyTorch is likely to find one, without importing it; a wrong answer costs time alone."""
    devices, visible = gpu_facts()
    return any(devices) and visible not in HIDDEN


def _family(name: str) -> tuple[str, str]:
    """The stage and the family of an item: `train` and `digits-mmrl-16` of `train@digits-mmrl-16-1`; the family is
    empty where the item is not about one run."""
    stage, _, item = name.partition("@")
    return stage, item.rpartition("-")[0] if item.count("-") >= 3 else ""
