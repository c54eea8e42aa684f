"""The command line: whole runs in small."""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from PIL import Image

from mmrl_core.clip.backbone import load_backbone
from mmrl_core.method.adapter import load_adapter
from mmrl_core.predict import Predictor
from tests.core.method.test_adapter import published
from tests.flows.conftest import RUN
from tests.support.workspace import QUICK, make_workspace, run

TABLES = ["confusion.csv", "few_shot_curve.csv", "learning_curves.csv", "results.csv", "results.md"]


def test_a_run_leaves_the_files_of_the_contract_and_nothing_else(project):
    files = {str(path.relative_to(project)) for top in ("data", "models", "results", "reports")
             for path in (project / top).rglob("*") if path.is_file() and path.suffix != ".tar"}  # fmt: skip
    assert files == {
        "data/digits.source.json", "data/digits/pool/manifest.json", "data/digits/2shot-seed1/manifest.json",
        "models/digits/mmrl-2shot/seed1/adapter.safetensors", "models/digits/mmrl-2shot/seed1/adapter.json",
        "models/digits/mmrl-2shot/seed1/folded.safetensors",
        "results/digits/search/mmrl.json", "results/digits-to-digits/mmrl-2shot/seed1/metrics.json",
        "results/digits-to-digits/mmrl-2shot/seed1/predictions.parquet", "reports/summary.json", "reports/report.html",
        *(f"reports/{name}" for name in TABLES),
    }  # fmt: skip
    assert not list((project / ".mmrl" / "aside").iterdir())
    assert not list((project / ".mmrl" / "runs").iterdir())


def test_metrics_are_those_of_the_predictions(project):
    folder = project / "results/digits-to-digits/mmrl-2shot/seed1"
    metrics = json.loads((folder / "metrics.json").read_text())
    rows = pyarrow.parquet.read_table(folder / "predictions.parquet").to_pylist()
    for half in ("base", "novel"):
        of_half = [row for row in rows if row["part"] == half]
        assert len(of_half) == metrics[half]["n"]
        right = sum(row["prediction"] == row["label"] for row in of_half)
        assert metrics[half]["accuracy"] == pytest.approx(right / len(of_half))
        zero_shot = sum(row["zero_shot_prediction"] == row["label"] for row in of_half)
        assert metrics["zero_shot"][half]["accuracy"] == pytest.approx(zero_shot / len(of_half))
        assert metrics["gain"][half]["mean"] == pytest.approx((right - zero_shot) / len(of_half))
    assert metrics["n"] == 1197
    b, n = metrics["base"]["accuracy"], metrics["novel"]["accuracy"]
    assert metrics["harmonic_mean"] == pytest.approx(2 * b * n / (b + n))
    gain = metrics["gain"]["harmonic_mean"]
    assert gain["mean"] == pytest.approx(metrics["harmonic_mean"] - metrics["zero_shot"]["harmonic_mean"])
    assert gain["low"] < gain["mean"] < gain["high"]


def test_the_adapter_says_where_every_setting_came_from(project):
    card = json.loads((project / "models/digits/mmrl-2shot/seed1/adapter.json").read_text())
    assert card["settings"]["train.epochs"] == 2
    assert card["sources"]["train.epochs"] == "params.yaml"
    assert card["sources"]["adapter.reg_weight"] == "preset published"
    assert card["settings"]["adapter.insertion_depth"] == 3
    assert card["class_names"] == ["zero", "one", "two", "three", "four"]
    assert len(card["history"]) == 2


def test_training_again_gives_the_same_bytes(project, mmrl):
    path = project / "models/digits/mmrl-2shot/seed1/adapter.safetensors"
    before = path.read_bytes()
    mmrl("train", *RUN)
    assert path.read_bytes() == before


def test_json_output_is_one_object_and_nothing_else(project, mmrl):
    assert json.loads(mmrl("evaluate", *RUN, "--json"))["base"] > 0.5
    assert json.loads(mmrl("tune", *RUN[:4], "--json")) == {
        "trials": 0, "choice": {}, "template": "a photo of the digit {}.",
    }  # fmt: skip


def test_runs_that_the_settings_do_not_name_are_listed_as_stale(project, mmrl):
    (project / "results/cat-to-dog/search").mkdir(parents=True)  # of a dataset that is called so, and no run
    (project / "results/cat-to-dog/search/mmrl.json").touch()
    shutil.copytree("results/digits-to-digits/mmrl-2shot/seed1", "results/digits-to-digits/mmrl-2shot/seed9")
    assert json.loads(mmrl("summarize", "--json"))["stale"] == ["results/digits-to-digits/mmrl-2shot/seed9"]
    assert "seed9" in (project / "reports/report.html").read_text()


