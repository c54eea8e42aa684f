"""Champion and challenger on the same images, those that are kept for the gate, and the decision on what came out."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flows.project import paths
from flows.registry.versions import Fetched
from flows.settings.params import Params
from mmrl_core.clip.backbone import Backbone, load_backbone
from mmrl_core.data.shards import Example, Manifest, read_manifest, stream_examples
from mmrl_core.errors import UserError
from mmrl_core.evaluation.gate import REFUSED, Bounds, Decision, Pair, decide, is_gate_image, latency_ratio
from mmrl_core.evaluation.scores import Scores, score
from mmrl_core.method.adapter import load_adapter
from mmrl_core.method.adapter_card import read_card
from mmrl_core.method.model import AdaptedCLIP
from mmrl_core.predict import Predictor
from mmrl_core.protocols import HALVES, PROTOCOLS, TestSet, labels_of

TIMED_IMAGES, ROUNDS = 8, 5  # of the latency's measurement: each model takes every image in turn


class Contest(NamedTuple):
    """`rows` has one dict an image: its part, its label, and what either of the two said."""

    decision: Decision
    rows: list[dict[str, Any]]


def hold(params: Params, dataset: str, champion: Fetched, challenger: Fetched, new_classes: bool = False) -> Contest:
    """Let both classify the gate's images of the dataset as it is prepared here, and decide by the settings' bounds.

    `new_classes` allows class lists that differ; both then choose among the challenger's. Raises UserError when what
    is prepared here is not what the challenger was evaluated on.
    """
    manifest = read_manifest(paths.pool(dataset))
    if manifest["digest"] != challenger.tags.get("pool_digest"):
        raise UserError(
            f"{paths.pool(dataset)} is not the data that version {challenger.version} was evaluated on; "
            "run `dvc repro`, then `mmrl register`"
        )
    if (refusal := _class_lists(champion, challenger)) and not new_classes:
        return Contest(Decision(REFUSED, [refusal], {}), [])
    tests, used = PROTOCOLS[params.data.protocol].tests, _used(dataset)
    scores = [_Examinee(one, manifest).scores(dataset, tests, used) for one in (champion, challenger)]
    parts = {part: Pair(*(_right(one[part]) for one in scores)) for part in scores[0]}
    bounds = Bounds(**params.registry.model_dump(exclude={"alias"}))
    ratio = _latency_ratio(champion, challenger, dataset)
    return Contest(decide(parts, ratio, bounds), [row for part in parts for row in _rows(part, *scores)])


def _class_lists(champion: Fetched, challenger: Fetched) -> str | None:
    """What is to be said of class lists that differ."""
    before, now = (read_card(one.adapter)["class_names"] for one in (champion, challenger))
    if before == now:
        return None
    gone, new = [name for name in before if name not in now], [name for name in now if name not in before]
    told = f"new: {', '.join(new[:5]) or 'none'}; gone: {', '.join(gone[:5]) or 'none'}"
    return f"the classes differ from the champion's ({told}); allow that with --allow-new-classes"


def _used(dataset: str) -> set[str]:
    """Validation images of the few-shot sets that are prepared: search and thresholds were settled on those."""
    folders = [path.parent for path in Path(f"data/{dataset}").glob("*shot-seed*/manifest.json")]
    return {one.path for folder in folders for half in HALVES for one in stream_examples(folder, "val", half)}


def _gate_images(dataset: str, halves: tuple[str, ...], used: set[str]) -> Iterator[Example]:
    for half in halves:
        for example in stream_examples(paths.pool(dataset), "val", half):
            if is_gate_image(example.path) and example.path not in used:
                yield example


class _Examinee:
    """A version and the backbone that it stands on."""

    def __init__(self, fetched: Fetched, manifest: Manifest) -> None:
        self.manifest = manifest
        self.backbone = _backbone(fetched)
        self.adapter, self.card = load_adapter(fetched.adapter, self.backbone)

    def scores(self, dataset: str, tests: tuple[TestSet, ...], used: set[str]) -> dict[str, Scores]:
        return {test.part: self._score(test, _gate_images(dataset, test.images, used)) for test in tests}

    def _score(self, test: TestSet, examples: Iterator[Example]) -> Scores:
        labels = labels_of(self.manifest, test.classes)
        names = [self.manifest["class_names"][label] for label in labels]
        trained = [label for label, name in zip(labels, names, strict=True) if name in self.card["class_names"]]
        return score(AdaptedCLIP(self.backbone, self.adapter, names, self.card["template"]), examples, labels, trained)


def _backbone(fetched: Fetched) -> Backbone:
    named = read_card(fetched.adapter)["backbone"]
    return load_backbone(named["name"], named["weights"])


def _right(scores: Scores) -> np.ndarray:
    return (scores.adapted.argmax(-1) == scores.labels).numpy()


def _rows(part: str, champion: dict[str, Scores], challenger: dict[str, Scores]) -> Iterator[dict[str, Any]]:
    one, other = champion[part], challenger[part]
    said = ([scores.classes[index] for index in scores.adapted.argmax(-1).tolist()] for scores in (one, other))
    for item, label, first, second in zip(one.items, one.labels.tolist(), *said, strict=True):
        yield {"part": part, "item": item, "label": one.classes[label], "champion": first, "challenger": second}


def _latency_ratio(champion: Fetched, challenger: Fetched, dataset: str) -> float:
    """The challenger's time for one image over the champion's, in turn in this process."""
    images = [one.image for _, one in zip(range(TIMED_IMAGES), _gate_images(dataset, HALVES, set()), strict=False)]
    predictors = [Predictor.load(one.adapter) for one in (champion, challenger)]
    seconds = [[[_seconds(one, image) for one in predictors] for image in images] for _ in range(ROUNDS + 1)]
    return latency_ratio(np.array(seconds[1:])) if images else 1.0  # the first round warms up


def _seconds(predictor: Predictor, image: bytes) -> float:
    start = time.perf_counter()
    predictor.predict([image])
    return time.perf_counter() - start
