"""`mmrl datasets` and `mmrl check`: what there is and what it lacks."""

import json

import pytest
import yaml

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
    """Settings that name the user's own dataset of three classes with ten images each."""
    for seed in range(30):
        path = folder / "pets" / ("cat", "dog", "newt")[seed % 3] / f"{seed}.png"
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
    (folder / "empty").mkdir()
    error = mmrl("check", "empty", code=2)
    assert error == "mmrl: no dataset is complete below empty; `mmrl datasets` tells what each one needs\n"


@pytest.mark.parametrize(("place", "message"), [
    ("nowhere", "nowhere is not there; give a folder of datasets or of images"),
    ("params.yaml", "params.yaml is no folder; give a folder"),
    ("items.csv", "items.csv is no folder; name it as `data.own.NAME.table=items.csv`"),
])  # fmt: skip
def test_what_is_no_folder_is_not_checked_for_complete_by_what_the_settings_name(own, mmrl, place, message):
    (own / "items.csv").write_text("path,label\n")
    assert mmrl("check", place, code=2).startswith(f"mmrl: {message}")


def test_a_dataset_that_the_settings_list_must_be_one(own, mmrl):
    assert "unknown dataset 'Petz'; did you mean pets?" in mmrl("check", "--dataset", "Petz", code=2)
    assert "unknown dataset 'petz'" in mmrl("check", "--set", "datasets=[petz]", code=2)


def test_what_is_asked_for_must_be_complete(folder, mmrl):
    assert "digits" in mmrl("check", "--dataset", "digits")
    assert "dtd: not complete below data/raw" in mmrl("check", "--dataset", "digits", "--dataset", "dtd", code=2)
    assert "unknown dataset 'dtdd'" in mmrl("check", "--dataset", "dtdd", code=2)


def test_ones_own_dataset_is_complete_when_it_opens(own, mmrl):
    row = by_key(mmrl("check", "--dataset", "pets", "--json"))["pets"]
    assert row["state"] == "complete"
    assert sum(row["found"].values()) == 30
    assert "pets" in mmrl("check")


def test_ones_own_dataset_that_does_not_open_says_why(own, mmrl):
    error = mmrl("check", "--dataset", "lost", code=2)
    assert error.startswith("mmrl: lost: not complete") and error.count("\n") == 1


def fill(folder, numbers):
    folder.mkdir(parents=True)
    for number in numbers:
        (folder / f"{number}.png").write_bytes(noise(number))


def test_a_folder_of_class_folders_is_checked_as_ones_own_and_says_how_to_name_it(folder, mmrl):
    for split, number in (("Training", 0), ("Testing", 50)):
        for name in ("birch", "oak", "pine"):
            number += 4
            fill(folder / "My trees/set" / split / name, range(number, number + 4))
    said = mmrl("check", "My trees")
    assert said.splitlines()[1].split() == ["My-trees", "complete", "9/3/12", "-"]
    assert "My-trees: 3 classes: birch, oak, pine\n" in said
    assert "\nnext: mmrl init PROJECT --images 'My trees', then mmrl flow adapt in PROJECT\n" in said
    _, lines = said.split("to use it, let params.yaml say:\n")
    write_params(folder, **yaml.safe_load(lines))
    row = by_key(mmrl("check", "--dataset", "My-trees", "--json"))["My-trees"]
    assert (row["state"], row["class_names"]) == ("complete", ["birch", "oak", "pine"])
    assert list(by_key(mmrl("check", "My trees", "--json"))) == ["My-trees"]
    said = mmrl("check", "My trees")
    assert "to use it" not in said and said.endswith("\nnext: mmrl flow adapt\n")


def test_where_there_is_no_project_two_classes_are_enough_and_the_next_step_is_to_make_one(tmp_path, monkeypatch, mmrl):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "my pets/cat", range(4))
    fill(tmp_path / "my pets/dog", range(4, 8))
    said = mmrl("check", "my pets")
    assert "\nnext: mmrl init PROJECT --images 'my pets', then mmrl flow adapt in PROJECT\n" in said
    assert "next" not in mmrl("check", "my pets", "--json")