@pytest.mark.parametrize("method", ["mmrl", "mmrlpp"])
def test_a_published_checkpoint_becomes_an_adapter_file(project, mmrl, tmp_path, method):
    checkpoint, width = tmp_path / "model.pth.tar", 128  # the golden tensors' towers are as wide as tiny's
    state = published(method)
    if method == "mmrl":
        state["image_encoder.proj_rep"] = torch.randn(width, 128)
    else:
        state["image_encoder.B"] = torch.randn(8, 128)
    torch.save({"state_dict": state, "epoch": 10}, checkpoint)
    out = tmp_path / "imported"
    mmrl("import", checkpoint, "--out", out, "--class", "cat", "--class", "dog", "--template", "a {}.")
    adapter, card = load_adapter(out, load_backbone("tiny"))
    assert torch.equal(adapter.space, state["representation_learner.compound_rep_tokens"])
    assert (adapter.config.method, adapter.config.insertion_depth) == (method, 4)
    assert card["sources"]["adapter.n_tokens"] == "checkpoint"
    assert Predictor.load(out).class_names == ["cat", "dog"]
    if method == "mmrl":
        imports_clips_own_list(mmrl, checkpoint, tmp_path)


def imports_clips_own_list(mmrl, checkpoint, folder) -> None:
    """It names two classes twice; here one is too long for a prompt as well."""
    names = ["missile", "crane", "missile", " ".join("abcdefgh" * 10)]
    (folder / "classes.txt").write_text("\n".join(names))
    arguments = ["import", checkpoint, "--template", "a {}."]
    listed = ["--classes", folder / "classes.txt"]
    said = json.loads(mmrl(*arguments, "--out", folder / "twins", *listed, "--json"))
    assert "has 84 tokens" in said["notes"][0]
    predictor = Predictor.load(folder / "twins")
    assert predictor.class_names == names
    [found] = predictor.predict([Image.new("RGB", (32, 32))])
    assert list(found.probabilities) == [names[0], names[1], names[3]]
    assert sum(found.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert "give --class NAME for each, or --classes FILE" in mmrl(*arguments, "--out", folder / "none", code=2)
    alone = [*arguments, "--out", folder / "none", "--class", "cat"]
    assert "'cat' is one class, which leaves nothing to choose" in mmrl(*alone, code=2)


def test_settings_on_the_command_line_write_where_out_says(project, mmrl, tmp_path):
    mmrl("train", *RUN, "--set", "train.epochs=1", "--out", tmp_path / "mine")
    card = json.loads((tmp_path / "mine" / "adapter.json").read_text())
    assert card["settings"]["train.epochs"] == 1
    assert (
        json.loads((project / "models/digits/mmrl-2shot/seed1/adapter.json").read_text())["settings"]["train.epochs"]
        == 2
    )


def test_an_output_on_another_file_system_arrives_whole_and_leaves_nothing_beside_it(project, mmrl):
    shared_memory = Path("/dev/shm")
    if not shared_memory.is_dir() or shared_memory.stat().st_dev == project.stat().st_dev:
        pytest.fail("this machine has no second file system at /dev/shm")
    with tempfile.TemporaryDirectory(dir=shared_memory) as folder:
        mmrl("fingerprint", "--dataset", "digits", "--out", f"{folder}/source.json")
        assert [path.name for path in Path(folder).iterdir()] == ["source.json"]


def test_what_people_keep_beside_the_report_stays(project, mmrl):
    (project / "reports" / "notes.txt").write_text("mine")
    mmrl("summarize")
    assert sorted(path.name for path in (project / "reports").iterdir()) == sorted(
        ["notes.txt", "report.html", "summary.json", *TABLES]
    )


@pytest.mark.parametrize(
    "command",
    [
        ["fingerprint", "--dataset", "digits"],
        ["prepare", "--dataset", "digits"],
        ["summarize"],
        ["datasets"],
        ["check"],
        ["--help"],
    ],
)
def test_light_commands_do_not_import_torch(project, command):
    script = (
        f"import sys; sys.argv = ['mmrl', *{command}]\nfrom flows.cli import main\ntry: main()\nexcept SystemExit:\n"
    )
    done = run(project, sys.executable, "-c", script + " print('torch' in sys.modules, 'open_clip' in sys.modules)")
    assert done.stdout.endswith("False False\n"), done.stdout


def test_a_command_ends_without_a_last_search_for_garbage(project):
    """What is registered first runs last."""
    script = (
        "import atexit, gc, sys\natexit.register(lambda: print(gc.get_freeze_count() > 0))\n"
        "sys.argv = ['mmrl', 'datasets']\nfrom flows.cli import main\nmain()"
    )
    assert run(project, sys.executable, "-c", script).stdout.splitlines()[-1] == "True"


def test_the_method_needs_none_of_the_pipeline_tools(project):
    script = "import sys\nfor name in ('ray', 'prefect', 'mlflow', 'dvc'): sys.modules[name] = None\n"
    everything = "import pkgutil, mmrl_core\nfor module in pkgutil.walk_packages(mmrl_core.__path__, 'mmrl_core.'):\n"
    run(project, sys.executable, "-c", f"{script}{everything}    __import__(module.name)")


def test_a_class_with_fewer_items_than_shots_is_reported(mmrl, tmp_path, monkeypatch):
    monkeypatch.chdir(make_workspace(tmp_path / "project", **QUICK))
    result = json.loads(mmrl("prepare", "--dataset", "digits", "--shots", "50", "--seed", "1", "--json"))
    assert result["classes_with_fewer_items"]["zero"] == 40
    assert result["train"] == 400
