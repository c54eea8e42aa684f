"""Runs of one setting that are trained together: each has what it has alone, but for rounding."""

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from safetensors.torch import load_file

from flows.project import paths
from flows.project.outputs import atomic_output
from flows.project.paths import RunKey
from flows.settings.params import Params, load_params
from flows.stages import train as train_stage
from flows.stages.ahead import identity, items
from flows.stages.together import train_together
from flows.tracking.store import store_uri
from mmrl_core.files import read_json, write_json
from mmrl_core.method.adapter_card import TENSORS
from tests.support.workspace import write_params

TOLERANCE = 5e-4  # half of a step of the learning rate: AdamW divides rounding by rounding where gradients vanish
FIRST, SECOND = RUNS = [RunKey("digits", "mmrl", 2, seed) for seed in (1, 2)]


@pytest.fixture
def project(prepared, tmp_path, monkeypatch) -> Params:
    """Two seeds of one setting; the images of both are the same."""
    folder = shutil.copytree(prepared, tmp_path / "project")
    monkeypatch.chdir(folder)
    write_params(folder, shots=[2], seeds=[1, 2], train={"epochs": 2, "warmup_epochs": 0})
    if not SECOND.few_shot.exists():
        shutil.copytree(FIRST.few_shot, SECOND.few_shot)
    head = {"dataset": "digits", "method": "mmrl", "template": "a photo of the digit {}."}
    write_json(paths.search("digits", "mmrl"), {**head, "choice": {"adapter.insertion_depth": 5}})
    return load_params()


def tensors(folder: Path) -> dict:
    return {name: one for name, one in load_file(folder / TENSORS).items() if not name.startswith("head")}


def test_runs_trained_together_have_card_files_and_tracked_runs_as_alone(project, tmp_path):
    outs = {key: tmp_path / f"together{key.seed}" for key in RUNS}
    summaries = train_together(project, outs)
    logged = MlflowClient(store_uri(project)).search_runs(["1"])
    assert {run.data.tags["seed"] for run in logged} == {"1", "2"}
    assert {run.info.status for run in logged} == {"FINISHED"}
    assert not list((paths.STATE / "runs").glob("*/*"))
    for key, out in outs.items():
        alone = tmp_path / f"alone{key.seed}"
        summary = train_stage.train(project, key, alone)
        assert summaries[key].keys() == summary.keys() and summary["loss"] == pytest.approx(summaries[key]["loss"])
        mine, theirs = tensors(out), tensors(alone)
        assert mine.keys() == theirs.keys()
        assert max(float((mine[name] - theirs[name]).abs().max()) for name in mine) < TOLERANCE
        mine, theirs = (read_json(folder / "adapter.json", made_by="test") for folder in (out, alone))
        assert all(mine[name] == theirs[name] for name in ("settings", "data", "sources", "class_names", "training"))
        assert [epoch.keys() for epoch in mine["history"]] == [epoch.keys() for epoch in theirs["history"]]


def test_the_others_wait_for_their_items_and_one_that_fails_leaves_the_run_to_itself(project, capsys):
    with atomic_output(FIRST.model) as out:
        items.train_with_others(project, FIRST, out)
    place = identity.model(project, SECOND)
    assert place.is_there
    with atomic_output(SECOND.model) as out:
        assert items.train(project, SECOND, out)["adapter_sha256"]
    assert not place.is_there and identity.is_trained(project, SECOND)
    shutil.rmtree(FIRST.model)
    shutil.rmtree(SECOND.model)
    shard = next(SECOND.few_shot.glob("train-base-*.tar"))
    shard.write_bytes(b"damaged")
    with atomic_output(FIRST.model) as out:
        items.train_with_others(project, FIRST, out)
    assert "digits/mmrl-2shot/seed1 is trained by itself: " in capsys.readouterr().err
    assert identity.is_trained(project, FIRST) and not place.is_there
