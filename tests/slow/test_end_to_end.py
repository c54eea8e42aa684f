"""The whole pipeline as its users run it: on the bundled digits, on real photographs, on a ViT-B/16."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.photographs import needs_photographs
from tests.support.workspace import BIN, environment, in_turn, make_workspace, run, run_stages

pytestmark = pytest.mark.slow
MMRL = str(BIN / "mmrl")
# Python imports this by itself at start-up: it tells at the end what heavy was loaded and which processes were started.
WATCH = """
import atexit, os, sys
STARTS = ("subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.exec", "os.system")
seen = []
sys.addaudithook(lambda event, arguments: seen.append(event) if event in STARTS else None)
HEAVY = ("torch", "ray", "mlflow", "prefect", "sqlalchemy", "pandas")
tell = lambda: print(seen + [name for name in HEAVY if name in sys.modules], file=open(os.environ["SEEN"], "a"))
atexit.register(tell)
"""


def test_the_flow_ends_with_every_stage_done_and_a_champion(adapted):
    folder, done = adapted
    stages = [line.split()[0] for line in done.stderr.splitlines() if line.endswith(" s")]
    # fingerprint, what to train on, pool, few-shot set, search, training, evaluation, no baseline twice, summary
    assert len(stages) == 10
    assert "1 adapters registered, 1 promoted" in done.stderr
    rows = json.loads((folder / "reports/summary.json").read_text())["rows"]
    assert [row["method"] for row in rows] in (["zero_shot", "mmrl"], ["zero_shot", "mmrl", "mmrl+probe"])
    assert done.stdout.count("| digits |") == len(rows)
    assert done.stdout.endswith("\nnext: mmrl predict IMAGES, mmrl serve\n")


def test_the_flow_run_again_says_at_once_that_there_was_nothing_to_do(adapted, tmp_path):
    folder, first = adapted
    before = {path: path.stat().st_mtime_ns for path in (folder / "models").rglob("*")}
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    variables = {**environment(), "PYTHONPATH": str(tmp_path), "SEEN": str(tmp_path / "seen")}
    command = [MMRL, "flow", "adapt"]
    again = subprocess.run(command, cwd=folder, env=variables, text=True, capture_output=True, check=True)
    assert (tmp_path / "seen").read_text() == "[]\n"  # by one process
    _, check, summary = again.stderr.splitlines()
    assert check.startswith("fingerprint@digits  ") and summary == "nothing to do"
    unchanged = "version 1 of digits-base-to-novel is unchanged: it is the champion"
    assert again.stdout == re.sub("(?<=^decision: ).*", unchanged, first.stdout, flags=re.M)
    assert {path: path.stat().st_mtime_ns for path in (folder / "models").rglob("*")} == before


def test_the_whole_flow_says_the_same_where_nothing_is_to_be_done(adapted):
    folder, _ = adapted
    log = folder / ".mmrl/logs/fingerprint@digits.log"
    log.unlink()
    by_itself = run(folder, MMRL, "flow", "adapt", "--json")
    assert not log.exists()
    (folder / "prefect.toml").touch()  # Prefect's settings could name a server, where the run would be looked for
    whole = run(folder, MMRL, "flow", "adapt", "--json")
    (folder / "prefect.toml").unlink()
    assert log.exists()  # its stage ran
    assert whole.stdout == by_itself.stdout and json.loads(whole.stdout)["ran"] == []
    lines = [re.sub(r"[\d.]+ s$|^.*: .*\n", "", one.stderr, flags=re.M) for one in (by_itself, whole)]
    assert lines[0] == lines[1]  # but for how far it is, which is told in lines with a colon


def test_the_champion_can_be_trained_again_from_what_the_registry_says_alone(adapted, tmp_path):
    folder, _ = adapted
    elsewhere = tmp_path / "elsewhere"  # the store, and nothing that was prepared or trained
    make_workspace(elsewhere)
    run(elsewhere, "git", "init", "-q")
    store = f"tracking.uri=sqlite:///{folder}/mlflow.db"
    command = [MMRL, "reproduce", "digits-base-to-novel@champion", "--out", "again", "--set", store]
    assert json.loads(run(elsewhere, *command, "--json").stdout)["identical"] is True
    assert (elsewhere / "again/adapter.safetensors").exists()


def test_the_champion_is_released_once_and_the_history_says_how_it_came_to_be(adapted):
    folder, _ = adapted
    first, again, told = in_turn(folder, "flow release --json", "flow release --json", "history").split("\n", 2)
    [first], [again] = json.loads(first), json.loads(again)
    assert (first["created"], again["created"]) == (True, False)
    assert (folder / first["folder"] / "onnx/model.onnx").exists()
    assert "there was no champion" in told and "checked in a process of its own" in told


def test_the_champion_classifies_in_a_process_that_has_mlflow_and_this_package_alone(adapted):
    folder, _ = adapted
    script = """
