"""What a run's evaluation takes from the settings: the protocol, and beta by target."""

import shutil
from dataclasses import replace

import pyarrow.parquet
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score

from flows.project import paths
from flows.project.paths import RunKey
from flows.settings.params import Params
from flows.stages.evaluate import RunToEvaluate, metrics_of_each
from flows.stages.scoring import Pace
from mmrl_core.clip.backbone import load_backbone
from mmrl_core.config import AdapterConfig
from mmrl_core.data.catalog import open_source
from mmrl_core.data.embedded.digits import CLASS_NAMES
from mmrl_core.data.shards import write_pool
from mmrl_core.errors import UserError
from mmrl_core.method.adapter import Adapter, save_adapter
from mmrl_core.protocols import PROTOCOLS

KEY = RunKey("digits", "mmrlpp", 1, 1)
MATRIX = {"datasets": ["digits"], "methods": ["mmrlpp"], "shots": [1], "seeds": [1]}
TRANSFER = {"data": {"protocol": "cross-dataset"}, "targets": ["food101"]}


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("tiny")


@pytest.fixture
def project(tmp_path, monkeypatch, backbone):
    """An untrained MMRL++ adapter for transfer, and a few shifted digits under a key that has a published beta."""
    monkeypatch.chdir(tmp_path)
    source = open_source("digits_inverted", "")
    source = replace(source, key="food101", test=source.test[::40])
    paths.pool("food101").mkdir(parents=True)
    write_pool(source, paths.pool("food101"))
    torch.manual_seed(0)
    adapter = Adapter(AdapterConfig(method="mmrlpp", insertion_depth=4), backbone)
    with torch.no_grad():
        adapter.space.mul_(50)  # far from the start, where beta hardly shows
    card = {"class_names": CLASS_NAMES, "template": "a {}.", "training": PROTOCOLS["cross-dataset"].training}
    KEY.model.mkdir(parents=True)
    save_adapter(KEY.model, adapter, backbone, {**card, "settings": {}, "sources": {}, "data": {"digest": ""}})
    return tmp_path


def evaluated(backbone, folder, name: str, **changes) -> dict:
    (folder / name).mkdir()
    run = RunToEvaluate(KEY, KEY.model, folder / name)
    return metrics_of_each(backbone, [run], Params(**MATRIX, **{**TRANSFER, **changes}), "food101")[KEY]


def test_beta_is_the_targets_own_only_under_the_preset_that_says_so(project, backbone):
    one = evaluated(backbone, project, "one")
    each = evaluated(backbone, project, "each", preset="published-per-target")
    assert (one["preset"], one["beta"]) == ("published", 0.9)
    assert (each["preset"], each["beta"]) == ("published-per-target", 0.3)
    assert one["all"]["nll"] != each["all"]["nll"] and one["zero_shot"] == each["zero_shot"]


def test_a_target_is_met_with_its_own_classes_and_prompt(project, backbone):
    found = evaluated(backbone, project, "one")
    assert (found["dataset"], found["target"], found["parts"]) == ("digits", "food101", ["all"])
    assert found["template"] == "a photo of the digit {}." and found["class_names"][3] == "three"
    assert found["validation"] == {} and found["n"] == len(range(0, 1197, 40))


def test_metrics_by_class_are_those_of_the_predictions(project, backbone):
    found = evaluated(backbone, project, "one")
    rows = pyarrow.parquet.read_table(project / "one" / "predictions.parquet").to_pandas()
    adapted, zero_shot = found["all"], found["zero_shot"]["all"]
    assert adapted["macro_f1"] == pytest.approx(f1_score(rows.label, rows.prediction, average="macro"))
    among = [label in top for label, top in zip(rows.label, rows.top_labels, strict=True)]
    assert adapted["top5_accuracy"] == pytest.approx(sum(among) / len(among))
    recall = balanced_accuracy_score(rows.label, rows.zero_shot_prediction)
    assert zero_shot["balanced_accuracy"] == pytest.approx(recall)
    assert adapted["tested_classes"] == zero_shot["tested_classes"] == rows.label.nunique()
    assert 0.9 < adapted["auroc"] <= 1 and 0.9 < zero_shot["auroc"] <= 1


def test_an_adapter_trained_for_another_protocol_is_refused(project, backbone):
    with pytest.raises(UserError, match="trained for another protocol than few-shot; run `dvc repro`"):
        evaluated(backbone, project, "one", data={"protocol": "few-shot"}, targets=[])


def test_the_pace_counts_every_image_of_a_pass_once_however_many_runs_share_it(project, backbone):
    runs = []
    for seed in (1, 2, 3):
        key = KEY._replace(seed=seed)
        if seed > 1:
            shutil.copytree(KEY.model, key.model)
        (project / f"seed{seed}").mkdir()
        runs.append(RunToEvaluate(key, key.model, project / f"seed{seed}"))
    settings, pace = Params(**MATRIX | {"seeds": [1, 2, 3]}, **TRANSFER), Pace()
    assert pace.images_per_second == 0
    metrics = metrics_of_each(backbone, runs, settings, "food101", pace)
    assert pace.images == metrics[KEY]["n"] == len(range(0, 1197, 40)) and len(metrics) == 3
    assert pace.seconds > 0 and pace.images_per_second == pace.images / pace.seconds
    metrics_of_each(backbone, runs[:1], settings, "food101", pace)
    assert pace.images == 2 * metrics[KEY]["n"]
