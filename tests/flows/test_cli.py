"""The command line: whole runs in small, and what a mistake prints."""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet
import pytest
import torch

from flows import cli
from mmrl_core.adapter import _card_sha256, load_adapter
from mmrl_core.backbone import load_backbone
from mmrl_core.data import views
from mmrl_core.data.images import decode
from mmrl_core.data.shards import read_examples
from mmrl_core.model import AdaptedCLIP
from mmrl_core.predict import Predictor
from tests.test_adapter import published
from tests.workspace import QUICK, make_workspace, run, write_params

RUN = ["--dataset", "digits", "--method", "mmrl", "--shots", "2", "--seed", "1"]
PREPARE = [["fingerprint", "--dataset", "digits"], ["prepare", "--dataset", "digits"],
           ["prepare", "--dataset", "digits", "--shots", "2", "--seed", "1"]]  # fmt: skip


class Shell:
    """Runs `mmrl ...` in this process and keeps what it printed."""

    def __init__(self, capsys, monkeypatch):
        self.capsys, self.monkeypatch = capsys, monkeypatch

    def __call__(self, *arguments: str, code: int = 0) -> str:
        self.capsys.readouterr()
        self.monkeypatch.setattr("sys.argv", ["mmrl", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = self.capsys.readouterr()
        assert ended.value.code == code, (out, err)
        return out if code == 0 else err


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A project with shards of two shots a class, and one adapter trained, tuned, evaluated and summarised."""
    folder = make_workspace(tmp_path_factory.mktemp("project"), **QUICK, shots=[2])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in [*PREPARE, ["tune", *RUN[:4]], ["train", *RUN], ["evaluate", *RUN], ["summarize"]]:
            patch.setattr("sys.argv", ["mmrl", *command])
            with pytest.raises(SystemExit) as ended:
                cli.main()
            assert ended.value.code == 0, command
    return folder


@pytest.fixture
def project(prepared, tmp_path, monkeypatch):
    """A copy to break, as the working directory."""
    folder = tmp_path / "project"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def mmrl(capsys, monkeypatch):
    return Shell(capsys, monkeypatch)


def test_a_run_leaves_the_files_of_the_contract_and_nothing_else(project):
    files = {str(path.relative_to(project)) for top in ("data", "models", "results", "reports")
             for path in (project / top).rglob("*") if path.is_file() and path.suffix != ".tar"}  # fmt: skip
    assert files == {
        "data/digits.source.json", "data/digits/pool/manifest.json", "data/digits/2shot-seed1/manifest.json",
        "models/digits/mmrl-2shot/seed1/adapter.safetensors", "models/digits/mmrl-2shot/seed1/adapter.json",
        "results/digits/search/mmrl.json", "results/digits-to-digits/mmrl-2shot/seed1/metrics.json",
        "results/digits-to-digits/mmrl-2shot/seed1/predictions.parquet", "reports/summary.json", "reports/report.html",
    }  # fmt: skip
    assert not list((project / ".mmrl" / "aside").iterdir())
    assert not list((project / ".mmrl" / "runs").iterdir())


def test_metrics_are_those_of_the_predictions(project):
    folder = project / "results/digits-to-digits/mmrl-2shot/seed1"
    metrics = json.loads((folder / "metrics.json").read_text())
    rows = pyarrow.parquet.read_table(folder / "predictions.parquet").to_pylist()
    for half in ("base", "novel"):
        of_half = [row for row in rows if row["half"] == half]
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
    shutil.copytree("results/digits-to-digits/mmrl-2shot/seed1", "results/digits-to-digits/mmrl-2shot/seed9")
    assert json.loads(mmrl("summarize", "--json"))["stale"] == ["results/digits-to-digits/mmrl-2shot/seed9"]
    assert "seed9" in (project / "reports/report.html").read_text()


def test_predict_prints_a_label_for_every_image(project, mmrl, tmp_path):
    examples = read_examples("data/digits/pool", "val", "base")[::20]
    paths = [tmp_path / f"{example.class_name}.png" for example in examples]
    for path, example in zip(paths, examples, strict=True):
        path.write_bytes(example.image)
    model = "models/digits/mmrl-2shot/seed1"
    found = json.loads(mmrl("predict", *paths, "--model", model, "--json"))
    assert sum(found[str(path)]["label"] == path.stem for path in paths) >= 4
    assert mmrl("predict", paths[0], "--model", model, "--class", "seven", "--class", "zero").startswith(str(paths[0]))


@pytest.mark.parametrize(
    ("names", "logits"),
    [(None, "fused"), (["two", "four"], "fused"), (["six", "seven"], "class"), (["two", "six"], "class")],
)
def test_trained_classes_are_scored_by_the_fused_logits_and_any_other_list_by_the_class_logits(project, names, logits):
    predictor = Predictor.load("models/digits/mmrl-2shot/seed1")
    image = read_examples("data/digits/pool", "val", "base")[0].image
    found = predictor.predict([image], names)[0]
    backbone = load_backbone("tiny")
    adapter, card = load_adapter("models/digits/mmrl-2shot/seed1", backbone)
    model = AdaptedCLIP(backbone, adapter, names or card["class_names"], card["template"])
    view = views.test_views([decode(image, "image")], backbone.image_size, backbone.mean, backbone.std)
    expected = getattr(model(view), f"logits_{logits}").softmax(-1)[0].tolist()
    assert list(found.probabilities) == (names or predictor.class_names)
    assert list(found.probabilities.values()) == pytest.approx(expected, abs=1e-6)
    assert found.probability == max(found.probabilities.values()) == found.probabilities[found.label]


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


def break_shard(project):
    path = project / "data/digits/2shot-seed1/train-base-000000.tar"
    path.write_bytes(path.read_bytes()[:-600])


def alter_test_shard(project):
    path = project / "data/digits/pool/test-base-000000.tar"
    content = bytearray(path.read_bytes())
    content[2000] ^= 1
    path.write_bytes(content)


def rewrite_card(project, change) -> None:
    """Another card with a digest that fits, as only a tool of ours would write it."""
    path = project / "models/digits/mmrl-2shot/seed1/adapter.json"
    card = json.loads(path.read_text())
    change(card)
    card["card_sha256"] = _card_sha256(card)
    path.write_text(json.dumps(card))


def other_backbone(project):
    rewrite_card(project, lambda card: card["backbone"].update(sha256="0" * 64))


def other_classes(project):
    rewrite_card(project, lambda card: card["class_names"].reverse())


def other_search(project):
    path = project / "results/digits/search/mmrl.json"
    path.write_text(path.read_text().replace('"digits"', '"dtd"'))
    write_params(project, **{**QUICK, "shots": [2], "search": {"enabled": True}})


def metrics_without_base(project):
    path = project / "results/digits-to-digits/mmrl-2shot/seed1/metrics.json"
    path.write_text(path.read_text().replace('"base"', '"bass"'))


@pytest.mark.parametrize(
    ("damage", "command", "message"),
    [
        (break_shard, ["train", *RUN], "train-base-000000.tar is not what manifest.json says"),
        (alter_test_shard, ["evaluate", *RUN], "test-base-000000.tar is not what manifest.json says"),
        (other_backbone, ["evaluate", *RUN], "was trained on backbone tiny with weights 000000000000"),
        (other_classes, ["evaluate", *RUN], "was trained on classes"),
        (other_search, ["train", *RUN], "is of another search than digits mmrl"),
        (metrics_without_base, ["summarize"], "has no 'base'; run `mmrl evaluate` again"),
        (lambda p: shutil.rmtree(p / "data"), ["train", *RUN], "manifest.json does not exist; run `mmrl prepare`"),
        (lambda p: shutil.rmtree(p / "models"), ["evaluate", *RUN], "adapter.json does not exist; run `mmrl train`"),
        (lambda p: shutil.rmtree(p / "results"), ["summarize"], "does not exist; run `mmrl evaluate`"),
        (lambda p: (p / "params.yaml").unlink(), ["summarize"], "params.yaml does not exist"),
    ],
)
def test_broken_inputs_end_with_one_line_and_leave_outputs_as_they_were(project, mmrl, damage, command, message):
    damage(project)
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file() and ".mmrl" not in path.parts}
    error = mmrl(*command, code=2)
    assert message in error
    assert error.count("\n") == 1
    after = {path: path.read_bytes() for path in project.rglob("*") if path.is_file() and ".mmrl" not in path.parts}
    changed = {path.name for path in after.keys() ^ before.keys()} | {
        p.name for p in before if after.get(p) != before[p]
    }
    assert changed <= {"mlflow.db"}


@pytest.mark.parametrize(
    ("changes", "command", "message"),
    [
        ({"adapter": {"insertion_depth": 9}}, ["train", *RUN], "insertion_depth 9 is beyond the 6 layers"),
        ({"search": {"enabled": True, "space": {"adapter.insertion_depth": {"choice": [9]}}}}, ["tune", *RUN[:4]],
         "adapter.insertion_depth 9 is beyond the 6 layers"),
        ({"data": {"base_classes": 11}}, PREPARE[1], "data.base_classes is 11 of 10 classes"),
        ({"shots": [0]}, PREPARE[1], "shots.0 is 0"),
        ({"backbone": {"name": "ViT-B-61"}}, ["train", *RUN], "did you mean"),
        ({"backbone": {"name": "ViT-B-16"}}, ["train", *RUN], "backbone.weights is not set for ViT-B-16"),
        ({"backbone": {"name": "ViT-B-16", "weights": "nowhere.pt"}}, ["train", *RUN], "neither a file nor a tag"),
        ({"backbone": {"name": "RN50", "weights": "random"}}, ["train", *RUN], "not a ViT"),
        ({}, ["train", *RUN[:2], "--method", "lora", *RUN[4:]], "'lora' is not one of 'mmrl', 'mmrlpp'"),
        ({}, ["prepare", "--dataset", "digits", "--shots", "0", "--seed", "1"], "Input should be greater than"),
        ({}, ["prepare", "--dataset", "digits", "--shots", "1"], "--shots and --seed together"),
        ({}, ["prepare", "--dataset", "mnist"], "unknown dataset 'mnist'"),
        ({}, ["prepare", "--dataset", "caltech101"], "caltech-101"),
        ({}, ["train", *RUN, "--set", "train.lr=1"], "need --out DIR"),
        ({}, ["train", *RUN, "--set", "train.lr=1", "--out", "models/mine"], "kept by other tools"),
        ({}, ["train", *RUN, "--set", "train.lr=1", "--out", ".git/x"], "kept by other tools"),
        ({}, ["train", *RUN, "--set", "train.lr=1", "--out", "params.yaml"], "params.yaml exists"),
        ({}, ["train", *RUN, "--set", "train.lr=1", "--out", "params.yaml/x"], "params.yaml is no folder"),
        ({}, ["import", "nothing.pth.tar", "--out", "mine", "--class", "cat"], "nothing.pth.tar is no file"),
        ({}, ["import", "nothing.pth.tar", "--out", "data", "--class", "cat"], "data exists"),
        ({"backbone": {"weights": "some.pt"}}, ["train", *RUN], "tiny comes with its own"),
        ({"backbone": {"name": "roberta-ViT-B-32", "weights": "random"}}, ["train", *RUN], "text tower or tokenizer"),
        ({}, ["train", "--datset", "digits"], "No such option"),
        ({}, ["trian"], "No such command"),
        ({}, [], "name one of the commands above"),
        ({}, ["flow", "adapt", "--set", "train.lr=1"], "write it into params.yaml"),
        ({}, ["promote"], "no model 'digits-base-to-novel' is registered"),
        ({"seeds": [1, 2]}, ["register"], "1 of 2 runs of digits are missing"),
        ({}, ["predict", "nowhere.png", "--model", "models/digits/mmrl-2shot/seed1"], "nowhere.png"),
        ({}, ["predict", "params.yaml", "--model", "models/digits/mmrl-2shot/seed1"], "params.yaml is not an image"),
    ],
)  # fmt: skip
def test_impossible_settings_and_arguments_end_with_exit_2_and_one_line(project, mmrl, changes, command, message):
    write_params(project, **{**QUICK, "shots": [2], **changes})
    error = mmrl(*command, code=2)
    assert message in error
    assert error.count("\n") == 1


def test_a_schedule_that_is_none_ends_with_exit_2_and_one_line(project):
    # in a process of its own: Prefect configures logging when it is imported
    done = run(project, sys.executable, "-m", "flows.cli", "flow", "serve", "--cron", "often", check=False)
    assert done.returncode == 2
    assert done.stderr == "mmrl: --cron 'often' is no schedule; give five fields, such as '0 2 * * *'\n"


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
    assert sorted(path.name for path in (project / "reports").iterdir()) == ["notes.txt", "report.html", "summary.json"]


@pytest.mark.parametrize("command", [["fingerprint", "--dataset", "digits"], ["summarize"], ["--help"]])
def test_light_commands_do_not_import_torch(project, command):
    script = (
        f"import sys; sys.argv = ['mmrl', *{command}]\nfrom flows.cli import main\ntry: main()\nexcept SystemExit:\n"
    )
    done = run(project, sys.executable, "-c", script + " print('torch' in sys.modules, 'open_clip' in sys.modules)")
    assert done.stdout.endswith("False False\n"), done.stdout


def test_the_method_needs_none_of_the_pipeline_tools(project):
    script = "import sys\nfor name in ('ray', 'prefect', 'mlflow', 'dvc'): sys.modules[name] = None\n"
    names = ["adapter", "evaluation", "model", "predict", "presets", "pretrain", "report", "search", "training"]
    imports = "".join(f"import mmrl_core.{name}\n" for name in names)
    run(project, sys.executable, "-c", script + imports + "import mmrl_core.data.sets")


def test_a_class_with_fewer_items_than_shots_is_reported(mmrl, tmp_path, monkeypatch):
    monkeypatch.chdir(make_workspace(tmp_path / "project", **QUICK))
    result = json.loads(mmrl("prepare", "--dataset", "digits", "--shots", "50", "--seed", "1", "--json"))
    assert result["classes_with_fewer_items"]["zero"] == 40
    assert result["train"] == 400
