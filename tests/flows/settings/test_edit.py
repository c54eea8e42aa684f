"""Settings given to a flow end up in the settings file."""

import shutil

import pytest

from flows.settings.edit import edit_params
from flows.settings.params import load_params
from mmrl_core.errors import UserError
from tests.support.workspace import ROOT


@pytest.fixture
def path(tmp_path):
    return shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")


def test_only_the_named_values_change_and_comments_stay(path):
    before = path.read_text().splitlines()
    edit_params(path, ["data.protocol=few-shot", "shots=[1, 2]", "train.lr=0.002"])
    changed = [line for line in path.read_text().splitlines() if line not in before]
    values = [line.partition("#")[0].rstrip() for line in changed]
    assert values == ["shots: [1, 2]", "  protocol: few-shot", "  lr: 0.002"]
    assert "# or few-shot" in changed[1]
    found = load_params(path)
    assert (found.data.protocol, found.shots, found.train.lr) == ("few-shot", [1, 2], 0.002)


def test_a_missing_section_is_added(path):
    edit_params(path, ["data.own.birds.images=/pictures"])
    assert load_params(path).data.own["birds"].images == "/pictures"


@pytest.mark.parametrize("override", ["data.protocol=cross-dataset", "train.lr=fast", "trian.lr=1", "novalue"])
def test_settings_that_would_be_wrong_change_nothing(path, override):
    before = path.read_text()
    with pytest.raises(UserError):
        edit_params(path, ["seeds=[5]", override])
    assert path.read_text() == before
