"""One run's evaluation as files: metrics.json and predictions.parquet."""

from functools import partial
from pathlib import Path
from typing import Any

from flows import paths
from flows.paths import RunKey
from flows.predictions import write_predictions
from flows.progress import progress
from mmrl_core.adapter import load_adapter
from mmrl_core.backbone import Backbone
from mmrl_core.data.shards import read_manifest, stream_examples
from mmrl_core.errors import UserError
from mmrl_core.evaluation import Scores, score, summary
from mmrl_core.files import write_json
from mmrl_core.model import AdaptedCLIP
from mmrl_core.protocols import Protocol, TestSet, harmonic_mean
from mmrl_core.uncertainty import Outcomes, paired_gains


def evaluate_run(backbone: Backbone, key: RunKey, protocol: Protocol, out: Path) -> dict[str, Any]:
    """Score the run's adapter and zero-shot on its dataset's pool; returns what metrics.json holds."""
    pool = paths.pool(key.dataset)
    manifest = read_manifest(pool)
    adapter, card = load_adapter(key.model, backbone)
    _check_classes(card, [manifest["class_names"][label] for label in manifest[protocol.trains_on]], key)
    score_on = partial(_score, backbone, adapter, manifest, card["template"], pool)
    scores = {test.half: score_on("test", test) for test in protocol.tests}
    trained = next(test for test in protocol.tests if test.half == protocol.trains_on)
    validation = score_on("val", trained)
    metrics = {
        **key._asdict(),
        "protocol": card["data"]["protocol"],
        **_halves({half: (part.adapted, part.labels) for half, part in scores.items()}),
        "zero_shot": _halves({half: (part.zero_shot, part.labels) for half, part in scores.items()}),
        "gain": paired_gains([{half: _outcomes(part) for half, part in scores.items()}]),
        "validation": {trained.half: summary(validation.adapted, validation.labels)} if validation.items else {},
        "adapter_sha256": card["sha256"],
        "backbone_sha256": backbone.weights_sha256,
        "data_digest": manifest["digest"],
    }
    write_predictions(out / "predictions.parquet", scores, manifest)
    write_json(out / "metrics.json", metrics)
    return metrics


def _check_classes(card: dict, names: list[str], key: RunKey) -> None:
    if card["class_names"] != names:
        raise UserError(
            f"{key.model} was trained on classes {card['class_names'][:3]}... but {paths.pool(key.dataset)} has "
            f"{names[:3]}...; run `mmrl train` again"
        )


def _score(backbone: Backbone, adapter, manifest: dict, template: str, pool: Path, split: str, test: TestSet) -> Scores:
    labels = manifest[test.half]
    model = AdaptedCLIP(backbone, adapter, [manifest["class_names"][i] for i in labels], template)
    n = sum(shard["count"] for shard in manifest["shards"] if (shard["split"], shard["half"]) == (split, test.half))
    if split == "test" and not n:
        raise UserError(f"{pool} has no test image of the {test.half} classes; give the dataset's test list some")
    with progress(f"evaluate {test.half} {split}", n) as bar:
        return score(model, stream_examples(pool, split, test.half), labels, test.logits, bar)


def _halves(parts: dict) -> dict[str, Any]:
    """The summaries of base and novel, their harmonic mean and the number of images."""
    halves = {half: summary(*part) for half, part in parts.items()}
    accuracies = [one["accuracy"] for one in halves.values()]
    return {**halves, "harmonic_mean": harmonic_mean(*accuracies), "n": sum(one["n"] for one in halves.values())}


def _outcomes(scores: Scores) -> Outcomes:
    truth = scores.labels
    right = (probabilities.argmax(-1) == truth for probabilities in (scores.adapted, scores.zero_shot))
    return Outcomes(scores.items, *(one.numpy() for one in right))