import json, sys
for name in ("ray", "prefect", "dvc"): sys.modules[name] = None
import mlflow, pandas
from mmrl_core.data.shards import read_examples
examples = [one for one in read_examples("data/digits/pool", "val", "base")][::10]
mlflow.set_tracking_uri("sqlite:///mlflow.db")
model = mlflow.pyfunc.load_model("models:/digits-base-to-novel@champion")
found = model.predict(pandas.DataFrame({"image": [one.image for one in examples]}))
print(json.dumps([[one.class_name for one in examples], list(found["label"])]))
"""
    done = run(folder, sys.executable, "-c", script)
    expected, found = json.loads(done.stdout.splitlines()[-1])
    assert sum(a == b for a, b in zip(expected, found, strict=True)) >= 0.8 * len(expected)


def test_every_training_is_tracked_with_its_epochs_and_the_digest_of_its_data(adapted):
    folder, _ = adapted
    script = """
import json, mlflow
client = mlflow.MlflowClient("sqlite:///mlflow.db")
experiment = client.get_experiment_by_name("digits")
runs = client.search_runs([experiment.experiment_id], "tags.stage = 'train'")
print(json.dumps([[run.info.status, run.data.tags["data.digest"], run.data.params["adapter.insertion_depth"],
                   len(client.get_metric_history(run.info.run_id, "loss"))] for run in runs]))
"""
    runs = json.loads(run(folder, sys.executable, "-c", script).stdout.splitlines()[-1])
    manifest = json.loads((folder / "data/digits/4shot-seed1/manifest.json").read_text())
    assert len(runs) == 1
    for status, digest, depth, epochs in runs:
        assert (status, digest, epochs) == ("FINISHED", manifest["digest"], 8)
        assert depth in ("4", "5", "6")


def test_changing_a_learning_rate_rebuilds_no_shard(adapted, tmp_path):
    folder = tmp_path / "project"
    shutil.copytree(adapted[0], folder, symlinks=True)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["train"]["lr"] = 2e-3
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    status = json.loads(run(folder, sys.executable, "-m", "dvc", "status", "--json").stdout)
    changed = {name.partition("@")[0] for name, what in status.items() if what != ["always changed"]}
    assert changed == {"tune", "train"}


def test_a_mistake_in_the_settings_stops_the_flow_with_one_line(adapted, tmp_path):
    folder = tmp_path / "project"
    shutil.copytree(adapted[0], folder, symlinks=True)
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text.replace("n_tokens:", "n_token:"))
    done = subprocess.run([MMRL, "flow", "adapt"], cwd=folder, env=environment(), text=True, capture_output=True)
    assert done.returncode == 2
    said = "mmrl: params.yaml: unknown key 'adapter.n_token'; did you mean 'n_tokens'?"
    assert done.stderr.splitlines() == ["adapt: starting", said]


@needs_photographs
def test_real_photographs_run_whole_with_the_bundled_backbone(tmp_path):
    card, metrics = run_photographs(tmp_path, 12, 5, shots=[4], methods=["mmrlpp"], train={"epochs": 3})
    assert card["data"]["images"] == 4 * 6
    assert card["settings"]["adapter.reg_weight"] == 3  # Caltech101's published value
    assert metrics["n"] == 5 * 12


@pytest.mark.endurance  # tests/core/clip/test_architectures.py has its towers, the others here the pipeline
@needs_photographs
def test_a_randomly_initialised_vit_b_16_runs_whole_on_a_handful_of_classes(tmp_path):
    backbone = {"name": "ViT-B-16", "weights": "random"}
    train = {"epochs": 1, "batch_size": 8}
    card, metrics = run_photographs(tmp_path, 4, 1, shots=[4], methods=["mmrl"], train=train, backbone=backbone)
    assert card["trainable"] == 4_992_256
    assert card["settings"]["adapter.insertion_depth"] == 6
    assert metrics["n"] == 4


def run_photographs(folder: Path, classes: int, test_items: int, **settings) -> tuple[dict, dict]:
    """Every stage on photographs of the first classes: the adapter's card and the metrics."""
    make_subset(Path(os.environ["MMRL_TEST_DATA"]), folder / "root", classes, test_items)
    settings |= {"datasets": ["caltech101"], "baselines": [], "seeds": [1], "search": {"enabled": False}}
    project = make_workspace(folder / "project", data={"root": str(folder / "root")}, **settings)
    run_stages(project)
    [card], [metrics] = project.glob("models/*/*/*/adapter.json"), project.glob("results/*/*/*/metrics.json")
    return json.loads(card.read_text()), json.loads(metrics.read_text())


def make_subset(source: Path, root: Path, classes: int, test_items: int) -> None:
    """A dataset folder of its own with the first classes of the photographs and a few test images of each."""
    split = json.loads((source / "caltech-101" / "split_zhou_Caltech101.json").read_text())
    subset = {}
    for name, limit in (("train", 6), ("val", 1), ("test", test_items)):
        rows = [[row for row in split[name] if row[1] == label][:limit] for label in range(classes)]
        subset[name] = [row for of_class in rows for row in of_class]
    for path, *_ in (row for rows in subset.values() for row in rows):
        target = root / "caltech-101" / "101_ObjectCategories" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / "caltech-101" / "101_ObjectCategories" / path, target)
    (root / "caltech-101" / "split_zhou_Caltech101.json").write_text(json.dumps(subset))
