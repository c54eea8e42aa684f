"""What the report shows beside its tables, from the files of the runs: curves, answers class by class, settings."""

import importlib.metadata
import tarfile
from collections.abc import Iterable, Sequence
from itertools import groupby, product
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from flows.project import paths
from flows.project.metrics import METRICS, WITHOUT_PROBE, read_metrics
from flows.project.paths import RunKey
from flows.project.predictions import read_answers
from flows.report.by_class import KINDS, ClassGain
from flows.report.page import Curves, Exhibit, Material, Settings
from flows.report.searches import Search
from flows.report.tables import METHOD_TITLES, WITH_PROBE
from flows.settings.params import Params
from mmrl_core.data.own.places import listed
from mmrl_core.data.shards import Shard, read_member, shards_of
from mmrl_core.data.source import told_apart
from mmrl_core.errors import Damaged, UserError
from mmrl_core.method.adapter_card import AdapterCard, read_unverified_card
from mmrl_core.parsing import parse_json
from mmrl_core.protocols import BASELINES, HALVES
from mmrl_core.search.trial import read_search_file

PREDICTIONS = "predictions.parquet"
SHOWN = 8  # images in a grid
PACKAGES = ("mmrl-ops", "torch", "open_clip_torch", "scikit-learn", "ray", "dvc", "mlflow", "prefect", "numpy")
VALIDATION = "validation"
CHOSEN = {  # keys of a card's sections
    "head": ("adapter_weight", "head_weight", "inverse_regularization", "sharpness"),
    "calibration": ("trained", "without_probe", "other"),
}


def gather(params: Params, runs: Sequence[tuple[RunKey, str | None]]) -> Material:
    """Everything for the page. Raises UserError on the first file that is missing or damaged."""
    groups: dict[tuple[str, str | None, str], list[RunKey]] = {}
    for key, target in runs:
        if key.shots == max(params.shots):
            groups.setdefault((key.dataset, target, key.method), []).append(key)
    trained = [keys for (_, target, _), keys in groups.items() if target is None]
    return Material(
        _curves(trained),
        [search for pair in product(params.datasets, params.methods) if (search := _search(*pair))],
        [_exhibit(keys, target) for (_, target, method), keys in groups.items() if method in params.methods],
        [_settings(keys, params.targets) for keys in trained],
        _versions(),
    )


def _card(key: RunKey) -> AdapterCard:
    keys = ("settings", "sources", "sha256", "template", "trainable", "data", "backbone")
    return read_unverified_card(key.model, made_by=key.command("train"), keys=keys)


def _curves(groups: list[list[RunKey]]) -> Curves:
    """The metrics of every epoch by dataset, method and seed, of the adapters that have a history."""
    curves: Curves = {}
    for keys in groups:
        name = f"{keys[0].dataset}, {keys[0].shots} shots"
        histories = {key.seed: _card(key).get("history") for key in keys}
        known = {
            seed: [epoch for epoch in history if "loss" in epoch] for seed, history in histories.items() if history
        }
        if known:
            curves.setdefault(name, {})[keys[0].method] = known
    return curves


def _search(dataset: str, method: str) -> Search | None:
    path = paths.search(dataset, method)
    document = read_search_file(path, ("trials", "search"), made_by=paths.search_command(dataset, method))
    if not document["trials"]:
        return None
    name, objective = f"{dataset}, {METHOD_TITLES[method]}", document["search"]["objective"]
    return Search(name, document["trials"], document["chosen"], objective, str(path))


def _exhibit(keys: list[RunKey], target: str | None) -> Exhibit:
    """The answers of all seeds on one test set."""
    key, folders = keys[0], [key.results(target) for key in keys]
    made_by = key.command("evaluate", target)
    metrics = [read_metrics(folder, ("class_names",), made_by) for folder in folders]
    by_label, method = metrics[0]["class_names"], key.method
    if any(WITHOUT_PROBE in one for one in metrics):  # which its predictions are with
        method += WITH_PROBE
    names = dict(zip(by_label, told_apart(list(by_label.values())), strict=True))
    answers = pd.concat([read_answers(folder / PREDICTIONS, made_by) for folder in folders], ignore_index=True)
    kinds, order = _kinds(answers), [*KINDS, ""]
    labels = sorted({*answers["label"], *answers["prediction"]},  # a class may be predicted and have no image
                    key=lambda label: (order.index(kinds.get(label, "")), label))  # fmt: skip
    _check_named(folders[0], {*labels, *answers["zero_shot_prediction"]}, names)
    won, lost = _shown(target or key.dataset, read_answers(folders[0] / PREDICTIONS, made_by), names)
    head = key.dataset if target is None else f"{key.dataset} to {target}"
    pattern = folders[0].parent / "seed*" / "predictions.parquet"
    return Exhibit(
        f"{head}, {METHOD_TITLES[method]}, {key.shots} shots",
        [names[str(label)] for label in labels], [kinds.get(label, "") for label in labels],
        *_confusion(answers, labels), _gains(answers, names, kinds), won, lost,
        f"{pattern}; images: seed {key.seed}",
    )  # fmt: skip


