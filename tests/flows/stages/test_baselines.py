"""All baselines of a dataset in one process: the same files as by themselves, and made again from what was recorded."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from flows.project import paths
from flows.project.paths import RunKey
from flows.registry import versions
from flows.settings.params import Params, load_params
from flows.stages import baselines
from flows.stages import evaluate as evaluate_stage
from flows.stages.reproduce import reproduce
from flows.stages.train import train
from flows.tracking.store import connect, store_uri
from mmrl_core.data.catalog import open_source
from mmrl_core.data.shards import write_pool
from mmrl_core.errors import UserError
from mmrl_core.files import read_json
from tests.support.workspace import QUICK, write_params

MODELS, RESULTS = Path("models/digits/baselines-2shot"), Path("results/digits-to-digits/baselines-2shot")
PROBE, CACHE = (RunKey("digits", method, 2, 1) for method in ("linear_probe", "tip_adapter"))


@pytest.fixture(scope="module")
def fitted(prepared, tmp_path_factory) -> Path:
    """A project with two baselines fitted, few images, and nothing evaluated."""
    folder = tmp_path_factory.mktemp("fitted") / "project"
    shutil.copytree(prepared, folder)
    write_params(folder, **{**QUICK, "shots": [2], "baselines": ["linear_probe", "tip_adapter"]})
    source = open_source("digits", "")
    shutil.rmtree(folder / paths.pool("digits"))
    (folder / paths.pool("digits")).mkdir()
    write_pool(replace(source, val=source.val[::9], test=source.test[::19]), folder / paths.pool("digits"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for made_of_none in (MODELS, RESULTS):
            made_of_none.rmdir()
        baselines.fit_baselines(load_params(), "digits", 2, MODELS)
    return folder


@pytest.fixture
def project(fitted, tmp_path, monkeypatch) -> Path:
    """A copy as the working directory."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = shutil.copytree(fitted, tmp_path / "project")
    monkeypatch.chdir(folder)
    RESULTS.parent.mkdir(exist_ok=True)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}


def test_together_they_are_what_each_is_by_itself(project, monkeypatch):
    train(load_params(), CACHE, Path("alone"))
    assert content(Path("alone")) == content(CACHE.model)
    said = baselines.evaluate_baselines(load_params(), "digits", 2, RESULTS)
    evaluate_stage.evaluate(load_params(), CACHE, Path("evaluated"))
    assert content(Path("evaluated")) == content(CACHE.results())
    metrics = read_json(PROBE.results() / "metrics.json", made_by="")
    assert said["linear_probe"]["base"] == metrics["base"]["accuracy"] and metrics["novel"]["n"] > 20
    assert metrics["novel"]["accuracy"] == metrics["zero_shot"]["novel"]["accuracy"]  # new classes are zero-shot's
    monkeypatch.setattr(evaluate_stage, "SCORES", 1)  # room for one at a time
    baselines.evaluate_baselines(load_params(), "digits", 2, Path("one-by-one"))
    assert content(Path("one-by-one")) == content(RESULTS)


def test_one_that_cannot_be_evaluated_says_why(project):
    (CACHE.model / "adapter.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="tip_adapter/seed1/adapter.safetensors is not a safetensors file"):
        baselines.evaluate_baselines(load_params(), "digits", 2, RESULTS)


def test_without_a_baseline_the_folders_are_empty(project):
    none = load_params("params.yaml", ["baselines=[]"])
    assert baselines.fit_baselines(none, "digits", 2, Path("fitted"))["baselines"] == []
    assert baselines.evaluate_baselines(none, "digits", 2, Path("scored")) == {}
    assert not [*Path("fitted").iterdir(), *Path("scored").iterdir()]


def test_mlflow_knows_a_baselines_run_by_its_method(project):
    client = connect(store_uri(load_params()))
    experiment = client.get_experiment_by_name("digits").experiment_id
    names = {run.info.run_name for run in client.search_runs([experiment])}
    assert {"linear_probe-2shot/seed1", "tip_adapter-2shot/seed1"} <= names


@pytest.mark.parametrize("key", [PROBE, CACHE], ids=lambda key: key.method)
def test_a_baseline_that_is_fitted_again_is_identical(project, key):
    evaluate(load_params(), key)
    number = versions.register(load_params(), key).version
    found = reproduce(load_params(), f"models:/digits-base-to-novel/{number}", Path("again"))
    assert (found["identical"], found["furthest"]) == (True, 0)
    assert content(Path("again")) == content(key.model)


def test_an_adapter_that_is_trained_again_gets_the_same_probe(project):
    settings = ["adapter.alpha=0", "train.epochs=1"]  # by a branch that is hardly trained: the probe helps
    params, key = load_params("params.yaml", settings), RunKey("digits", "mmrl", 2, 1)
    shutil.rmtree(key.model)
    train(params, key, key.model)
    assert read_json(key.model / "adapter.json", made_by="")["head"]["head_weight"] == 1.0
    evaluate(params, key)
    metrics = read_json(key.results() / "metrics.json", made_by="")
    assert metrics["without_probe"]["base"]["accuracy"] < metrics["base"]["accuracy"]
    assert metrics["without_probe"]["novel"] == {**metrics["novel"]}
    number = versions.register(params, key).version
    found = reproduce(params, f"models:/digits-base-to-novel/{number}", Path("again"))
    assert (found["identical"], found["furthest"]) == (True, 0)
    assert content(Path("again")) == content(key.model)


def evaluate(params: Params, key: RunKey) -> None:
    shutil.rmtree(key.results(), ignore_errors=True)
    key.results().parent.mkdir(parents=True, exist_ok=True)
    evaluate_stage.evaluate(params, key, key.results())
