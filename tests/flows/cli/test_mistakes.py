"""The command line: what a mistake prints, and what it leaves as it was."""

import json
import shutil
import sys

import pytest

from mmrl_core.method.adapter_card import card_sha256
from tests.flows.conftest import PREPARE, RUN
from tests.support.workspace import QUICK, run, write_params

TWO = {"datasets": ["digits", "objects"]}


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
    card["card_sha256"] = card_sha256(card)
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
    path.write_text(path.read_text().replace('"parts"', '"parst"'))


@pytest.mark.parametrize(
    ("damage", "command", "message"),
    [
        (break_shard, ["train", *RUN], "train-base-000000.tar is not what manifest.json says"),
        (alter_test_shard, ["evaluate", *RUN], "test-base-000000.tar is not what manifest.json says"),
        (other_backbone, ["evaluate", *RUN], "was trained on backbone tiny with weights 000000000000"),
        (other_classes, ["evaluate", *RUN], "was trained on classes"),
        (other_search, ["train", *RUN], "is of another search than digits mmrl"),
        (metrics_without_base, ["summarize"], "has no 'parts'; run `mmrl evaluate --dataset digits"),
        (lambda p: shutil.rmtree(p / "data"), ["train", *RUN],
         "manifest.json does not exist; run `mmrl prepare --dataset digits --shots 2 --seed 1` first, or `dvc repro`"),
        (lambda p: shutil.rmtree(p / "data"), ["evaluate", *RUN],
         "manifest.json does not exist; run `mmrl prepare --dataset digits` first, or `dvc repro`"),
        (lambda p: shutil.rmtree(p / "models"), ["evaluate", *RUN],
         f"adapter.json does not exist; run `mmrl train {' '.join(RUN)}` first, or `dvc repro`"),
        (lambda p: shutil.rmtree(p / "results"), ["summarize"],
         f"does not exist; run `mmrl evaluate {' '.join(RUN)}` first, or `dvc repro`"),
        (lambda p: (p / "params.yaml").unlink(), ["summarize"], "params.yaml does not exist"),
    ],
)  # fmt: skip
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
        ({"backbone": {"name": "RN50", "weights": "random"}}, ["train", *RUN], "convolutions have no"),
        ({}, ["train", *RUN[:2], "--method", "lora", *RUN[4:]], "'lora' is not one of 'mmrl', 'mmrlpp'"),
        ({}, ["train", *RUN[:2], "--method", "MMRL++", *RUN[4:]], "did you mean mmrlpp?"),
        ({}, ["train", *RUN, "--seed", "9" * 30], "'--seed'"),
        ({}, ["prepare", "--dataset", "digits", "--shots", "0", "--seed", "1"], "Input should be greater than"),
        ({}, ["prepare", "--dataset", "digits", "--shots", "1"], "--shots and --seed together"),
        ({}, ["fingerprint"], "--dataset KEY, or --training instead"),
        ({}, ["fingerprint", "--training", "--dataset", "digits"], "--dataset KEY, or --training instead"),
        ({}, ["import", "x", "--out", "mine", "--class", "cat", "--class", "cat"], "make the same prompt"),
        ({}, ["evaluate", *RUN, "--target", "letters"], "--target letters is not among the settings' targets []"),
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
        ({"backbone": {"name": "hf_hub:org/name"}}, ["train", *RUN], "did you mean hf-hub:org/name?"),
        ({}, ["train", "--datset", "digits"], "No such option"),
        ({}, ["trian"], "No such command"),
        ({}, [], "name one of the commands above"),
        ({}, ["flow", "serve", "--cron", "0 2 * * *", "--set", "train.lr=1"], "write it into params.yaml"),
        ({}, ["flow", "release", "--watch", "1e300"], "'--watch'"),
        ({}, ["flow", "release", "--watch", "nan"], "'--watch'"),
        ({}, ["flow", "release", "--listen", "here:99999"], "not of the form HOST:PORT"),
        ({}, ["flow", "release", "--listen", "no host:8090"], "not of the form HOST:PORT"),
        ({}, ["drift", "--hours", "1e300"], "'--hours'"),
        ({}, ["promote"], "no model 'digits-base-to-novel' is registered"),
        (TWO, ["predict", "params.yaml"], "name 2 datasets; say which you mean: --dataset digits or --dataset objects"),
        (TWO, ["rollback", "why"], "say which you mean: --dataset digits or --dataset objects"),
        (TWO, ["promote", "--version", "1"], "say which you mean: --dataset digits or --dataset objects"),
        ({"seeds": [1, 2]}, ["register"], "1 of 2 runs of digits are missing"),
        ({}, ["register", *RUN[:4]], "--dataset, --method, --shots and --seed together"),
        ({}, ["register", *RUN[:2], "--method", "probe", *RUN[4:]], "'probe' is not one of 'mmrl'"),
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