def _confusion(answers: pd.DataFrame, labels: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of true and predicted class (n, 2) that any image has, as places in `labels` and in their order, and the
    images of each (n,): of many classes far fewer than there are pairs."""
    place = pd.Series(range(len(labels)), index=labels)
    pairs = np.stack([place[answers[name]].to_numpy() for name in ("label", "prediction")], axis=1)
    return np.unique(pairs, axis=0, return_counts=True)


def _kinds(answers: pd.DataFrame) -> dict[int, str]:
    """Which classes are base and which novel, by label, where the protocol tests both."""
    if set(answers["part"]) != set(KINDS):
        return {}
    return dict(zip(answers["label"], answers["part"], strict=True))


def _gains(answers: pd.DataFrame, names: dict[str, str], kinds: dict[int, str]) -> list[ClassGain]:
    """Every class's accuracy minus zero-shot's."""
    truth = answers["label"]
    gain = (answers["prediction"] == truth).astype(float) - (answers["zero_shot_prediction"] == truth)
    by_label = gain.groupby(truth).mean()
    pairs = zip(by_label.index.tolist(), by_label.tolist(), strict=True)
    return [ClassGain(names[str(label)], value, kinds.get(label, "")) for label, value in pairs]


def _check_named(folder: Path, labels: set[int], names: dict[str, str]) -> None:
    if unnamed := sorted(label for label in labels if str(label) not in names):
        raise Damaged(f"{folder / METRICS} names no class {unnamed[0]} of the predictions; run `mmrl evaluate` again")


def _shown(dataset: str, answers: pd.DataFrame, names: dict[str, str]) -> list[list[tuple[bytes, str]]]:
    """Images, each with a caption, that the adapter alone and that zero-shot alone got right, spread over the set."""
    adapted, zero_shot = (answers[name] == answers["label"] for name in ("prediction", "zero_shot_prediction"))
    chosen = [_spread(answers[adapted & ~zero_shot]), _spread(answers[zero_shot & ~adapted])]
    wanted = set(chosen[0]["item"]) | set(chosen[1]["item"])
    images = _images(dataset, wanted) if wanted else {}
    return [[(images[str(row.item)], _caption(row, names)) for row in rows.itertuples()] for rows in chosen]


def _spread(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.iloc[np.unique(np.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).round().astype(int))]


def _images(dataset: str, items: set[str]) -> dict[str, bytes]:
    """The test images of these paths. Raises UserError when a shard cannot be read or one of them is in none."""
    images: dict[str, bytes] = {}
    pool = paths.pool(dataset)
    for shard in (shard for half in HALVES for shard in shards_of(pool, "test", half)):
        try:
            images |= _images_of(shard, items)
        except (OSError, tarfile.TarError, LookupError, TypeError, ValueError) as error:
            raise UserError(
                f"cannot read the shard {shard.path} ({error}); run `mmrl prepare --dataset {dataset}` again"
            ) from None
    if missing := sorted(items - images.keys()):
        raise UserError(f"{pool} has no image {missing[0]}; run `mmrl evaluate` again")
    return images


def _images_of(shard: Shard, items: set[str]) -> dict[str, bytes]:
    """Those of a shard that are among `items`, by path; of the others only the JSON is read."""
    if shard.tars:
        return {facts["path"]: image for facts, image in listed(shard.path, shard.tars, items)}
    images = {}
    with tarfile.open(shard.path) as tar:
        for _, members in groupby(tar, key=lambda member: member.name.partition(".")[0]):
            facts, (image,) = _divided(members)
            path = parse_json(read_member(tar, facts))["path"]
            if path in items:
                images[path] = read_member(tar, image)
    return images


def _divided(members: Iterable[tarfile.TarInfo]) -> tuple[tarfile.TarInfo, list[tarfile.TarInfo]]:
    """A sample's JSON, and its other members."""
    members = sorted(members, key=lambda member: not member.name.endswith(".json"))
    return members[0], members[1:]


def _caption(row: Any, names: dict[str, str]) -> str:
    """`row` is one of predictions.parquet."""
    true, adapted, zero_shot = (names[str(label)] for label in (row.label, row.prediction, row.zero_shot_prediction))
    return f"{true}; adapter: {adapted}; zero-shot: {zero_shot}"


def _settings(keys: list[RunKey], targets: list[str]) -> Settings:
    cards = [_card(key) for key in keys]
    first, key = cards[0], keys[0]
    values = [(name, first["settings"][name], first["sources"].get(name, "")) for name in sorted(first["settings"])]
    searched = VALIDATION if key.method in BASELINES else "search"
    values += [("template", first["template"], searched), ("trainable parameters", first["trainable"], "count")]
    values += _chosen(cards)
    values += [line for target in targets for line in _on_target(key, target)]
    digests = [(f"adapter, seed {run.seed}", card["sha256"]) for run, card in zip(keys, cards, strict=True)]
    digests += [(f"data, seed {run.seed}", card["data"]["digest"]) for run, card in zip(keys, cards, strict=True)]
    digests.append(("backbone", first["backbone"]["sha256"]))
    name = f"{key.dataset}, {METHOD_TITLES[key.method]}, {key.shots} shots"
    return Settings(name, values, digests, str(key.model.parent / "seed*" / "adapter.json"))


def _chosen(cards: list[AdapterCard]) -> list[tuple[str, Any, str]]:
    """What few-shot validation chose for every seed, in their order; nothing of what none of them has."""
    lines = []
    for section, names in CHOSEN.items():
        each = [cast(dict[str, Any], card.get(section) or {}) for card in cards]
        for name in (name for name in names if any(name in one for one in each)):
            values = ", ".join(f"{one[name]:.4g}" if name in one else "none" for one in each)
            lines.append((f"{section} {name.replace('_', ' ')}", values, f"{VALIDATION}, by seed"))
    return lines


def _on_target(key: RunKey, target: str) -> list[tuple[str, Any, str]]:
    """Beta and template of the evaluation on a target, where they may differ from those of training."""
    path = key.results(target) / METRICS
    metrics = read_metrics(path.parent, ("beta", "template"), key.command("evaluate", target))
    return [(f"{name} on {target}", metrics[name], str(path)) for name in ("beta", "template")]


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from a folder, never installed
            continue
    return versions
