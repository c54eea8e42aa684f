"""CLIPs in folders that open_clip wrote: what is taken from them, and in which order."""

import json
import shutil

import open_clip
import pytest
import torch
from open_clip.push_to_hf_hub import save_for_hf
from open_clip.tokenizer import HFTokenizer

from mmrl_core.clip.backbone import load_backbone, new_clip
from mmrl_core.clip.prompts import context_length
from mmrl_core.clip.weights.names import is_accepted
from mmrl_core.clip.weights.pretrained import load_clip
from mmrl_core.data.views import ViewSettings
from mmrl_core.errors import UserError
from mmrl_core.files import sha256_file
from mmrl_core.method.adapter import backbone_of, save_adapter
from tests.core.clip.weights.checkpoints import change_json, save_tokenizer
from tests.core.clip.weights.test_pretrained import SHAPE
from tests.support.small import small_adapter

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
PREPARED = {"mean": MEAN, "std": STD, "interpolation": "bilinear", "resize_mode": "squash"}


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    clip = new_clip({**SHAPE, "quick_gelu": True}).eval()
    open_clip.model.set_model_preprocess_cfg(clip, PREPARED)
    return clip


@pytest.fixture(scope="module")
def folder(clip, tmp_path_factory):
    """As `open_clip.push_to_hf_hub` fills it before it is uploaded."""
    folder, words = tmp_path_factory.mktemp("own"), tmp_path_factory.mktemp("words")
    save_tokenizer(words)
    save_for_hf(clip, HFTokenizer(str(words)), {**SHAPE, "quick_gelu": True}, folder)
    return folder


@pytest.fixture
def own(folder, tmp_path):
    """A copy to change."""
    return shutil.copytree(folder, tmp_path / "own")


def test_all_that_open_clip_saved_is_taken_from_the_folder(clip, folder):
    backbone = load_backbone(f"local-dir:{folder}")
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = clip.encode_image(images, normalize=True)
        texts = clip.encode_text(backbone.tokenize(["cat", "dog"], "a {}."), normalize=True)
    assert (backbone.encode_image(images) - theirs).abs().max() < 1e-5
    assert (backbone.encode_text(["cat", "dog"], "a {}.") - texts).abs().max() < 1e-5
    assert backbone.view_settings == ViewSettings(32, MEAN, STD, "squash", "bilinear")
    assert backbone.weights_file_sha256 == sha256_file(folder / "open_clip_model.safetensors")


def test_a_file_of_another_name_will_do_if_it_is_the_only_one(own):
    whole = load_backbone(f"local-dir:{own}").weights_sha256
    (own / "open_clip_model.safetensors").unlink()
    assert load_backbone(f"local-dir:{own}").weights_sha256 == whole  # of the .bin
    (own / "open_clip_pytorch_model.bin").rename(own / "epoch_3.pt")
    assert load_backbone(f"local-dir:{own}").weights_sha256 == whole
    shutil.copy(own / "epoch_3.pt", own / "epoch_4.pt")
    with pytest.raises(UserError, match=r"has several files of weights \(epoch_3.pt, epoch_4.pt\), none of them"):
        load_clip(f"local-dir:{own}", None)
    for path in own.glob("epoch_*"):
        path.unlink()
    with pytest.raises(UserError, match=r"the folder has no weights \(open_clip_model\.safetensors"):
        load_clip(f"local-dir:{own}", None)


def test_weights_of_its_own_leave_no_choice_but_random_ones(folder, own):
    with pytest.raises(UserError, match="backbone.weights is 'openai', but local-dir:.* comes with its own; leave it"):
        load_clip(f"local-dir:{folder}", "openai")
    first, second, other = (
        load_backbone(f"local-dir:{folder}", weights).weights_sha256 for weights in ("random", "random:0", "random:1")
    )
    assert first == second != other
    change_json(own / "open_clip_config.json", model_cfg={**SHAPE, "new": 1})
    with pytest.raises(UserError, match="cannot be built: .*unexpected keyword argument 'new'"):
        load_clip(f"local-dir:{own}", "random")
    with pytest.raises(UserError, match="the seed after `random:` must be"):
        load_clip(f"local-dir:{folder}", "random:x")


@pytest.mark.parametrize(("changes", "problem"), [
    ({"vision_cfg": {"timm_model_name": "resnet50"}}, "its image tower is a ResNet"),
    ({"vision_cfg": {**SHAPE["vision_cfg"], "width": "wide"}}, "vision_cfg.width: Input should be a valid integer"),
    ({"vision_cfg": {**SHAPE["vision_cfg"], "new": 1}}, "unexpected keyword argument 'new'; it is of another release"),
    ({"text_cfg": None}, "has no model_cfg with vision_cfg and text_cfg"),
    ({"text_cfg": {**SHAPE["text_cfg"], "hf_model_name": "org/own"}}, "names the tower 'org/own', which no model of"),
    ({"vision_cfg": {"timm_model_name": "local-dir:/x"}}, "names the tower 'local-dir:/x', which no model of"),
    ({"embed_dim": None}, "embed_dim is no whole number"),
])  # fmt: skip
def test_a_configuration_is_judged_before_weights_are_looked_for(own, changes, problem):
    for path in own.glob("open_clip_*model.*"):
        path.unlink()
    change_json(own / "open_clip_config.json", model_cfg={**SHAPE, **changes})
    with pytest.raises(UserError) as raised:
        load_clip(f"local-dir:{own}", None)
    assert problem in str(raised.value) and "\n" not in str(raised.value)


