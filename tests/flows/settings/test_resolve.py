"""What settings say of a backbone; how values are settled is in tests/core/test_config.py."""

import pytest

from flows.settings.params import load_params
from flows.settings.resolve import photograph_notes, resolve
from mmrl_core.errors import UserError
from tests.support.workspace import write_params


@pytest.mark.parametrize(("changes", "named"), [
    ({"targets": ["oxford_pets", "letters"]}, "caltech101, oxford_pets: the backbone tiny was trained"),
    ({"datasets": ["digits", "birds"]}, "birds: the backbone tiny was trained"),
    ({"datasets": ["signboards"], "targets": ["objects"]}, None),
    ({"backbone": {"name": "ViT-B-32", "weights": "openai"}}, None),
])  # fmt: skip
def test_one_line_names_all_datasets_whose_photographs_the_backbone_does_not_know(tmp_path, changes, named):
    data = {"protocol": "cross-dataset" if "targets" in changes else "few-shot", "own": {"birds": {"images": "birds"}}}
    write_params(tmp_path, **{"datasets": ["digits", "caltech101"], "data": data, **changes})
    notes = photograph_notes(load_params(tmp_path / "params.yaml"))
    assert [note.startswith(named or "none") for note in notes] == ([True] if named else [])


@pytest.mark.parametrize(("dataset", "flips", "expected", "source"), [
    ("objects", True, "crop+flip", "preset published"), ("digits", True, "crop", "preset published"),
    ("letters", True, "crop", "preset published"), ("signboards", True, "crop", "preset published"),
    ("birds", True, "crop+flip", "preset published"), ("birds", False, "crop", "data.own.birds.flips"),
])  # fmt: skip
def test_images_that_must_not_be_mirrored_are_not(tmp_path, dataset, flips, expected, source):
    own = {"birds": {"images": "birds", "flips": flips}}
    write_params(tmp_path, datasets=[dataset], data={"own": own})
    settings = resolve(load_params(tmp_path / "params.yaml"), dataset, "mmrl", 1, 6)
    assert (settings.train.augmentation, settings.train.views) == (expected, "fast")
    assert settings.sources["train.augmentation"] == source
    chosen = resolve(load_params(tmp_path / "params.yaml"), dataset, "mmrl", 1, 6, {"train.augmentation": "none"})
    assert (chosen.train.augmentation, chosen.sources["train.augmentation"]) == ("none", "search")


@pytest.mark.parametrize(("space", "message"), [
    ({"uniform": [0, 1]}, "train.augmentation takes words"), ({"choice": ["crop", "mirror"]}, "mirror"),
    ({"choice": ["none", "crop"]}, None),
])  # fmt: skip
def test_the_search_may_choose_the_augmentation(tmp_path, space, message):
    write_params(tmp_path, search={"space": {"train.augmentation": space}})
    if message is None:
        assert load_params(tmp_path / "params.yaml").search.space["train.augmentation"] == space
    else:
        with pytest.raises(UserError, match=message):
            load_params(tmp_path / "params.yaml")


def test_a_device_is_one_of_four(tmp_path):
    write_params(tmp_path, device="cuda")
    assert load_params(tmp_path / "params.yaml").device == "cuda"
    with pytest.raises(UserError, match="device is 'tpu'"):
        load_params(tmp_path / "params.yaml", ["device=tpu"])
