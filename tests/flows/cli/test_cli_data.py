"""`mmrl datasets` and `mmrl check`: what there is and what it lacks."""

import json

import pytest

from mmrl_core.data import catalog
from tests.core.test_predict import noise
from tests.flows.conftest import RUN
from tests.support.workspace import write_params


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory without settings and data."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def own(folder):
    """Settings that name the user's own dataset of two classes with ten images each."""
    for seed in range(20):
        path = folder / "pets" / ("cat" if seed % 2 else "dog") / f"{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise(seed))
    write_params(folder, data={"own": {"pets": {"images": "pets"}, "lost": {"images": "nowhere"}}})
    return folder


def by_key(printed: str) -> dict[str, dict]:
    return {row["dataset"]: row for row in json.loads(printed)["datasets"]}


def test_every_dataset_is_listed_and_the_users_own_too(own, mmrl):
    rows = by_key(mmrl("datasets", "--json"))
    assert set(rows) == {*catalog.known_keys(), "pets", "lost"}
    assert rows["pets"] == {
        "dataset": "pets", "kind": "own", "needs": "pets", "template": "a photo of a {}.", "published": None,
    }  # fmt: skip
    assert rows["caltech101"]["published"] == {"train": 4128, "val": 1649, "test": 2465}
    assert (rows["caltech101"]["reg_weight"], rows["caltech101"]["beta"]) == ({"mmrl": 0.5, "mmrlpp": 3}, 0.6)
    assert (rows["digits"]["reg_weight"], rows["digits"]["beta"]) == ({"mmrl": None, "mmrlpp": None}, None)
    lines = mmrl("datasets").splitlines()
    assert lines[0].split() == ["dataset", "kind", "train/val/test", "template", "needs"]
    assert any(line.split()[:3] == ["caltech101", "benchmark", "4128/1649/2465"] for line in lines)


def test_the_list_needs_no_settings(folder, mmrl):
    assert set(by_key(mmrl("datasets", "--json"))) == set(catalog.known_keys())
    assert "absent.yaml does not exist" in mmrl("datasets", "--params", "absent.yaml", code=2)


def test_an_empty_folder_holds_no_dataset_and_that_is_exit_2(folder, mmrl):
    error = mmrl("check", "empty", code=2)
    assert error == "mmrl: no dataset is complete below empty; `mmrl datasets` tells what each one needs\n"


def test_what_is_asked_for_must_be_complete(folder, mmrl):
    assert "digits" in mmrl("check", "--dataset", "digits")
    assert "dtd: not complete below data/raw" in mmrl("check", "--dataset", "digits", "--dataset", "dtd", code=2)
    assert "unknown dataset 'dtdd'" in mmrl("check", "--dataset", "dtdd", code=2)


def test_ones_own_dataset_is_complete_when_it_opens(own, mmrl):
    row = by_key(mmrl("check", "--dataset", "pets", "--json"))["pets"]
    assert row["state"] == "complete"
    assert sum(row["found"].values()) == 20
    assert "pets" in mmrl("check")


def test_ones_own_dataset_that_does_not_open_says_why(own, mmrl):
    error = mmrl("check", "--dataset", "lost", code=2)
    assert error.startswith("mmrl: lost: not complete") and error.count("\n") == 1


def test_training_with_the_feature_store_gives_the_same_adapter_and_clean_removes_the_store_alone(project, mmrl):
    before = {path for path in project.rglob("*") if path.is_file()}
    mmrl("train", *RUN, "--set", "features.cache=always", "--out", "elsewhere")
    tracked = project / "models/digits/mmrl-2shot/seed1/adapter.safetensors"
    assert (project / "elsewhere/adapter.safetensors").read_bytes() == tracked.read_bytes()
    kept = [path for path in (project / ".mmrl/features").rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in kept)
    assert json.loads(mmrl("clean", "--json")) == {"freed_bytes": size} and size > 0
    assert not (project / ".mmrl/features").exists() and before <= set(project.rglob("*"))
    assert mmrl("clean") == ".mmrl: freed_bytes 0\n"


def test_without_being_asked_training_keeps_no_features(project, mmrl):
    mmrl("train", *RUN, "--set", "train.lr=0.001", "--out", "elsewhere")
    assert not (project / ".mmrl/features").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.precision=fp16", "train.precision is fp16, which needs a GPU; set bf16, float32 or auto"),
        (
            "train.precision=half",
            "train.precision is 'half', which cannot be: choose one of auto, float32, bf16, fp16",
        ),
        ("features.cache=all", "features.cache is 'all', which cannot be: choose one of tune, always, never"),
        ("features.budget_gb=0", "features.budget_gb is 0, which cannot be: more than 0 is needed"),
        ("features.budget=5", "unknown key 'features.budget'; did you mean 'budget_gb'?"),
    ],
)
def test_impossible_precisions_and_stores_are_refused_in_one_line(project, mmrl, setting, message):
    said = mmrl("train", *RUN, "--set", setting, "--out", "elsewhere", code=2)
    assert message in said and said.count("\n") == 1


def test_an_adapters_card_names_the_precision_that_it_was_trained_in(project, mmrl):
    for setting, settled in (("null", "float32"), ("auto", "float32"), ("bf16", "bf16")):
        mmrl("train", *RUN, "--set", f"train.precision={setting}", "--out", f"in {setting}")
        card = json.loads((project / f"in {setting}" / "adapter.json").read_text())
        assert card["settings"]["train.precision"] == settled
