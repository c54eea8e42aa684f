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


LAYOUT = """# top\r
datasets: ['digits']      # quoted
methods:   # a list in lines
- mmrl
- mmrlpp   # the second

# about shots
shots: [ 16 ]
seeds: [1]
train:
    lr:   1e-3    # spelled so


    epochs: null
registry: {alias: "champion",  margin: 0.0}   # in one line
data:
    own: {}
"""


@pytest.mark.parametrize(
    ("override", "old", "new"),
    [
        ("train.lr=0.5", "lr:   1e-3 ", "lr:   0.5 "),
        ("train.lr=0.001", "", ""),
        ("train.epochs=3", "epochs: null", "epochs: 3"),
        ("train.batch_size=2", "    epochs: null\n", "    epochs: null\n    batch_size: 2\n"),
        ("datasets=[letters]", "['digits'] ", "[letters] "),
        ("methods=[mmrl]", "methods:   # a list in lines\n- mmrl\n- mmrlpp  ", "methods: [mmrl]  # a list in lines  "),
        ("registry.alias=live", '"champion"', "live"),
        ("registry.latency=2", "margin: 0.0}", "margin: 0.0, latency: 2}"),
        ("data.own.birds.images=/a, b", "own: {}", "own: {birds: {images: '/a, b'}}"),
        ("serving.url_prefixes=[https://h/f/]", "    own: {}\n", "    own: {}\nserving: {url_prefixes: ['https://h/f/']}\n"),
        ("search={trials: 3, seed: 1}", "    own: {}\n", "    own: {}\nsearch: {trials: 3, seed: 1}\n"),
        ("backbone.name=\"on\"", "    own: {}\n", "    own: {}\nbackbone: {name: on}\n"),
    ],
)  # fmt: skip
def test_every_byte_that_is_not_concerned_stays(tmp_path, override, old, new):
    path = tmp_path / "params.yaml"
    path.write_bytes(LAYOUT.encode())
    edit_params(path, [override])
    assert path.read_bytes().decode() == LAYOUT.replace(old, new, 1)
    assert load_params(path) == load_params(path, [override])


def test_a_file_whose_last_line_does_not_end_and_one_that_is_a_link_are_edited_in_place(tmp_path):
    path, link = tmp_path / "params.yaml", tmp_path / "link.yaml"
    path.write_text("datasets: [digits]\nmethods: [mmrl]\nshots: [16]\nseeds: [1]")
    link.symlink_to(path)
    edit_params(link, ["train.lr=0.5"])
    assert path.read_text() == "datasets: [digits]\nmethods: [mmrl]\nshots: [16]\nseeds: [1]\ntrain: {lr: 0.5}\n"
    assert link.is_symlink()
