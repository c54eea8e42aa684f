"""A project folder with the results of runs whose figures are known, as the stages write them."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet

from flows.project import paths
from flows.project.paths import RunKey
from mmrl_core.data.embedded.digits import CLASS_NAMES
from mmrl_core.data.shards import read_manifest, stream_examples, write_pool
from mmrl_core.files import write_json
from mmrl_core.search.comparison import comparisons

FACTS = {"n": 4, "ece": 0.05, "nll": 0.3, "tested_classes": 2, "macro_f1": 0.4, "balanced_accuracy": 0.45,
         "top5_accuracy": 0.95, "auroc": 0.9}  # fmt: skip
TRIAL = {"log_likelihood": -0.5, "log_likelihood_se": 0.1, "harmonic_mean": 0.9, "harmonic_mean_se": 0.02}
SHA = "0123456789abcdef" * 4


def write_run(
    key: RunKey, right: dict[str, int], target: str | None = None, without: dict[str, int] | None = None
) -> None:
    """Of 4 images a part zero-shot gets the first 2 right, the adapter the first `right`; its ECE is 0.02 a seed. Where
    it has a probe, it gets the first `without` right without it, with an ECE of 0.03."""
    folder = key.results(target)
    folder.mkdir(parents=True)
    items = _items(target or key.dataset)
    rows = [
        {"item": items[part][i], "part": part, "label": 0, "prediction": int(i >= count),
         "without_probe_prediction": int(i >= (without or right)[part]), "zero_shot_prediction": int(i >= 2)}
        for part, count in right.items() for i in range(4)
    ]  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "predictions.parquet")
    parts = {part: {**FACTS, "accuracy": count / 4, "ece": 0.02 * key.seed} for part, count in right.items()}
    zero_shot = {part: {**FACTS, "accuracy": 0.5, "ece": 0.11} for part in right}
    names = {str(label): name for label, name in enumerate(CLASS_NAMES)}
    facts = {"target": target or key.dataset, "preset": "published", "parts": list(right), "class_names": names,
             "beta": 0.9, "template": "a {}."}  # fmt: skip
    found = {**key._asdict(), **facts, **parts, "zero_shot": zero_shot}
    if without:
        found["without_probe"] = {
            part: {**FACTS, "accuracy": count / 4, "ece": 0.03} for part, count in without.items()
        }
    write_json(folder / "metrics.json", found)


def _items(dataset: str) -> dict[str, list[str]]:
    """Four test images for every name that a part may have; without a pool, names alone."""
    pool = paths.pool(dataset)
    if not pool.exists():
        return {part: [f"{part}/{i}.png" for i in range(4)] for part in ("base", "novel", "all")}
    found = [example.path for example in stream_examples(pool, "test", "base")][:8]
    return {"base": found[:4], "novel": found[4:], "all": found[:4]}


def write_model(key: RunKey, losses: list[float]) -> None:
    """An adapter's card without its tensors."""
    card = {
        "sha256": SHA, "settings": {"train.lr": 0.001}, "sources": {"train.lr": "preset published"},
        "template": "a {}.", "trainable": 7, "data": {"digest": SHA},
        "backbone": {"name": "tiny", "weights": None, "sha256": SHA},
        "history": [{"loss": loss} for loss in losses],
    }  # fmt: skip
    key.model.mkdir(parents=True)
    write_json(key.model / "adapter.json", card)


def write_search(key: RunKey, published: dict, chosen: int) -> None:
    """Two trials, of which the first was stopped after one partition."""
    params = ({"adapter.reg_weight": 0.5, "adapter.insertion_depth": 3},
              {"adapter.reg_weight": 3.25, "adapter.insertion_depth": 5})  # fmt: skip
    trials = [{**TRIAL, "params": one, "scores": [TRIAL] * count} for one, count in zip(params, (1, 2), strict=True)]
    path = paths.search(key.dataset, key.method)
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {"trials": trials, "chosen": chosen, "choice": params[chosen], "published": published}
    found["ahead_of"] = comparisons(trials, trials[chosen], "harmonic_mean", published)
    write_json(
        path,
        {
            **found,
            "search": {"objective": "harmonic_mean"},
            "template": "a {}.",
            "dataset": key.dataset,
            "method": key.method,
        },
    )


def write_digits_pool(source) -> None:
    """The test images that the report shows."""
    pool = paths.pool("digits")
    pool.mkdir(parents=True)
    write_pool(source, pool)
    assert read_manifest(pool)["counts"]["test"]


def results_of_two_datasets() -> dict:
    """What a summary.json says of two datasets, zero-shot CLIP and two methods, 3 seeds, with intervals as wide as they
    came out on `digits` (600 test images a part) and `objects`."""
    gains = {"digits": (0.015, 0.010, 0.009), "objects": (0.038, 0.038, 0.028)}  # half intervals
    rows = []
    for dataset, base in (("digits", 0.94), ("objects", 0.67)):
        rows.append(_row(dataset, "zero_shot", base, 0.0))
        rows += [{**_row(dataset, method, base + 0.02, 0.004), "gain": _gains(gains[dataset])}
                 for method in ("mmrl", "mmrlpp")]  # fmt: skip
    searches = [{"dataset": dataset, "method": method, "template": "a {}.", "choice": {"params": {"train.lr": 0.004}}}
                for dataset in gains for method in ("mmrl", "mmrlpp")]  # fmt: skip
    facts = {"protocol": "base-to-novel", "preset": "published", "backbone": "tiny"}
    return {**facts, "rows": rows, "searches": searches}


def _row(dataset: str, method: str, accuracy: float, std: float) -> dict:
    parts = {part: {"mean": accuracy, "std": std, "values": [accuracy] * 3} for part in ("base", "novel")}
    seeds = [1, 2, 3] if std else []
    return {"source": dataset, "target": dataset, "shots": 16, "method": method, "seeds": seeds, "accuracy": parts,
            "harmonic_mean": accuracy, "harmonic_mean_std": std, "ece": dict.fromkeys(parts, 0.02)}  # fmt: skip


def _gains(halves: tuple[float, ...]) -> dict:
    names = ("base", "novel", "harmonic_mean")
    return {name: {"mean": 0.02, "low": 0.02 - half, "high": 0.02 + half}
            for name, half in zip(names, halves, strict=True)}  # fmt: skip


def choose_otherwise(results: dict) -> None:
    """As if the first search, of `mmrl` on `digits`, had chosen other settings."""
    results["searches"][0]["choice"]["params"]["train.lr"] = 0.001


def shift(row: dict, by: float) -> None:
    """The accuracy of every part of a row, and so the harmonic mean and the gains."""
    for part in row["accuracy"].values():
        part["mean"] += by
    if "harmonic_mean" in row:
        row["harmonic_mean"] += by
    for gain in row.get("gain", {}).values():
        gain["mean"] += by


RUNS = [(RunKey("digits", "mmrl", 16, seed), None) for seed in (1, 2)]
MATRIX = {"datasets": ["digits"], "methods": ["mmrl"], "shots": [16], "seeds": [1, 2]}


def write_runs() -> list:
    """Both RUNS, of which the answer is known."""
    write_run(RUNS[0][0], {"base": 4, "novel": 2})
    write_run(RUNS[1][0], {"base": 3, "novel": 2})
    return RUNS


def rewrite(path: Path, change: Callable[[dict], None]) -> None:
    """Change a JSON file's document in place."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
