import io
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.project.paths import RunKey
from flows.registry import promotion
from flows.registry import versions as registry
from flows.settings.params import Params
from flows.tracking import store as tracking
from flows.tracking.run import tracked_run
from mmrl_core.config import AdapterConfig
from mmrl_core.errors import Damaged, UserError
from mmrl_core.files import write_json
from mmrl_core.light.predictor import LightPredictor
from mmrl_core.method.adapter_card import FOLDED
from tests.support import serving
from tests.support.processes import PATIENCE
from tests.support.servers import mlflow_server

ROOT = Path(__file__).parents[3]
NAME, KEY = "digits-base-to-novel", RunKey("digits", "mmrl", 16, 1)
CLASSES = ["zero", "one", "two"]


@pytest.fixture(scope="session")
def make_adapter(tmp_path_factory):
    """make_adapter(seed) -> a folder with an untrained adapter of the bundled backbone, built once a seed."""
    import torch

    from mmrl_core.clip.backbone import load_backbone
    from mmrl_core.method.adapter import Adapter, save_adapter

    backbone, built = load_backbone("tiny"), {}
    config = AdapterConfig(method="mmrl", insertion_depth=backbone.depth, rep_dim=16)

    def make(seed: int) -> Path:
        if seed not in built:
            torch.manual_seed(seed)
            built[seed] = tmp_path_factory.mktemp("adapter")
            data = {"dataset": "digits", "digest": "d" * 64}
            card = {"class_names": CLASSES, "template": "a photo of a {}.", "data": data, "settings": {}, "sources": {}}
            save_adapter(built[seed], Adapter(config, backbone), backbone, card)
        return built[seed]

    return make


