"""Champion and challenger compared on the images that are kept for the gate."""

import itertools
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flows.project import paths
from flows.registry.versions import FetchedVersion
from flows.settings.params import Params
from mmrl_core.data.shards import Example, Manifest, read_manifest, stream_examples
from mmrl_core.errors import UserError
from mmrl_core.evaluation.gate import REFUSED, Bounds, Decision, Pair, decide, is_gate_image, latency_ratio
from mmrl_core.evaluation.scores import Columns, Scores, score
from mmrl_core.method.adapter import backbone_of, load_adapter
from mmrl_core.method.adapter_card import read_card
from mmrl_core.method.heads import columns_of
from mmrl_core.method.model import AdaptedCLIP
from mmrl_core.predict import Predictor
from mmrl_core.protocols import HALVES, PROTOCOLS, Half, Protocol, labels_of

TIMED_IMAGES, ROUNDS = 8, 5  # of the latency's measurement: in each round both models take every image in turn


class Comparison(NamedTuple):
    """The gate's decision, and one row an image: its part, path and label, and the class that each version predicts."""

    decision: Decision
    rows: list[dict[str, Any]]


def compare_versions(
    params: Params, dataset: str, champion: FetchedVersion, challenger: FetchedVersion, new_classes: bool = False
) -> Comparison:
    """Both versions' predictions for the gate's images of the prepared dataset, and the decision by the settings'
    bounds.

    `new_classes` allows class lists that differ; both then choose among the challenger's. Raises UserError when what
    is prepared here is not what the challenger was evaluated on.
    """
    manifest = read_manifest(paths.pool(dataset))
    if manifest["digest"] != challenger.tags.get("pool_digest"):
        raise UserError(
            f"{paths.pool(dataset)} is not the data that version {challenger.version} was evaluated on; "
            "run `dvc repro`, then `mmrl register`"
        )
    if (refusal := _class_list_change(champion, challenger)) and not new_classes:
        return Comparison(Decision(REFUSED, [refusal], {}), [])
    protocol, used = PROTOCOLS[params.data.protocol], _used_images(dataset)
    before, after = (_scores_by_part(version, manifest, dataset, protocol, used) for version in (champion, challenger))
    parts = {part: Pair(_is_right(before[part]), _is_right(after[part])) for part in before}
    bounds = Bounds(**params.registry.model_dump(exclude={"alias"}))
    ratio = _latency_ratio(champion, challenger, dataset)
    rows = [row for part in parts for row in _rows(part, before[part], after[part])]
    return Comparison(decide(parts, ratio, bounds), rows)


def _class_list_change(champion: FetchedVersion, challenger: FetchedVersion) -> str | None:
    """How the class lists differ, as the reason of a refusal; None where they are the same."""
    before, now = (read_card(version.adapter)["class_names"] for version in (champion, challenger))
    if before == now:
        return None
    gone, new = ([*(Counter(one) - Counter(other)).elements()] for one, other in ((before, now), (now, before)))
    changes = f"new: {', '.join(new[:5]) or 'none'}; gone: {', '.join(gone[:5]) or 'none'}"
    changes = changes if gone or new else "they have another order"
    return f"the classes differ from the champion's ({changes}); allow that with --allow-new-classes"


def _used_images(dataset: str) -> set[str]:
    """Paths of the prepared few-shot sets' validation images: searches and thresholds were chosen on those."""
    folders = [path.parent for path in Path(f"data/{dataset}").glob("*shot-seed*/manifest.json")]
    return {example.path for folder in folders for half in HALVES for example in stream_examples(folder, "val", half)}


def _gate_images(dataset: str, halves: tuple[str, ...], used: set[str]) -> Iterator[Example]:
    for half in halves:
        for example in stream_examples(paths.pool(dataset), "val", half):
            if is_gate_image(example.path) and example.path not in used:
                yield example


def _scores_by_part(
    version: FetchedVersion, manifest: Manifest, dataset: str, protocol: Protocol, used: set[str]
) -> dict[str, Scores]:
    """The version's scores on the gate's images of each test set, by its part (such as base and novel)."""
    backbone = backbone_of(read_card(version.adapter))
    adapter, card = load_adapter(version.adapter, backbone)
    trained, scores = _trained(manifest, card["class_names"], protocol.trains_on), {}
    for test in protocol.tests:
        labels = labels_of(manifest, test.classes)
        names = [manifest["class_names"][label] for label in labels]
        model = AdaptedCLIP(backbone, adapter, names, card["template"])
        scores[test.part] = score(model, _gate_images(dataset, test.images, used), labels, trained)
    return scores


def _trained(manifest: Manifest, class_names: list[str], halves: Iterable[Half]) -> Columns:
    """The labels that a version was trained on: position by position those of these halves, since a base and a novel
    class may share a name. Of a version with another list, those whose names it holds, with their places in it."""
    names, labels = manifest["class_names"], labels_of(manifest, halves)
    if class_names == [names[label] for label in labels]:
        return labels
    columns = columns_of(names, class_names).tolist()
    return {label: column for label, column in enumerate(columns) if column >= 0}


def _is_right(scores: Scores) -> np.ndarray:
    """Whether each image was classified rightly, (N,) bool."""
    return (scores.adapted.argmax(-1) == scores.labels).numpy()


def _rows(part: str, champion: Scores, challenger: Scores) -> Iterator[dict[str, Any]]:
    predicted = (
        [scores.classes[index] for index in scores.adapted.argmax(-1).tolist()] for scores in (champion, challenger)
    )
    for item, label, before, after in zip(champion.items, champion.labels.tolist(), *predicted, strict=True):
        yield {"part": part, "item": item, "label": champion.classes[label], "champion": before, "challenger": after}


def _latency_ratio(champion: FetchedVersion, challenger: FetchedVersion, dataset: str) -> float:
    """The challenger's time for one image over the champion's, measured in turn in this process."""
    images = [example.image for example in itertools.islice(_gate_images(dataset, HALVES, set()), TIMED_IMAGES)]
    predictors = [Predictor.load(version.adapter) for version in (champion, challenger)]
    seconds = [[[_seconds(each, image) for each in predictors] for image in images] for _ in range(ROUNDS + 1)]
    return latency_ratio(np.array(seconds[1:])) if images else 1.0  # the first round warms up


def _seconds(predictor: Predictor, image: bytes) -> float:
    start = time.perf_counter()
    predictor.predict([image])
    return time.perf_counter() - start
