"""Champion and challenger, or zero-shot and a first version, compared on the images that are kept for the gate."""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from flows.project import paths
from flows.registry.versions import FetchedVersion
from flows.settings.params import Params
from mmrl_core.clip.backbone import LOGIT_SCALE
from mmrl_core.data.shards import Example, Manifest, read_manifest, stream_examples
from mmrl_core.errors import UserError
from mmrl_core.evaluation.figures import Figures, figures_of_examples
from mmrl_core.evaluation.gate import (
    REFUSED,
    Bounds,
    Decision,
    Pair,
    decide,
    decide_first,
    is_gate_image,
    latency_ratio,
)
from mmrl_core.evaluation.scores import ADAPTED, ZERO_SHOT, Columns
from mmrl_core.method.adapter import backbone_of, load_adapter
from mmrl_core.method.adapter_card import read_card
from mmrl_core.method.heads import columns_of
from mmrl_core.method.model import AdaptedCLIP
from mmrl_core.predict import Predictor
from mmrl_core.protocols import HALVES, PROTOCOLS, Half, Protocol, labels_of

TIMED_IMAGES, ROUNDS = 8, 5  # of the latency's measurement: in each round both models take every image in turn

Predicted = dict[str, dict[str, Tensor]]  # classes (N,) by part and by who predicts: two, the champion first
Answers = Callable[[bytes], object]  # to one encoded image


class Comparison(NamedTuple):
    """The gate's decision, and one row an image: its part, path and label, and the class that either predicts."""

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
    manifest = _evaluated_on(dataset, challenger)
    if (refusal := _class_list_change(champion, challenger)) and not new_classes:
        return Comparison(Decision(REFUSED, [refusal], {}), [])
    protocol, used = PROTOCOLS[params.data.protocol], _used_images(dataset)
    before, after = (_figures_by_part(version, manifest, dataset, protocol, used) for version in (champion, challenger))
    predicted = {part: {"champion": _said(before[part]), "challenger": _said(after[part])} for part in before}
    ratio = _latency_ratio(dataset, _answers(champion), _answers(challenger))
    return Comparison(decide(_pairs(after, predicted), ratio, _bounds(params)), _rows(after, predicted))


def compare_with_zero_shot(params: Params, dataset: str, first: FetchedVersion) -> Comparison:
    """A version's predictions, and those of the frozen CLIP with the same prompts, for the gate's images, and the
    decision on a version that has no champion before it. Raises as `compare_versions`."""
    manifest = _evaluated_on(dataset, first)
    protocol, used = PROTOCOLS[params.data.protocol], _used_images(dataset)
    figures = _figures_by_part(first, manifest, dataset, protocol, used)
    predicted = {part: {"zero_shot": _said(one, ZERO_SHOT), "challenger": _said(one)} for part, one in figures.items()}
    ratio = _latency_ratio(dataset, *_zero_shot_and_adapted(first))
    return Comparison(decide_first(_pairs(figures, predicted), ratio, _bounds(params)), _rows(figures, predicted))


def _evaluated_on(dataset: str, version: FetchedVersion) -> Manifest:
    """The prepared dataset's manifest. Raises UserError where that is not what the version was evaluated on."""
    manifest = read_manifest(paths.pool(dataset))
    if manifest["digest"] != version.tags.get("pool_digest"):
        raise UserError(
            f"{paths.pool(dataset)} is not the data that version {version.version} was evaluated on; "
            "run `dvc repro`, then `mmrl register`"
        )
    return manifest


def _bounds(params: Params) -> Bounds:
    return Bounds(**params.registry.model_dump(exclude={"alias"}))


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


def _said(figures: Figures, kind: str = ADAPTED) -> Tensor:
    """The class of every image (N,) by one kind of probabilities."""
    return figures.answers[kind].best


def _figures_by_part(
    version: FetchedVersion, manifest: Manifest, dataset: str, protocol: Protocol, used: set[str]
) -> dict[str, Figures]:
    """The version's figures on the gate's images of each test set, by its part (such as base and novel)."""
    backbone = backbone_of(read_card(version.adapter))
    adapter, card = load_adapter(version.adapter, backbone)
    trained, figures = _trained(manifest, card["class_names"], protocol.trains_on), {}
    for test in protocol.tests:
        labels = labels_of(manifest, test.classes)
        names = [manifest["class_names"][label] for label in labels]
        model = AdaptedCLIP(backbone, adapter, names, card["template"])
        figures[test.part] = figures_of_examples(model, _gate_images(dataset, test.images, used), labels, trained)
    return figures


def _trained(manifest: Manifest, class_names: list[str], halves: Iterable[Half]) -> Columns:
    """The labels that a version was trained on: position by position those of these halves, since a base and a novel
    class may share a name. Of a version with another list, those whose names it holds, with their places in it."""
    names, labels = manifest["class_names"], labels_of(manifest, halves)
    if class_names == [names[label] for label in labels]:
        return labels
    columns = columns_of(names, class_names).tolist()
    return {label: column for label, column in enumerate(columns) if column >= 0}


def _pairs(figures: dict[str, Figures], predicted: Predicted) -> dict[str, Pair]:
    """By part whether each image was classified rightly by the one and by the other."""
    return {
        part: Pair(*((said == figures[part].labels).numpy() for said in both.values()))
        for part, both in predicted.items()
    }


def _rows(figures: dict[str, Figures], predicted: Predicted) -> list[dict[str, Any]]:
    rows = []
    for part, one in figures.items():
        says = {who: said.tolist() for who, said in predicted[part].items()}
        for row, (item, label) in enumerate(zip(one.items, one.labels.tolist(), strict=True)):
            classes = {who: one.classes[said[row]] for who, said in says.items()}
            rows.append({"part": part, "item": item, "label": one.classes[label], **classes})
    return rows


def _answers(version: FetchedVersion) -> Answers:
    predictor = Predictor.load(version.adapter)
    return lambda image: predictor.predict([image])


def _zero_shot_and_adapted(version: FetchedVersion) -> tuple[Answers, Answers]:
    """What the frozen CLIP computes for an image, and what the version does; neither with a thread to decode it in."""
    predictor = Predictor.load(version.adapter)
    backbone, classes = predictor.model.backbone, predictor.classes()
    text = backbone.encode_text(classes.names, predictor.card["template"])

    @torch.inference_mode()
    def zero_shot(image: bytes) -> list[list[float]]:
        view = predictor.view(image, "an image of the gate")
        return (LOGIT_SCALE * backbone.encode_image(view[None]) @ text.T).softmax(-1).tolist()

    return zero_shot, lambda image: predictor.score([predictor.view(image, "an image of the gate")], [classes])


def _latency_ratio(dataset: str, champion: Answers, challenger: Answers) -> float:
    """The challenger's time for one image over the champion's, measured in turn in this process."""
    images = [example.image for example in itertools.islice(_gate_images(dataset, HALVES, set()), TIMED_IMAGES)]
    seconds = [
        [[_seconds(answer, image) for answer in (champion, challenger)] for image in images] for _ in range(ROUNDS + 1)
    ]
    return latency_ratio(np.array(seconds[1:])) if images else 1.0  # the first round warms up


def _seconds(answer: Answers, image: bytes) -> float:
    start = time.perf_counter()
    answer(image)
    return time.perf_counter() - start