def test_weights_of_another_configuration_are_refused_with_both_sizes(own):
    change_json(own / "open_clip_config.json", model_cfg={**SHAPE, "embed_dim": 32})
    with pytest.raises(UserError, match="their embedding width is 64, not 32; they are not the weights of the conf"):
        load_clip(f"local-dir:{own}", None)
    change_json(own / "open_clip_config.json", model_cfg={**SHAPE, "text_cfg": {**SHAPE["text_cfg"], "mlp_ratio": 1e7}})
    with pytest.raises(UserError, match="do not load: .* is .*256.*, not "):  # and no memory is taken for it
        load_clip(f"local-dir:{own}", None)


@pytest.mark.parametrize(("name", "hint"), [
    ("hf_hub:laion/a-clip", "did you mean hf-hub:laion/a-clip?"),
    ("hf://laion/a-clip", "did you mean hf-hub:laion/a-clip?"),
    ("https://huggingface.co/laion/a-clip", "did you mean hf-hub:laion/a-clip?"),
    ("local_dir:/weights", "did you mean local-dir:/weights?"),
    ("openai/clip-vit-base-patch32", "did you mean hf-hub:openai/clip-vit-base-patch32?"),
    ("Local-Dir:/weights", "did you mean local-dir:/weights?"),
    ("ViT-B/16", "did you mean ViT-B-16"),
])  # fmt: skip
def test_a_name_that_is_written_otherwise_is_told_how_it_is_written(name, hint):
    with pytest.raises(UserError) as raised:
        load_clip(name, None)
    assert hint in str(raised.value)


@pytest.mark.parametrize("name", ["", "~nobody-is-called-so", "~nobody-is-called-so/clip"])
def test_what_is_no_folder_is_not_taken_for_one(name):
    with pytest.raises(UserError) as raised:
        load_clip(name, None)
    assert "local-dir" not in str(raised.value)
    assert context_length(f"local-dir:{name}/x") is None


def test_a_folders_own_path_is_told_how_it_is_written(folder):
    with pytest.raises(UserError) as raised:
        load_clip(str(folder), None)
    assert f"did you mean local-dir:{folder}?" in str(raised.value)


def test_a_place_that_is_given_as_weights_is_told_where_it_belongs(folder):
    for weights, name in ((str(folder), f"local-dir:{folder}"), ("hf-hub:org/name", "hf-hub:org/name")):
        with pytest.raises(UserError, match=f"has its own configuration; set backbone.name to {name} alone"):
            load_clip("ViT-B-16", weights)


def test_only_models_that_can_be_adapted_are_suggested():
    for name in ("RN51", "convnext-base", "coca-ViT-B32", "vitb16", "EVA2-B-16"):
        with pytest.raises(UserError) as raised:
            load_clip(name, None)
        suggested = str(raised.value).partition("did you mean ")[2].rstrip("?").split(" or ")
        assert all(is_accepted(one) for one in suggested if one), suggested
    assert is_accepted("ViT-B-16") and not is_accepted("RN50")


def test_no_folder_and_no_repository_is_said_before_anything_is_fetched(tmp_path):
    with pytest.raises(UserError, match="there is no folder .*nowhere; correct the path"):
        load_clip(f"local-dir:{tmp_path / 'nowhere'}", None)
    with pytest.raises(UserError, match="neither open_clip_config.json nor a config.json of transformers; name a"):
        load_clip(f"local-dir:{tmp_path}", None)
    for name in ("hf-hub:", "hf-hub:clip", "hf-hub:../..//x", "hf-hub:a/b/c"):
        with pytest.raises(UserError, match="names no repository; write hf-hub:org/name"):
            load_clip(name, None)


def test_the_configuration_of_a_folder_is_no_json(tmp_path):
    (tmp_path / "open_clip_config.json").write_text("{")
    with pytest.raises(UserError, match=r"open_clip_config\.json cannot be read as JSON"):
        load_clip(f"local-dir:{tmp_path}", None)
    (tmp_path / "open_clip_config.json").write_text(json.dumps([1]))
    with pytest.raises(UserError, match="holds no JSON object"):
        load_clip(f"local-dir:{tmp_path}", None)


def test_an_adapter_whose_backbone_was_moved_says_what_was_there_and_finds_it_where_it_is(own, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    backbone = load_backbone(f"local-dir:{own.name}")
    content = {"class_names": ["cat", "dog"], "template": "a {}."}
    card = save_adapter(tmp_path / "adapter", small_adapter(backbone), backbone, content)
    own.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError) as raised:
        backbone_of(card)
    told = f"the adapter was trained on backbone local-dir:own, and {own} is no folder; put that CLIP, or a link to it"
    assert str(raised.value) == f"{told}, there, or run this in the folder where it is"
    own.symlink_to("elsewhere")
    assert backbone_of(card).weights_sha256 == backbone.weights_sha256
