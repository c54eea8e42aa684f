"""How weights want images prepared: from a tag, a known file, or a configuration beside the file."""

import hashlib
import json

import open_clip
import pytest
import torch

from mmrl_core.clip.backbone import OPENAI_MEAN, OPENAI_STD, Backbone, load_backbone, new_clip
from mmrl_core.clip.weights.preprocessing import CONFIG, KEYS, preprocessing
from mmrl_core.data.views import ViewSettings
from mmrl_core.errors import UserError
from mmrl_core.files import sha256_file
from tests.core.clip.weights.test_pretrained import SHAPE, published

NAME = "mmrl-test-pixels"
ASKED = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "resize_mode": "squash", "interpolation": "bilinear"}
WANTED = ViewSettings(32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "squash", "bilinear")
PLAIN = ViewSettings(32, OPENAI_MEAN, OPENAI_STD, "shortest", "bicubic")


@pytest.fixture(scope="module", autouse=True)
def small_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    (folder / f"{NAME}.json").write_text(json.dumps(SHAPE))
    open_clip.add_model_config(folder)


@pytest.fixture
def file(tmp_path):
    torch.manual_seed(0)
    torch.save(new_clip(SHAPE).state_dict(), tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def write_config(file, **asked) -> None:
    (file.parent / CONFIG).write_text(json.dumps({"model_cfg": SHAPE, "preprocess_cfg": asked}))


def test_every_tag_of_open_clip_is_taken_at_its_word():
    for name, tag in open_clip.list_pretrained():
        known = open_clip.get_pretrained_cfg(name, tag)
        assert preprocessing(known, None, tag) == {key: known[key] for key in KEYS if key in known}
    assert preprocessing(open_clip.get_pretrained_cfg("ViT-H-14", "dfn5b"), None, "")["resize_mode"] == "squash"


def test_views_are_made_as_the_tag_of_the_weights_asks(monkeypatch, file):
    published(monkeypatch, NAME, "squashed", file, **ASKED)
    assert load_backbone(NAME, "squashed").view_settings == WANTED


def test_views_are_made_as_the_tag_of_a_file_of_known_digest_asks(monkeypatch, file):
    write_config(file, resize_mode="longest")  # what is published is known better
    url = f"https://github.com/mlfoundations/open_clip/releases/small-{sha256_file(file)[:8]}.pt"
    published(monkeypatch, "another", "tag", "nowhere", url=url, **ASKED)
    assert load_backbone(NAME, str(file)).view_settings == WANTED


def test_views_are_made_as_a_configuration_beside_the_file_asks(file):
    assert load_backbone(NAME, str(file)).view_settings == PLAIN
    write_config(file, **ASKED, size=32, mode="RGB", fill_color=0)
    assert load_backbone(NAME, str(file)).view_settings == WANTED
    write_config(file, interpolation="random")  # of training; open_clip then tests with bicubic
    assert load_backbone(NAME, str(file)).view_settings == PLAIN


def test_resizing_is_part_of_a_backbones_identity_and_the_default_leaves_it_as_it_was(file):
    plain = load_backbone(NAME, str(file))
    facts = ["GELU", 1, 1e-05, 32, OPENAI_MEAN, OPENAI_STD]
    assert plain.identity == hashlib.sha256(f"{plain.weights_sha256} {facts}".encode()).hexdigest()
    identities = {plain.identity}
    for asked in ({"resize_mode": "squash"}, {"interpolation": "bilinear"}, {"resize_mode": "longest"}):
        write_config(file, **asked)
        identities.add(load_backbone(NAME, str(file)).identity)
    assert len(identities) == 4


@pytest.mark.parametrize(("asked", "problem"), [
    ({"interpolation": "lanczos"}, "interpolation 'lanczos', which is not supported (bicubic, bilinear, random are)"),
    ({"resize_mode": "crop"}, "resize_mode 'crop', which is not supported (shortest, squash, longest are)"),
    ({"resize_mode": ["squash"]}, "resize_mode ['squash'], which is not supported"),
    ({"fill_color": 255}, "fill_color 255, which is not supported (0 are)"),
    ({"mean": [0.5, 0.5]}, "mean is [0.5, 0.5], not three numbers"),
    ({"std": [0.5, 0, 0.5]}, "std is [0.5, 0, 0.5], not three numbers"),
    ({"mean": [float("nan")] * 3}, "mean is [nan, nan, nan], not three numbers"),
    ({"mean": "grey"}, "mean is 'grey', not three numbers"),
])  # fmt: skip
def test_what_views_do_not_do_is_refused_by_name(monkeypatch, file, asked, problem):
    write_config(file, **asked)
    with pytest.raises(UserError) as raised:
        load_backbone(NAME, str(file))
    assert problem in str(raised.value) and CONFIG in str(raised.value)
    published(monkeypatch, NAME, "odd", "nowhere to be fetched from", **asked)
    with pytest.raises(UserError) as raised:
        load_backbone(NAME, "odd")
    assert problem in str(raised.value) and str(raised.value).startswith("backbone.weights odd")


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"preprocess_cfg": 3}', b"\xff", b"[" * 100_000])
def test_a_configuration_that_is_none_is_named_in_one_line(file, content):
    (file.parent / CONFIG).write_bytes(content)
    with pytest.raises(UserError, match=f"{CONFIG}") as raised:
        load_backbone(NAME, str(file))
    assert "\n" not in str(raised.value)


def test_a_model_of_ones_own_is_asked_as_well(file):
    clip = open_clip.create_model(NAME, pretrained=str(file), force_preprocess_cfg=ASKED)
    assert Backbone.from_clip(clip).view_settings == WANTED
    with pytest.raises(UserError, match="backbone custom asks for the interpolation 'hamming', which is not"):
        Backbone.from_clip(open_clip.create_model(NAME, force_preprocess_cfg={"interpolation": "hamming"}))
