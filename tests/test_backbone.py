"""Real CLIP weights: which activation they need, OpenAI's own file format, and what is said when they do not fit."""

import json
import pickle
import zipfile

import open_clip
import pytest
import torch
from open_clip.model import convert_weights_to_fp16
from open_clip.transformer import QuickGELU

from mmrl_core.backbone import Backbone, load_backbone, new_clip, tokenizer_for
from mmrl_core.errors import UserError
from mmrl_core.files import sha256_file
from mmrl_core.pretrained import TESTED

NAME = "mmrl-test-ViT"
SHAPE = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}


@pytest.fixture(scope="module", autouse=True)
def small_model(tmp_path_factory):
    """A name that open_clip builds a small CLIP for, with plain GELU as its ViT-B-16 has."""
    folder = tmp_path_factory.mktemp("configs")
    (folder / f"{NAME}.json").write_text(json.dumps(SHAPE))
    (folder / f"{NAME}-quickgelu.json").write_text(json.dumps({**SHAPE, "quick_gelu": True}))
    open_clip.add_model_config(folder)


@pytest.fixture(scope="module")
def original():
    """Random weights, with hidden units far enough from zero that the two activations differ."""
    torch.manual_seed(0)
    clip = new_clip({**SHAPE, "quick_gelu": True}).eval()
    for blocks in (clip.visual.transformer.resblocks, clip.transformer.resblocks):
        for block in blocks:
            block.mlp.c_fc.weight.data *= 2
            block.mlp.c_proj.weight.data *= 40
    return clip


@pytest.fixture(scope="module")
def openai_file(original, tmp_path_factory):
    """A TorchScript archive in half precision with OpenAI's three extra buffers, as OpenAI publishes its models."""
    clip = new_clip({**SHAPE, "quick_gelu": True}).eval()
    clip.load_state_dict(original.state_dict())
    for key, value in (("input_resolution", 32), ("context_length", 77), ("vocab_size", 49408)):
        clip.__dict__.pop(key, None)  # open_clip keeps some of them as plain numbers
        clip.register_buffer(key, torch.tensor(value))
    mask = clip.attn_mask
    del clip.attn_mask  # a buffer here, a plain tensor in OpenAI's code: tracing would save the buffer
    clip.attn_mask = mask.half()
    convert_weights_to_fp16(clip)
    inputs = (torch.zeros(1, 3, 32, 32, dtype=torch.half), torch.zeros(1, 77, dtype=torch.long))
    traced = torch.jit.trace_module(clip.half(), {"forward": inputs})
    path = tmp_path_factory.mktemp("weights") / "small.pt"
    traced.save(path)
    return path


def features(backbone: Backbone) -> torch.Tensor:
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return torch.cat([backbone.encode_image(images), backbone.encode_text(["cat", "dog"], "a photo of a {}.")])


def is_quick(clip) -> bool:
    return any(isinstance(module, QuickGELU) for module in clip.modules())


def test_openais_own_format_loads_with_quickgelu_whatever_the_name_says(original, openai_file):
    with zipfile.ZipFile(openai_file) as archive:
        assert any(name.endswith("constants.pkl") for name in archive.namelist())
    expected = features(Backbone.from_clip(original, name=NAME, tokenizer=tokenizer_for(NAME)))
    plain = new_clip(SHAPE)
    plain.load_state_dict(original.state_dict())
    gap = (features(Backbone.from_clip(plain.eval(), name=NAME, tokenizer=tokenizer_for(NAME))) - expected).abs().max()
    for name in (NAME, f"{NAME}-quickgelu"):
        backbone = load_backbone(name, str(openai_file))
        assert is_quick(backbone.clip) and next(backbone.clip.parameters()).dtype == torch.float32
        # Half precision rounds; the other activation would be told apart.
        assert (features(backbone) - expected).abs().max() < gap / 4


def test_openais_state_dict_without_the_archive_loads_the_same(original, openai_file, tmp_path):
    state = torch.jit.load(openai_file).state_dict()
    torch.save(dict(state), tmp_path / "state.pt")
    first, second = load_backbone(NAME, str(openai_file)), load_backbone(NAME, str(tmp_path / "state.pt"))
    assert first.weights_sha256 == second.weights_sha256 and is_quick(second.clip)


def test_any_other_file_gets_the_activation_of_the_models_name(original, tmp_path):
    torch.save(original.state_dict(), tmp_path / "plain.pt")
    plain = load_backbone(NAME, str(tmp_path / "plain.pt"))
    quick = load_backbone(f"{NAME}-quickgelu", str(tmp_path / "plain.pt"))
    assert not is_quick(plain.clip) and is_quick(quick.clip)
    assert plain.weights_file_sha256 == sha256_file(tmp_path / "plain.pt")
    assert load_backbone(NAME, "random").weights_file_sha256 is None


@pytest.mark.parametrize(("name", "tag"), TESTED)
def test_every_tested_model_has_towers_of_the_method_and_the_activation_of_its_weights(name, tag):
    assert tag in open_clip.list_pretrained_tags_by_model(name)
    quick = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"))
    assert quick is (tag == "openai")
    with torch.device("meta"):
        clip = open_clip.create_model(name, pretrained=None, device="meta", force_quick_gelu=quick)
        backbone = Backbone.from_clip(clip, name=name)
    assert is_quick(clip) is quick and backbone.depth == 12 and backbone.image_size == 224


def test_weights_trained_without_quickgelu_are_refused_by_a_model_that_has_it(monkeypatch):
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda name: ["laion2b_s34b_b88k"])
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: {"hf_hub": "x"})
    with pytest.raises(UserError, match="trained with GELU, but ViT-B-16-quickgelu has QuickGELU; use ViT-B-16"):
        load_backbone("ViT-B-16-quickgelu", "laion2b_s34b_b88k")


def test_a_file_that_bears_a_published_name_must_be_that_file(openai_file, tmp_path):
    path = tmp_path / "ViT-B-16.pt"
    path.write_bytes(openai_file.read_bytes())
    with pytest.raises(UserError, match=r"is not the ViT-B-16\.pt that OpenAI published .*not 5806e77cd80f"):
        load_backbone(NAME, str(path))


def test_a_pickle_is_never_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    path = tmp_path / "weights.pt"
    path.write_bytes(pickle.dumps({"input_resolution": Bomb()}))
    with pytest.raises(UserError, match="does not load into"):
        load_backbone(NAME, str(path))
    assert not (tmp_path / "ran").exists()


def test_weights_of_another_shape_are_refused_in_one_line(openai_file):
    with pytest.raises(UserError, match="does not load into ViT-B-32") as caught:
        load_backbone("ViT-B-32", str(openai_file))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_tag_without_a_network_says_that_a_file_will_do(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(UserError, match="'laion2b_s34b_b79k' does not load .*without a network give a file") as caught:
        load_backbone("ViT-B-32", "laion2b_s34b_b79k")
    assert "\n" not in str(caught.value)
