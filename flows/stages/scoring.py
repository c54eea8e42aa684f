"""The pass of `evaluate` over the images of a test set: every run's figures on it, here or on a cluster."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor

from flows.cluster.scoring import AdapterToScore, ReportImages, ScoringTask, score_here, score_on_cluster
from flows.project.paths import RunKey
from flows.project.progress import progress
from flows.settings.sections import BackboneSection, ClusterSection
from mmrl_core.clip.backbone import Backbone
from mmrl_core.clip.feature_store import FeatureStore
from mmrl_core.data.shards import Manifest, Shard, shards_of
from mmrl_core.errors import UserError
from mmrl_core.evaluation.figures import PAIRED, Figures, figures_of
from mmrl_core.evaluation.scores import Columns, Encoded
from mmrl_core.method.adapter import Adapter
from mmrl_core.method.adapter_card import AdapterCard, CardOfTensors
from mmrl_core.method.baseline import Baseline
from mmrl_core.method.heads import columns_of
from mmrl_core.method.model import AdaptedCLIP
from mmrl_core.protocols import Half, TestSet, labels_of


class LoadedRun(NamedTuple):
    """A run whose adapter is loaded, with the adapter's card and the prompt template."""

    key: RunKey
    out: Path
    adapter: Adapter | Baseline
    card: AdapterCard
    template: str


@dataclass
class Pace:
    """Images that went through the tower, each once however many runs share the pass, and the seconds of the passes:
    reading, decoding, encoding and scoring, not the loading of anything."""

    images: int = 0
    seconds: float = 0.0

    @contextmanager
    def over(self, images: int) -> Iterator[None]:
        """Around a pass."""
        start = time.monotonic()
        yield
        self.images, self.seconds = self.images + images, self.seconds + time.monotonic() - start

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0


@dataclass
class Shared:
    """What all runs of one evaluation share: the prepared dataset that they are scored on, and what they run with.

    A run's model for a list of classes, with its class features (C, E), is made once: the images for validation are
    scored among the classes of a test set.
    """

    backbone: Backbone
    pool: Path
    manifest: Manifest
    trained: tuple[Half, ...]  # halves whose classes were trained on
    store: FeatureStore | None
    section: BackboneSection
    cluster: ClusterSection
    pace: Pace = field(default_factory=Pace)
    models: dict[tuple[RunKey, tuple[int, ...]], tuple[AdaptedCLIP, Tensor]] = field(default_factory=dict)

    @torch.no_grad()
    def model(self, run: LoadedRun, labels: list[int]) -> tuple[AdaptedCLIP, Tensor]:
        """Of a run for the classes of these labels."""
        key = run.key, tuple(labels)
        if key not in self.models:
            names = [self.manifest["class_names"][label] for label in labels]
            model = AdaptedCLIP(self.backbone, run.adapter, names, run.template)
            self.models[key] = model, model.text_features()
        return self.models[key]


def figures_on(
    shared: Shared, runs: list[LoadedRun], split: str, test: TestSet, wanted: Callable[[str], bool] | None = None
) -> list[Figures | None]:
    """Each run's figures on the images of one test set, among its classes; with `wanted` of these items alone, and
    without AUROC. None without an image.

    On a target the methods' runs have no trained class; a baseline's are those of the same names, as under domain
    shift.
    """
    ours, by_name = labels_of(shared.manifest, shared.trained), [run for run in runs if _knows_names(shared, run)]
    together = [([run for run in runs if run not in by_name], cast(Columns, ours))]
    together += [([run], _named(shared.manifest, run.card["class_names"])) for run in by_name]
    figures: dict[RunKey, Figures | None] = {}
    for own, trained in together:
        if own:
            figures |= _together(shared, own, split, test, trained, wanted)
    return [figures[run.key] for run in runs]


def _knows_names(shared: Shared, run: LoadedRun) -> bool:
    return not shared.trained and isinstance(run.adapter, Baseline)


def _named(manifest: Manifest, class_names: list[str]) -> dict[int, int]:
    """The places of the dataset's labels among these classes, by name."""
    columns = columns_of(manifest["class_names"], class_names).tolist()
    return {label: column for label, column in enumerate(columns) if column >= 0}


def _together(
    shared: Shared, runs: list[LoadedRun], split: str, test: TestSet, trained: Columns,
    wanted: Callable[[str], bool] | None,
) -> dict[RunKey, Figures | None]:  # fmt: skip
    """The same by run, of runs whose classes are the same."""
    manifest, pool, labels = shared.manifest, shared.pool, labels_of(shared.manifest, test.classes)
    models = [shared.model(run, labels) for run in runs]
    shards = [shard for half in test.images for shard in shards_of(pool, split, half)]
    n = sum(shard.count for shard in shards)
    if split == "test" and not n:
        raise UserError(f"{pool} has no test image of the {test.part} classes; give the dataset's test list some")
    figures: dict[RunKey, Figures | None] = {}
    with progress(f"evaluate {manifest['dataset']} {test.part} {split}", n, unit="images") as bar, shared.pace.over(n):
        encodings = _encoded(shared, runs, models, labels, shards, bar)
        for index, (run, (model, text)) in enumerate(zip(runs, models, strict=True)):
            batches = [each[index] for each in encodings]
            if wanted:
                batches = [kept for batch in batches if (kept := batch.where(wanted)).items]
            paired = () if wanted else PAIRED
            figures[run.key] = figures_of(model, text, batches, labels, trained, paired) if batches else None
    return figures


def _encoded(
    shared: Shared, runs: list[LoadedRun], models: Sequence[tuple[AdaptedCLIP, Tensor]], labels: list[int],
    shards: list[Shard], report: ReportImages,
) -> list[list[Encoded]]:  # fmt: skip
    """Every batch of images as each run's model sees it."""
    if not shared.cluster.is_distributed:
        return list(score_here([model for model, _ in models], shards, labels, report, shared.store))
    names = [shared.manifest["class_names"][label] for label in labels]
    adapters = [_to_score(run, model, text) for run, (model, text) in zip(runs, models, strict=True)]
    return score_on_cluster(shared.cluster, ScoringTask(shared.section, names, labels, adapters), shards, report)


def _to_score(run: LoadedRun, model: AdaptedCLIP, text: Tensor) -> AdapterToScore:
    tensors = {name: tensor.cpu() for name, tensor in model.adapter.state_dict().items()}
    card: CardOfTensors = {
        "adapter": run.adapter.config.model_dump(),
        "class_names": run.card["class_names"],
        "head": run.adapter.head_card,
        "calibration": run.adapter.calibration,
    }
    return AdapterToScore(card, tensors, model.template, (text.cpu(), model.zero_shot_text.cpu()))
