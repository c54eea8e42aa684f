"""What a stage item makes ahead for the next ones: the same bytes, taken without PyTorch; each fails by itself."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import pytest

from flows.maintenance.cleanup import clean
from flows.project import paths
from flows.project.outputs import atomic_output, locked
from flows.project.paths import READY, RunKey
from flows.settings.params import load_params
from flows.stages import evaluate as evaluate_stage
from flows.stages import train as train_stage
from flows.stages.ahead import identity, items
from flows.stages.ahead.ready import ReadyOutput
from flows.stages.ahead.turns import Turns
from mmrl_core.data.catalog import open_source
from mmrl_core.data.own.settings import OwnSection
from mmrl_core.data.shards import write_few_shot, write_pool
from mmrl_core.errors import UserError
from mmrl_core.files import read_json, write_json
from tests.flows.cli.test_imports import DEAR
from tests.support.hold import Hold
from tests.support.workspace import environment, run, write_params

MATRIX = {"shots": [2], "seeds": [1, 2], "train": {"epochs": 1, "warmup_epochs": 0}}
DEPTHS = {"mmrl": 5, "mmrlpp": 3}
RUNS = [RunKey("digits", method, 2, seed) for method, seed in product(DEPTHS, (1, 2))]
FIRST, SECOND, PLUS, LAST = RUNS


def train(key: RunKey, make=items) -> dict:
    with atomic_output(key.model) as out:
        return make.train(load_params(), key, out)


def evaluate(key: RunKey, make=items) -> dict:
    with atomic_output(key.results()) as out:
        return make.evaluate(load_params(), key, out)


def outputs(folder: Path) -> dict[str, bytes]:
    """Every file of the runs' models and results."""
    tops = [folder / one for key in RUNS for one in (key.model, key.results())]
    return {str(path.relative_to(folder)): path.read_bytes() for top in tops for path in top.rglob("*")}


def write_search(folder: Path, method: str, depth: int) -> None:
    head = {"dataset": "digits", "method": method, "template": "a photo of the digit {}."}
    write_json(folder / paths.search("digits", method), {**head, "choice": {"adapter.insertion_depth": depth}})


def waiting() -> set[Path]:
    """Where the outputs belong that are ready."""
    return {path.parents[1].relative_to(READY) for path in READY.rglob("output")}


@pytest.fixture(scope="module")
def alone(prepared, tmp_path_factory) -> Path:
    """A project of two methods of different depth and two seeds with few images, every run of it made by itself."""
    folder = tmp_path_factory.mktemp("alone") / "project"
    shutil.copytree(prepared, folder)
    write_params(folder, **MATRIX)
    source = open_source("digits", "")
    source = replace(source, val=source.val[::9], test=source.test[::19])
    shutil.rmtree(folder / paths.pool("digits"))
    for path, write in ((paths.pool("digits"), write_pool), (SECOND.few_shot, write_few_shot)):
        (folder / path).mkdir()
        write(source, *([2, 2] if write is write_few_shot else []), folder / path)
    for method, depth in DEPTHS.items():
        write_search(folder, method, depth)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for key in RUNS:
            train(key, train_stage)
            evaluate(key, evaluate_stage)
    return folder