def test_a_folder_that_cannot_be_used_says_why_and_nothing_of_the_settings(folder, mmrl):
    fill(folder / "DCIM/100APPLE", range(4))
    mmrl("check", "DCIM", code=2)
    assert "such folders are a camera's, not of classes" in mmrl.out
    assert "next:" not in mmrl.out and "to use it" not in mmrl.out


def test_a_folder_with_a_table_of_its_images_is_checked_by_it_and_known_again(folder, mmrl):
    fill(folder / "contest/train", range(12))
    rows = "".join(f"{number},{('cat', 'dog', 'owl')[number % 3]}\n" for number in range(12))
    (folder / "contest/train.csv").write_text(f"id,label\n{rows}")
    said = mmrl("check", "contest", "--set", "data.protocol=few-shot")
    assert "\nnext: put it under `datasets` in params.yaml, then mmrl flow adapt\n" in said
    _, lines = said.split("to use it, let params.yaml say:\n")
    said = {"table": "contest/train.csv", "images": "contest/train", "columns": {"path": "id"}}
    assert yaml.safe_load(lines)["data"]["own"] == {"contest": said}
    write_params(folder, datasets=["contest"], data={"own": {"contest": said}, "protocol": "few-shot"})
    assert mmrl("check", "contest").endswith("\nnext: mmrl flow adapt\n")


def test_a_folder_named_as_a_dataset_gets_another_name_and_one_with_a_benchmark_stays_as_it_is(folder, mmrl):
    fill(folder / "dtd/oak", range(4))
    fill(folder / "dtd/pine", range(4, 8))
    fill(folder / "dtd/yew", range(8, 12))
    assert list(by_key(mmrl("check", "dtd", "--json"))) == ["my-dtd"]
    mmrl("check", ".", code=2)
    assert "dtd" in mmrl.out and "caltech101" in mmrl.out


def test_a_folder_of_hugging_faces_is_checked_by_its_table(folder, mmrl):
    (folder / "hub").mkdir()
    rows = [(f"{number}.png", "cat" if number % 2 else "dog") for number in range(12)]
    for name, _ in rows:
        (folder / "hub" / name).write_bytes(noise(int(name.partition(".")[0])))
    (folder / "hub/metadata.csv").write_text("file_name,label\n" + "".join(f"{name},{label}\n" for name, label in rows))
    write_params(folder, data={"protocol": "few-shot"})
    said = mmrl("check", "hub")
    assert "hub: 2 classes: cat, dog" in said and "table: hub" in said
    mmrl("check", "--dataset", "hub", "--set", "data.own.hub.images=hub", "--set", "data.protocol=few-shot", code=2)
    assert "hub holds metadata.csv; say `table: hub`, not `images`" in mmrl.out


@pytest.mark.parametrize(("place", "key"), [("2024", "my-2024"), ("x" * 95, "x" * 90), ("data/raw", "my-raw")])
def test_the_lines_for_the_settings_are_ones_that_are_taken(folder, mmrl, place, key):
    for number, name in enumerate(("birch", "oak", "pine", "yew")):
        fill(folder / place / name, range(10 * number, 10 * number + 6))
    _, lines = mmrl("check", place).split("to use it, let params.yaml say:\n")
    write_params(folder, **yaml.safe_load(lines))
    assert by_key(mmrl("check", "--dataset", key, "--json"))[key]["state"] == "complete"


def test_of_many_images_that_cannot_be_used_the_first_are_printed_and_all_are_in_the_json(own, mmrl):
    for number in range(30):
        (own / "pets/cat" / f"bad {number}.png").write_bytes(b"no image %d" % number)
    assert mmrl("check", "--dataset", "pets", code=2).count("\n") == 1
    lines = [line for line in mmrl.out.splitlines() if line.startswith("pets: ")]
    assert sum("is not an image of a known format" in line for line in lines) == 20
    assert "pets: and 10 more; --json lists them all" in lines
    mmrl("check", "--dataset", "pets", "--json", code=2)
    assert len(by_key(mmrl.out)["pets"]["problems"]) == 30


