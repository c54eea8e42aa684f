"""`mmrl flow adapt` with nothing to do answers without the flow, and leaves to it whatever it would do."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

import flows.orchestration
from flows.orchestration.up_to_date import Adapted, up_to_date
from flows.registry import promotion, versions
from flows.settings.edit import edit_params
from flows.settings.params import load_params
from flows.stages import prepare
from flows.tracking import store
from mmrl_core.files import read_json, write_json
from tests.support.workspace import run

NAME = "digits-base-to-novel"
LONG_AGO, LATER = "2000-01-01", "2100-01-01"
AUTHOR = ("-c", "user.name=a", "-c", "user.email=a@b.c")
ONE_CHECK = """
stages:
  fingerprint:
    matrix: {dataset: "${datasets}"}
    cmd: mmrl fingerprint --dataset ${item.dataset}
    outs: ["data/${item.dataset}.source.json"]
    always_changed: true
"""


@pytest.fixture(scope="module")
def done(prepared, tmp_path_factory):
    """The prepared project, all of its stages done as DVC sees it, its adapter the champion; git has no commit yet."""
    folder = shutil.copytree(prepared, tmp_path_factory.mktemp("done") / "project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        prepare.fingerprint_training(load_params(), Path("data/training.json"))
        run(folder, "git", "init", "-q")
        Repo.init().close()
        commit_stages()
        register_and_promote("digits")
    return folder


@pytest.fixture
def project(done, tmp_path, monkeypatch):
    """A copy to change, as the working directory."""
    for name in [name for name in os.environ if name.startswith(("PREFECT", "MLFLOW_TRACKING"))]:
        monkeypatch.delenv(name)
    folder = shutil.copytree(done, tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder


def commit_stages() -> None:
    """Everything is as dvc.yaml wants it, says whoever calls this."""
    with Repo() as repo:
        repo.commit(None, force=True)


def commit_files() -> None:
    subprocess.run(["git", "add", "-A"], check=True)
    subprocess.run(["git", *AUTHOR, "commit", "-qm", "all", "--allow-empty"], check=True)


def register_and_promote(dataset: str):
    """What the flow does after its stages."""
    params = load_params()
    registered = versions.register(params, versions.candidate(params, dataset))
    return registered, promotion.promote(params, dataset)


def client():
    return store.connect(store.store_uri(load_params()))


def add_version() -> str:
    """A second version, of another adapter, named long ago."""
    tags = {"adapter_sha256": "0" * 64, "candidate_at": LONG_AGO}
    return client().create_model_version(NAME, client().get_model_version(NAME, "1").source, tags=tags).version


def edit_pipeline(**changed: dict) -> None:
    """Put keys into stages of dvc.yaml."""
    document = yaml.safe_load(Path("dvc.yaml").read_text())
    for name, values in changed.items():
        document["stages"].setdefault(name, {}).update(values)
    Path("dvc.yaml").write_text(yaml.safe_dump(document, sort_keys=False))


def test_what_it_answers_is_what_registration_and_promotion_would(project):
    found = up_to_date()
    registered, promoted = register_and_promote("digits")
    assert found == Adapted([], 9, {"digits": registered}, {"digits": promoted})
    assert (promoted.verdict, found.summary) == ("unchanged", "nothing to do")
    assert up_to_date() == found  # naming the version again changed nothing that counts


def test_the_command_prints_it_without_the_flow(project, mmrl, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "flows.orchestration.adapt", None)
    monkeypatch.delattr(flows.orchestration, "adapt", raising=False)
    answer = json.loads(mmrl("flow", "adapt", "--json"))
    assert (answer["ran"], answer["up_to_date"]) == ([], 9)
    assert answer["champions"] == {"digits": f"models:/{NAME} version 1"}
    assert answer["decisions"] == {"digits": {"verdict": "unchanged", "reasons": ["it is the champion"]}}
    check, summary = mmrl.error.splitlines()
    assert check.startswith("fingerprint@digits  ") and summary == "nothing to do"
    said = re.search(f"^champion of digits: (.*); models:/{NAME} version 1$", mmrl("flow", "adapt"), re.M)
    assert re.fullmatch(r"MMRL( \+ probe)?, 2 shots, seed 1: base [\d.]+, novel [\d.]+, harmonic mean [\d.]+", said[1])
    assert "note: " not in mmrl.out and answer["notes"] == []
    monkeypatch.setattr("sys.argv", ["mmrl", "flow", "adapt", "--remote", "storage"])
    with pytest.raises(ImportError, match="adapt"):  # it would pull and push
        flows.cli.main()


def stage_output_gone():
    Path("data/training.json").unlink()


def adapter_altered():
    with open("models/digits/mmrl-2shot/seed1/adapter.safetensors", "ab") as file:
        file.write(b"0")


def metrics_altered():
    metrics = Path("results/digits-to-digits/mmrl-2shot/seed1/metrics.json")
    metrics.write_text(metrics.read_text() + "\n")


def file_among_the_results():
    Path("results/other.json").touch()


def another_source():
    """As if the data had been others when the stages ran: DVC cannot know."""
    source = read_json("data/digits.source.json", made_by="mmrl fingerprint")
    write_json("data/digits.source.json", source | {"digest": "another"})
    commit_stages()
    register_and_promote("digits")


def another_command_checks():
    edit_pipeline(fingerprint={"cmd": "touch seen && mmrl fingerprint --dataset ${item.dataset}"})
    commit_stages()
    register_and_promote("digits")


def method_version():
    versions = Path("versions.yaml")
    versions.write_text(versions.read_text().replace("METHOD_VERSION: ", "METHOD_VERSION: 1"))


def store_of_nobody():
    Path("mlflow.db").unlink()
    sqlite3.connect("mlflow.db").close()


def another_champion():
    promotion.promote(load_params(), "digits", int(add_version()), force="a test")


def another_candidate():
    client().set_model_version_tag(NAME, add_version(), "candidate_at", LATER)


def adapter_of_another_tag():
    client().set_model_version_tag(NAME, "1", "adapter_sha256", "0" * 64)


def busy_output():
    holder = {"pid": os.getpid(), "cmd": "dvc repro"}
    write = {str(Path("models/digits/mmrl-2shot/seed1").resolve()): holder}
    Path(".dvc/tmp/rwlock").write_text(json.dumps({"read": {}, "write": write}))


CHANGES = {
    "a setting that stages depend on": lambda: edit_params(Path("params.yaml"), ["train.lr=0.1"]),
    "a setting that source checks depend on": lambda: edit_params(Path("params.yaml"), ["data.root=elsewhere"]),
    "one more dataset": lambda: edit_params(Path("params.yaml"), ["datasets=[digits, letters]"]),
    "another dataset": lambda: edit_params(Path("params.yaml"), ["datasets=[letters]"]),
    "one more seed": lambda: edit_params(Path("params.yaml"), ["seeds=[1, 2]"]),
    "another alias": lambda: edit_params(Path("params.yaml"), ["registry.alias=live"]),
    "a mistake in the settings": lambda: Path("params.yaml").write_text("datasets: 1\n"),
    "no settings": lambda: Path("params.yaml").unlink(),
    "an output that is gone": stage_output_gone,
    "an adapter that was altered": adapter_altered,
    "metrics that were altered": metrics_altered,
    "a file more in a dependency": file_among_the_results,
    "no shards": lambda: shutil.rmtree("data/digits/pool"),
    "a table of the report that is gone": lambda: Path("reports/results.csv").unlink(),
    "another version of the method": method_version,
    "another command": lambda: edit_pipeline(summarize={"cmd": "mmrl summarize --json"}),
    "a stage that never ran": lambda: edit_pipeline(extra={"cmd": "date > now.txt", "outs": ["now.txt"]}),
    "a source check that is not ours": another_command_checks,
    "another state of the source": another_source,
    "no lock file": lambda: Path("dvc.lock").unlink(),
    "a lock file of nothing": lambda: Path("dvc.lock").write_text("schema: '2.0'\nstages: {}\n"),
    "no pipeline": lambda: Path("dvc.yaml").unlink(),
    "no DVC": lambda: shutil.rmtree(".dvc"),
    "an output that another DVC works on": busy_output,
    "no store": lambda: Path("mlflow.db").unlink(),
    "a store without tables": store_of_nobody,
    "a model that was deleted": lambda: client().delete_registered_model(NAME),
    "a version that was deleted": lambda: client().delete_model_version(NAME, "1"),
    "an alias that was deleted": lambda: client().delete_registered_model_alias(NAME, "champion"),
    "another champion": another_champion,
    "another candidate": another_candidate,
    "an adapter that is not registered": adapter_of_another_tag,
    "a tag that registering would write": lambda: client().set_model_version_tag(NAME, "1", "preset", "another"),
    "a commit where there was none": commit_files,
    "Prefect's settings here": lambda: Path("prefect.toml").touch(),
    "Prefect's settings in pyproject.toml": lambda: Path("pyproject.toml").write_text("[tool.prefect.api]\nurl='x'"),
    "Prefect's settings in .env": lambda: Path(".env").write_text("prefect_api_url=http://127.0.0.1:9/api\n"),
    "a pyproject.toml that is none": lambda: Path("pyproject.toml").write_text("["),
    "a profile of Prefect": lambda: Path(".mmrl/prefect/profiles.toml").touch(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_it_does_not_answer_where_there_is(project, change, capsys):
    Path(".mmrl/prefect").mkdir(parents=True, exist_ok=True)
    change()
    capsys.readouterr()
    assert up_to_date() is None
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MLFLOW_TRACKING_URI", "sqlite:///other.db"),
        ("MLFLOW_TRACKING_URI", "http://127.0.0.1:9"),
        ("MLFLOW_TRACKING_URI", "postgresql://127.0.0.1:9/mlflow"),
        ("PREFECT_API_URL", "http://127.0.0.1:9/api"),
        ("prefect_api_url", "http://127.0.0.1:9/api"),
        ("PREFECT_PROFILE", "cloud"),
        ("MLFLOW_ENABLE_WORKSPACES", "true"),
    ],
)
def test_it_does_not_answer_for_another_store_or_where_a_server_is_to_see_the_run(
    project, monkeypatch, variable, value
):
    monkeypatch.setenv(variable, value)
    assert up_to_date() is None


def test_it_does_not_answer_for_settings_elsewhere_or_below_dvcs_root(project, monkeypatch):
    shutil.copytree("models", "below/models")
    shutil.copy("params.yaml", "below")
    assert up_to_date("below/params.yaml") is None
    monkeypatch.chdir("below")
    assert up_to_date() is None


def test_it_does_not_answer_while_somebody_writes_to_the_store(project):
    with closing(sqlite3.connect("mlflow.db")) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        assert up_to_date() is None
    assert up_to_date()


def test_the_commit_and_whether_files_differ_from_it_are_to_be_those_of_the_registered_version(project):
    commit_files()
    register_and_promote("digits")
    assert up_to_date()
    Path(".dvcignore").write_text("# nothing\n")
    assert up_to_date() is None
    register_and_promote("digits")
    assert up_to_date()  # `-dirty` then and now
    commit_files()
    assert up_to_date() is None


def test_a_dvc_lock_that_was_written_makes_no_commit_dirty(project):
    commit_files()
    Path("dvc.lock").write_text(Path("dvc.lock").read_text() + "# of another machine\n")
    register_and_promote("digits")
    tag = client().get_model_version(NAME, "1").tags["git_commit"]
    assert tag == run(project, "git", "rev-parse", "HEAD").stdout.strip()
    assert up_to_date()


def test_a_data_source_of_dvc_counts_when_it_changes(project):
    Path("weights.bin").write_text("one")
    with Repo() as repo:
        repo.add("weights.bin")
    register_and_promote("digits")
    assert up_to_date().up_to_date == 9
    Path("weights.bin").write_text("two")
    assert up_to_date() is None


def test_one_more_image_in_the_source_is_seen(project):
    """By an image folder of one's own, with stages and an adapter that were digits'."""
    for name in ("zero", "one"):
        Path("photos", name).mkdir(parents=True)
        shutil.copyfile("dvc.yaml", f"photos/{name}/1.png")
    edit_params(Path("params.yaml"), ["datasets=[photos]", "data.own={photos: {images: photos}}"])
    for of in ("data/digits/pool", "models/digits", "results/digits-to-digits"):
        shutil.copytree(of, of.replace("digits", "photos"))
    Path("dvc.yaml").write_text(ONE_CHECK)
    params = load_params()
    prepare.fingerprint(params, "photos", Path("data/photos.source.json"))
    commit_stages()
    register_and_promote("photos")
    assert up_to_date().up_to_date == 0
    shutil.copyfile("dvc.yaml", "photos/zero/2.png")
    assert up_to_date() is None


def test_a_challenger_that_was_declined_stays_so_until_the_question_is_another(project):
    params, force = load_params(), partial(promotion.promote, load_params(), "digits", force="a test")
    force(int(add_version()))
    force(1)
    promotion.rollback(params, "digits", "it was wrong")
    assert up_to_date() is None  # the gate has not answered yet
    _, promoted = register_and_promote("digits")
    assert (promoted.verdict, promoted.version, promoted.previous) == ("refused", 1, 2)
    assert up_to_date().promoted == {"digits": promotion.promote(params, "digits")}
    edit_params(Path("params.yaml"), ["registry.margin=0.1"])
    assert up_to_date() is None


def test_without_a_champion_it_says_that_there_is_none(project, mmrl):
    client().delete_registered_model_alias(NAME, "champion")
    _, promoted = register_and_promote("digits")
    assert (promoted.verdict, promoted.previous) == ("refused", None)
    assert up_to_date().promoted == {"digits": promoted}
    assert json.loads(mmrl("flow", "adapt", "--json"))["champions"] == {"digits": None}
    assert "\nchampion of digits: none\n" in mmrl("flow", "adapt")