@pytest.fixture
def project(tmp_path, monkeypatch, make_adapter):
    """A working directory with one run, its adapter number 0, and no store yet."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    add_run(KEY, make_adapter(0))
    return tmp_path


@pytest.fixture
def store(project, empty_store):
    shutil.copy(empty_store, project)


def add_run(key: RunKey, adapter: Path, accuracy: float = 0.8, nll: float = 0.5) -> None:
    shutil.copytree(adapter, key.model, dirs_exist_ok=True)
    sha256 = json.loads((adapter / "adapter.json").read_text())["sha256"]
    metrics = {
        "adapter_sha256": sha256,
        "protocol": "base-to-novel",
        "preset": "published",
        "data_digest": "e" * 64,
        "parts": ["base", "novel"],
        "base": {"accuracy": 0.75, "n": 4},
        "novel": {"accuracy": 0.5, "n": 4},
        "harmonic_mean": 0.6,
        "validation": {"base": {"accuracy": accuracy, "nll": nll}},
    }
    write_json(key.results() / "metrics.json", metrics)


def params(uri: str = "sqlite:///mlflow.db", **changes) -> Params:
    matrix = {"datasets": ["digits"], "methods": ["mmrl"], "shots": [16], "seeds": [1]}
    return Params(**(matrix | changes), tracking={"uri": uri})


def versions():
    client = tracking.connect(tracking.store_uri(params()))
    return sorted(client.search_model_versions(f"name = '{NAME}'"), key=lambda one: int(one.version))


def png() -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (20, 30), (200, 10, 10)).save(encoded, format="PNG")
    return encoded.getvalue()


def in_a_fresh_process(code: str, folder: Path) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment |= {"PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true"}
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )


def test_the_candidate_is_the_best_on_validation_then_the_likeliest_then_the_first(project, make_adapter):
    three = params(seeds=[3, 1, 2])
    for seed, accuracy, nll in [(1, 0.8, 0.5), (2, 0.8, 0.4), (3, 0.7, 0.1)]:
        add_run(KEY._replace(seed=seed), make_adapter(0), accuracy, nll)
    assert registry.candidate(three, "digits").seed == 2
    add_run(KEY, make_adapter(0), 0.8, 0.4)
    assert registry.candidate(three, "digits").seed == 1
    other = KEY._replace(method="mmrlpp")
    add_run(other, make_adapter(0), 0.9, 0.6)
    assert registry.candidate(params(methods=["mmrl", "mmrlpp"]), "digits") == other


def test_baselines_compete_where_validation_sees_all_classes_and_nowhere_else(project, make_adapter):
    probe = KEY._replace(method="linear_probe")
    add_run(probe, make_adapter(0), accuracy=0.9)
    for protocol, found in [("few-shot", probe), ("base-to-novel", KEY), ("joint", KEY)]:
        section = {"protocol": protocol}
        assert registry.candidate(params(baselines=["linear_probe"], data=section), "digits") == found
    add_run(probe, make_adapter(0), accuracy=0.8)  # of equals the first of the lists
    assert registry.candidate(params(baselines=["linear_probe"], data={"protocol": "few-shot"}), "digits") == KEY


def test_the_candidate_does_not_hang_on_the_last_bits_of_figures(project, make_adapter):
    """Nor on what another machine trains otherwise: likelihoods within a thousandth are equal."""
    two = params(seeds=[1, 2])
    add_run(KEY, make_adapter(0), 0.8, 0.4)
    for accuracy, nll in [(float(np.nextafter(0.8, 1)), 0.4), (0.8, float(np.nextafter(0.4, 0))), (0.8, 0.3995)]:
        add_run(KEY._replace(seed=2), make_adapter(0), accuracy, nll)
        assert registry.candidate(two, "digits").seed == 1


def test_missing_runs_are_named_with_the_command_that_makes_them(project):
    with pytest.raises(UserError, match=r"1 of 2 runs of digits are missing \(digits/mmrl-16shot/seed7\).*dvc repro"):
        registry.candidate(params(seeds=[1, 7]), "digits")
    with pytest.raises(UserError, match="'pets' is not in the settings"):
        registry.candidate(params(), "pets")


def test_registering_twice_creates_one_version_with_its_facts_as_tags(project):
    with tracked_run(params(), KEY, "train", {}) as run:
        run.set_tags({"adapter_sha256": json.loads((KEY.model / "adapter.json").read_text())["sha256"]})
    first, second = registry.register(params(), KEY), registry.register(params(), KEY)
    assert first.created
    assert second == first._replace(created=False)
    [version] = versions()
    assert version.run_id == run.run_id
    model = tracking.connect(tracking.store_uri(params())).get_registered_model(NAME)
    assert "`champion` is what is live" in model.description
    assert "| this adapter | 75.0 | 50.0 | 60.0 |" in version.description
    expected = {"adapter_sha256": first.adapter_sha256, "data_digest": "d" * 64, "method": "mmrl", "shots": "16"}
    more = {"backbone": "tiny", "harmonic_mean": "0.6", "pool_digest": "e" * 64, "preset": "published"}
    assert version.tags.items() >= (expected | more).items()
    assert not list(project.rglob("*.pkl"))
    assert {path.name for path in project.iterdir()} == {"mlflow.db", "mlartifacts", ".mmrl", "models", "results"}


def test_a_changed_adapter_becomes_a_second_version_and_an_old_one_can_be_the_newest_candidate(
    project, store, make_adapter
):
    first = registry.register(params(), KEY)
    add_run(KEY, make_adapter(1))
    assert registry.register(params(), KEY).version == first.version + 1
    add_run(KEY, make_adapter(0))
    assert registry.register(params(), KEY) == first._replace(created=False)
    assert promotion.promote(params(), "digits", force="test").version == first.version


def test_mlflow_loads_no_model_whose_first_prediction_is_no_number(store, monkeypatch):
    from mlflow import pyfunc

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    number = serving.register(1, std=1e37)  # every weight is finite
    with pytest.raises(Damaged, match="answers with what is no number"):
        pyfunc.load_model(f"models:/{NAME}/{number}")


def test_results_of_another_adapter_are_not_registered(project, store, make_adapter):
    shutil.copytree(make_adapter(1), KEY.model, dirs_exist_ok=True)
    with pytest.raises(UserError, match="hold different adapters; run `dvc repro`"):
        registry.register(params(), KEY)


def test_what_was_never_registered_is_refused_in_one_line(project):
    with pytest.raises(UserError, match="no MLflow store at"):
        promotion.promote(params(), "digits")
    registry.register(params(), KEY)
    for uri, problem in [
        (f"models:/{NAME}@champion", r"no alias 'champion' \(known: none\); run `mmrl promote` first"),
        (f"models:/{NAME}/4", "no version 4; registered: 1"),
        ("models:/other@champion", "no model 'other' is registered"),
        ("runs:/abc/model", "not of the form"),
    ]:
        with pytest.raises(UserError, match=problem):
            registry.load(uri)
    with pytest.raises(UserError, match="cannot be used"):
        registry.load("models:/x@y", "http://127.0.0.1:9")


def test_registering_waits_for_whoever_else_registers_the_same_model(project, store):
    with ThreadPoolExecutor() as pool:
        with tracking.lock(tracking.store_uri(params()), f"registry-{NAME}"):
            waiting = pool.submit(registry.register, params(), KEY)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=4)
            assert versions() == []
        assert waiting.result(PATIENCE).created


REGISTER = """
import sys
from flows.registry import versions
from flows.project.paths import RunKey
from flows.settings.params import Params
params = Params(datasets=["digits"], methods=["mmrl"], shots=[16], seeds=[1])
found = versions.register(params, RunKey("digits", "mmrl", 16, 1))
print(found.version, found.created, "torch" in sys.modules)
"""


def test_processes_that_register_at_once_create_one_version_and_never_import_torch(project, store):
    processes = [in_a_fresh_process(REGISTER, project) for _ in range(2)]
    assert sorted(process.communicate()[0] for process in processes) == ["1 False False\n", "1 True False\n"]


LOAD = """
import sys, mlflow, pandas
mlflow.set_tracking_uri("sqlite:///mlflow.db")
model = mlflow.pyfunc.load_model("models:/digits-base-to-novel@champion")
print(model.predict(pandas.DataFrame({"image": [sys.stdin.buffer.read()]})).to_json(orient="records"))
"""


def test_plain_mlflow_loads_the_champion_in_a_fresh_process_and_agrees_with_the_predictor(project, store):
    registry.register(params(), KEY)
    promotion.promote(params(), "digits", force="test")
    (project / "image.png").write_bytes(png())
    process = in_a_fresh_process(LOAD.replace("sys.stdin.buffer", "open('image.png', 'rb')"), project)
    [row] = json.loads(process.communicate()[0])
    [expected] = registry.load(f"models:/{NAME}@champion").predict([png()])
    assert row["label"] == expected.label
    assert row["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)
    assert list(row["probabilities"]) == CLASSES


def test_open_predictor_takes_a_folder_a_uri_or_the_champion(project, store):
    registry.register(params(), KEY)
    promotion.promote(params(), "digits", force="test")
    for model in (None, str(KEY.model), f"models:/{NAME}/1"):
        assert registry.open_predictor(params(), model).class_names == CLASSES
    two = params(datasets=["digits", "pets"])
    assert registry.open_predictor(two, dataset="digits").class_names == CLASSES
    with pytest.raises(UserError, match="name 2 datasets; say which you mean: --dataset digits or --dataset pets"):
        registry.open_predictor(two)
    with pytest.raises(UserError, match="--model and --dataset both say which adapter"):
        registry.open_predictor(two, f"models:/{NAME}/1", "digits")


def test_an_adapter_altered_in_the_artifact_store_is_refused(project, store, make_adapter):
    registry.register(params(), KEY)
    [stored] = (project / "mlartifacts").rglob("adapter.safetensors")
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.write_bytes(content)
    with pytest.raises(UserError, match="was altered"):
        registry.load(f"models:/{NAME}/1")
    shutil.copytree(make_adapter(1), stored.parent, dirs_exist_ok=True)  # in itself sound, but not what was registered
    with pytest.raises(UserError, match="was altered"):
        registry.load(f"models:/{NAME}/1")


def test_a_version_has_what_predicts_without_pytorch_and_nobody_alters_it(project, store):
    registry.register(params(), KEY)
    promotion.promote(params(), "digits", force="test")
    light = registry.open_adapter(params(), LightPredictor.load)
    assert light and light.class_names == CLASSES
    [stored] = (project / "mlartifacts").rglob(FOLDED)
    assert stored.read_bytes() == (KEY.model / FOLDED).read_bytes()
    stored.write_bytes(stored.read_bytes()[:-1] + b"x")
    with pytest.raises(Damaged, match="was altered"):
        registry.open_adapter(params(), LightPredictor.load)
    stored.unlink()
    assert registry.open_predictor(params()).class_names == CLASSES


@pytest.fixture
def server(tmp_path_factory):
    """The address of a real MLflow server with proxied artifacts."""
    with mlflow_server(tmp_path_factory.mktemp("server"), "sqlite:///server.db") as url:
        yield url


@pytest.mark.slow
def test_all_of_it_works_through_a_server(project, server):
    remote = params(server)
    with tracked_run(remote, KEY, "train", {"train": {"lr": 0.1}}, {"data.digest": "d" * 64}) as run:
        run.log_metrics({"loss": 1.0})
        run.log_artifacts(KEY.model)
    assert tracking.connect(server).get_run(run.run_id).info.status == "FINISHED"
    assert [registry.register(remote, KEY).created for _ in range(2)] == [True, False]
    assert [promotion.promote(remote, "digits", force="test").moved for _ in range(2)] == [True, False]
    assert registry.load(f"models:/{NAME}@champion", server).class_names == CLASSES
    assert not (project / "mlflow.db").exists()