@pytest.mark.parametrize("more", [[], ["--shots", "2", "--seed", "1"]])
def test_classes_that_could_not_be_tested_are_refused_when_data_are_prepared(own, mmrl, more):
    fill(own / "pets/axolotl", range(30, 40))
    fill(own / "pets/oak", [40])
    error = mmrl("prepare", "--dataset", "pets", *more, code=2)
    assert error == (
        "mmrl: pets: 1 of 2 novel classes have no test image (oak); give each more images, or leave the class out\n"
    )
    assert not (own / "data").exists()


def test_one_class_alone_to_be_trained_on_is_refused_when_data_are_prepared(own, mmrl):
    error = mmrl("prepare", "--dataset", "pets", "--set", "data.base_classes=1", "--out", "pool", code=2)
    assert error.startswith("mmrl: pets: cat is the one class to be trained on, where 2 are the least; add classes, ")
    mmrl("check", "--dataset", "pets", "--set", "data.base_classes=1", code=2)
    assert "pets: cat is the one class to be trained on" in mmrl.out
    few_shot = {"own": {"pets": {"images": "pets"}}, "base_classes": 1, "protocol": "few-shot"}
    write_params(own, data=few_shot)
    few = ["--dataset", "pets", "--shots", "2", "--seed", "1"]
    mmrl("prepare", *few)
    again = ["--set", "data.protocol=base-to-novel", "--out", "mine"]
    assert "is the one class" in mmrl("train", *few, "--method", "mmrl", *again, code=2)


def test_prepare_prints_classes_counts_and_what_was_left_out(own, mmrl):
    (own / "pets/readme.txt").touch()
    first, second, _ = mmrl("prepare", "--dataset", "pets").splitlines()
    assert first.endswith(", val 6, test 9, classes 3 (cat, dog, newt)")
    assert second == "data/pets/pool: 1 files that are no images were left out, the first readme.txt"


def test_class_names_too_long_for_the_backbones_prompts_are_noted_with_their_tokens(own, mmrl):
    long = " ".join("abcdefgh" * 10)
    (own / "pets" / "dog").rename(own / "pets" / long)
    row = by_key(mmrl("check", "--dataset", "pets", "--json"))["pets"]
    [note] = [problem for problem in row["notes"] if "tokens" in problem]
    assert row["state"] == "complete" and "cut at 77 tokens" in note and "has 87 tokens" in note
    assert note in mmrl("check", "--dataset", "pets")
    short = by_key(mmrl("check", "--dataset", "pets", "--set", "backbone.name=ViT-B-16-SigLIP", "--json"))["pets"]
    assert not [problem for problem in short["notes"] if "tokens" in problem]  # no backbone of the method
    for options in ([], ["--shots", "1", "--seed", "1"]):
        assert note in json.loads(mmrl("prepare", "--dataset", "pets", *options, "--json"))["notes"]
    manifest = json.loads((own / "data/pets/pool/manifest.json").read_text())
    assert not [one for one in manifest["notes"] if "tokens" in one]  # the data are the same for every backbone


def test_photographs_that_tiny_does_not_know_are_noted_once_with_settings_that_help(own, mmrl):
    rows = by_key(mmrl("check", "--dataset", "pets", "--dataset", "objects", "--json"))
    [note] = [note for note in rows["pets"]["notes"] if "photographs" in note]
    assert "knows no photographs" in note and rows["objects"]["notes"] == []
    assert f"pets: note: {note}\n" in mmrl("check", "--dataset", "pets")
    assert f"data/pets/pool: {note}\n" in mmrl("prepare", "--dataset", "pets")
    assert note not in mmrl("prepare", "--dataset", "pets", "--shots", "1", "--seed", "1")  # it would be told each seed
    write_params(own, data={"own": {"pets": {"images": "pets"}}}, **yaml.safe_load(note.split("`")[1]))
    assert "knows no photographs" not in mmrl("check", "--dataset", "pets")


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
