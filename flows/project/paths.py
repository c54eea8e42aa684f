"""The run key and the files it names; dvc.yaml spells the same paths."""

from pathlib import Path
from typing import NamedTuple

from mmrl_core.protocols import BASELINES

SUMMARY, REPORT = Path("reports/summary.json"), Path("reports/report.html")
CHAMPION = Path("reports/champion.js")  # loaded by the report; no output of DVC
TRAINING = Path("data/training.json")
STATE = Path(".mmrl")
FEATURES = STATE / "features"  # of the frozen backbone, kept between runs
READY = STATE / "ready"  # outputs made ahead of the stage that DVC will run for them
KNOWN = STATE / "known"  # what was found out of image files: their digests, and that they can be decoded
PREDICTIONS = STATE / "predictions"  # logged by serving, by replica


class RunKey(NamedTuple):
    dataset: str
    method: str
    shots: int
    seed: int

    @property
    def name(self) -> str:
        """`digits/mmrl-16shot/seed1`, the part of the path that all of a run's outputs share."""
        return f"{self.dataset}/{self._within}"

    @property
    def _within(self) -> str:
        """Baselines of a dataset are made together, and lie together."""
        if self.method in BASELINES:
            return f"{baselines(self.shots)}/{self.method}/seed{self.seed}"
        return f"{self.method}-{self.shots}shot/seed{self.seed}"

    def command(self, stage: str, target: str | None = None) -> str:
        """The command that makes this run's output of a stage: `mmrl train --dataset digits ...`."""
        options = f"--dataset {self.dataset} --method {self.method} --shots {self.shots} --seed {self.seed}"
        return f"mmrl {stage} {options}{f' --target {target}' if target else ''}"

    @property
    def few_shot(self) -> Path:
        return few_shot(self.dataset, self.shots, self.seed)

    @property
    def model(self) -> Path:
        return models(self.dataset) / self._within

    def results(self, target: str | None = None) -> Path:
        """The folder of the evaluation on `target`, by default the run's own dataset."""
        return results(self.dataset, target) / self._within


def models(dataset: str) -> Path:
    """Where adapters that were trained on a dataset lie."""
    return Path("models") / dataset


def results(dataset: str, target: str | None = None) -> Path:
    """Where evaluations of what was trained on a dataset lie."""
    return Path(f"results/{dataset}-to-{target or dataset}")


def baselines(shots: int) -> str:
    """The folder of all baselines' outputs, in models/<dataset> and in the results."""
    return f"baselines-{shots}shot"


def source(dataset: str) -> Path:
    return Path(f"data/{dataset}.source.json")


def pool(dataset: str) -> Path:
    return Path(f"data/{dataset}/pool")


def few_shot(dataset: str, shots: int, seed: int) -> Path:
    return Path(f"data/{dataset}/{shots}shot-seed{seed}")


def search(dataset: str, method: str) -> Path:
    return Path(f"results/{dataset}/search/{method}.json")


def search_command(dataset: str, method: str) -> str:
    """The command that makes it."""
    return f"mmrl tune --dataset {dataset} --method {method}"


def searches(dataset: str, method: str = "") -> Path:
    """The state of searches, which outlives the stage: trials done so far, by dataset and method."""
    return STATE / "searches" / dataset / method