@pytest.fixture
def made(alone, tmp_path, monkeypatch) -> Path:
    """A copy of it as the working directory."""
    folder = shutil.copytree(alone, tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def project(made) -> Path:
    """That without models and results."""
    for key in RUNS:
        shutil.rmtree(key.model)
        shutil.rmtree(key.results())
    return made


def as_dvc_does(folder: Path, command: str, key: RunKey) -> set[str]:
    """The dear packages that `mmrl COMMAND` imports as a stage."""
    options = f"--dataset {key.dataset} --method {key.method} --shots {key.shots} --seed {key.seed}"
    script = (
        f"import sys; sys.argv = 'mmrl {command} {options}'.split()\nfrom flows.cli import main\ntry: main()\n"
        f"except SystemExit as ended: assert not ended.code\nprint(*({DEAR} & set(sys.modules)))"
    )
    (folder / "stage.py").write_text(script)
    shell = f"DVC_STAGE={command} {sys.executable} -P stage.py; exit $?  # the parent, which is taken for dvc"
    return set(run(folder, "sh", "-c", shell).stdout.splitlines()[-1].split())


def test_outputs_made_ahead_are_those_made_alone_and_are_taken_without_pytorch(project, alone):
    said = {key: train(key) for key in (FIRST, PLUS)}
    assert waiting() == {SECOND.model, LAST.model}
    evaluate(FIRST)
    assert waiting() == {SECOND.model, LAST.model, *(key.results() for key in RUNS[1:])}
    assert train(SECOND)["adapter_sha256"] == read_json(SECOND.model / "adapter.json", made_by="")["sha256"]
    assert as_dvc_does(project, "train", LAST) == set()
    assert as_dvc_does(project, "evaluate", PLUS) == set()
    for key in (SECOND, LAST):
        assert evaluate(key).keys() >= {"base", "novel", "zero_shot_base", "images_per_second"}
    assert said[FIRST].keys() == said[PLUS].keys() and not waiting()
    assert outputs(project) == outputs(alone)


def test_what_is_up_to_date_is_not_made_again(made, alone):
    shutil.rmtree(FIRST.model)
    train(FIRST)
    shutil.rmtree(LAST.results())
    evaluate(LAST)
    assert not waiting() and outputs(made) == outputs(alone)


def test_a_run_that_is_stale_is_neither_evaluated_ahead_nor_left_as_it_is(made):
    write_params(made, **MATRIX, adapter={"n_tokens": 3})
    train(FIRST)
    assert waiting() == {SECOND.model}
    evaluate(FIRST)
    assert waiting() == {SECOND.model, SECOND.results()}


def test_an_adapter_whose_probe_is_not_as_the_settings_want_it_is_not_trained(made):
    assert identity.is_trained(load_params(), FIRST)
    assert not identity.is_trained(load_params("params.yaml", ["adapter.probe=off"]), FIRST)


def test_a_damaged_adapter_fails_its_own_item_alone(made):
    for key in RUNS:
        shutil.rmtree(key.results())
    tensors = PLUS.model / "adapter.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"?")
    evaluate(FIRST)
    assert waiting() == {SECOND.results(), LAST.results()}
    with pytest.raises(UserError, match="does not match the sha256"):
        evaluate(PLUS)


def test_a_seed_that_cannot_be_trained_fails_its_own_item_alone(project, capsys):
    shard = next(SECOND.few_shot.glob("train-base-*"))
    shard.write_bytes(shard.read_bytes() + b"?")
    train(FIRST)
    assert "seed2 is not trained ahead: the shard" in capsys.readouterr().err and not waiting()
    with pytest.raises(UserError, match=r"the shard .* is not what manifest.json says"):
        train(SECOND)


def test_a_seed_that_another_process_trains_is_left_to_it(project):
    with locked(f"ready-{identity.model(load_params(), SECOND).identity}", ""):
        train(FIRST)
    assert not waiting()


def test_a_damaged_output_is_made_again(project, alone):
    train(FIRST)
    [tensors] = READY.rglob("adapter.safetensors")
    tensors.write_bytes(b"")
    train(SECOND)
    models = {path: content for path, content in outputs(alone).items() if path.startswith("models/digits/mmrl-")}
    assert outputs(project) == models


def identities(*overrides: str) -> tuple[str, str]:
    """Of the first run's adapter and of its results."""
    params = load_params("params.yaml", overrides)
    return identity.model(params, FIRST).identity, identity.results(params, FIRST, None, FIRST.model).identity


@pytest.mark.parametrize(
    ("setting", "model", "results"),
    [
        ("train.lr=0.002", True, False), ("adapter.n_tokens=3", True, False), ("search.enabled=false", True, False),
        ("adapter.probe=off", True, False), ("baselines=[]", False, False),
        ("preset=published-per-target", True, True), ("data.protocol=few-shot", True, True),
        ("data.protocol=joint", False, True), ("backbone={name: ViT-B-32, weights: random}", True, True),
        ("seeds=[1, 2, 3]", False, False), ("features.cache=always", False, False), ("search.trials=3", False, False),
    ],
)  # fmt: skip
def test_a_setting_changes_the_identity_of_what_depends_on_it_and_of_nothing_else(made, setting, model, results):
    before, after = identities(), identities(setting)
    assert (before[0] != after[0], before[1] != after[1]) == (model, results)


def test_an_adapter_of_mirrored_images_is_not_taken_where_they_must_not_be(made):
    params, own = load_params(), {"digits": OwnSection(images="images", flips=False)}
    unmirrored = params.model_copy(update={"data": params.data.model_copy(update={"own": own})})
    assert identity.model(params, FIRST).identity != identity.model(unmirrored, FIRST).identity


def test_other_data_another_search_and_another_adapter_change_the_identity(made):
    source = open_source("digits", "")
    seen = [identities()]
    for folder, write in ((FIRST.few_shot, write_few_shot), (paths.pool("digits"), write_pool)):
        shutil.rmtree(folder)
        folder.mkdir()
        few = replace(source, val=source.val[::7], test=source.test[::23])
        write(few, *([2, 1] if write is write_few_shot else []), folder)
        seen.append(identities())
    write_search(made, "mmrl", depth=4)
    seen.append(identities())
    shutil.copytree(LAST.model, FIRST.model, dirs_exist_ok=True)
    seen.append(identities())
    models, results = zip(*seen, strict=True)
    assert [one != other for one, other in pairwise(models)] == [True, False, True, False]
    assert [one != other for one, other in pairwise(results)] == [False, True, False, True]


def test_of_one_output_the_last_one_stays_and_what_is_not_kept_cannot_be_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("made").mkdir()
    Path("made/file").write_text("x")
    old, new = (ReadyOutput(Path("models/run"), name) for name in ("old", "new"))
    old.keep(Path("made"), {"loss": 0.1})
    new.keep(Path("made"), {"loss": 0.2})
    assert not old.is_there and old.take(Path("out")) is None and not Path("out").exists()
    assert new.take(Path("out")) == {"loss": 0.2} and Path("out/file").read_text() == "x" and not new.is_there


def test_clean_removes_what_is_ready(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("made").mkdir()
    place = ReadyOutput(Path("models/run"), "name")
    place.keep(Path("made"), {})
    assert clean() > 0 and not place.is_there


def test_a_kill_leaves_nothing_that_could_be_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("made").mkdir()
    Path("made/file").write_text("x")
    hold = Hold(tmp_path / "hold", "*/ready-name/.ready.json.*")
    keep = "ReadyOutput(Path('run'), 'name').keep(Path('made'), {})"
    script = f"from pathlib import Path; from flows.stages.ahead.ready import ReadyOutput; {keep}"
    keeping = subprocess.Popen([sys.executable, "-c", script], env={**environment(), **hold.environment})
    hold.wait(keeping)
    os.kill(keeping.pid, signal.SIGKILL)
    keeping.wait()
    place = ReadyOutput(Path("run"), "name")
    assert not place.is_there and list(Path(".mmrl/aside").iterdir())
    place.keep(Path("made"), {"again": True})
    assert place.take(Path("out")) == {"again": True} and not list(Path(".mmrl/aside").iterdir())


def test_the_flow_begins_one_of_a_small_trainings_seeds_then_the_others_then_their_evaluations(project):
    turns, runs = Turns(load_params("params.yaml")), [f"digits-mmrl-2-{seed}" for seed in (1, 2, 3)]
    first, *others = [f"train@{run}" for run in runs]
    assert turns.begin([first, *others[:1], "tune@digits-mmrlpp"]) == [first, "tune@digits-mmrlpp"]
    assert turns.begin([*others[1:], "train@digits-mmrlpp-2-1"]) == ["train@digits-mmrlpp-2-1"]
    assert turns.end("tune@digits-mmrlpp") == []
    assert turns.end(first) == others  # however it ended
    assert turns.begin([f"evaluate@{runs[0]}", "evaluate@digits-mmrl-4-1"]) == ["evaluate@digits-mmrl-4-1"]
    assert turns.end(others[1]) == []
    assert turns.begin([f"evaluate@{runs[2]}"]) == []
    assert turns.end(others[0]) == [f"evaluate@{runs[0]}", f"evaluate@{runs[2]}"]
    assert turns.begin([f"evaluate@{runs[1]}"]) == [f"evaluate@{runs[1]}"]
    large = Turns(load_params("params.yaml", ["backbone.name=ViT-B-16"]))
    assert large.begin([first, *others]) == [first, *others] and large.end(first) == []
