"""Checkpoints of transformers: the same features as transformers' own, or one line that says what is the matter."""

import json
import shutil

import pytest
import torch
from torch.nn.functional import normalize

from mmrl_core.clip.backbone import OPENAI_MEAN, Backbone, load_backbone
from mmrl_core.clip.weights.packaged import _filled, describe
from mmrl_core.clip.weights.places import Folder, place_of
from mmrl_core.clip.weights.transformers_config import open_clip_config
from mmrl_core.clip.weights.transformers_images import preprocess_config
from mmrl_core.clip.weights.weight_files import TRANSFORMERS, folders_digest, weight_files
from mmrl_core.data.views import ViewSettings
from mmrl_core.errors import UserError
from mmrl_core.files import sha256_file
from tests.core.clip.weights.checkpoints import (
    change_json,
    clip_model,
    pooled,
    save_clip,
    save_siglip,
    siglip_model,
)

NAMES, TEMPLATE = ["cat", "a long dog"], "a photo of a {}."


@pytest.fixture(scope="module")
def clip():
    return clip_model()


@pytest.fixture(scope="module")
def folder(clip, tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"), clip)


@pytest.fixture
def own(folder, tmp_path):
    """A copy to change."""
    return shutil.copytree(folder, tmp_path / "own")


def gap(backbone, model) -> float:
    """How far features are from transformers' own."""
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    ids = backbone.tokenize(NAMES, TEMPLATE)
    with torch.no_grad():
        theirs = [
            pooled(model.get_image_features(pixel_values=images)),
            pooled(model.get_text_features(input_ids=ids)),
        ]
    ours = backbone.encode_image(images), backbone.encode_text(NAMES, TEMPLATE)
    return max((one - normalize(other)).abs().max().item() for one, other in zip(ours, theirs, strict=True))


def test_a_clip_of_transformers_has_the_features_that_transformers_gives_it(clip, folder):
    backbone = load_backbone(f"local-dir:{folder}")
    assert gap(backbone, clip) < 1e-5
    assert backbone.view_settings == ViewSettings(32, OPENAI_MEAN, backbone.std, "shortest", "bicubic")
    assert backbone.weights_file_sha256 == sha256_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    "changes", [{"hidden_act": "gelu"}, {"hidden_act": "gelu_pytorch_tanh"}, {"layer_norm_eps": 0.1}]
)
def test_activation_and_epsilon_are_those_of_the_configuration(clip, own, tmp_path, changes):
    model = clip_model(**changes)
    save_clip(tmp_path / "other", model)
    backbone = load_backbone(f"local-dir:{tmp_path / 'other'}")
    assert gap(backbone, model) < 1e-5 < 1e-4 < gap(backbone, clip)


def test_shards_and_pickled_tensors_load_as_the_single_file_does(clip, folder, tmp_path):
    whole = load_backbone(f"local-dir:{folder}")
    save_clip(tmp_path / "shards", clip, max_shard_size="200KB")
    assert len(list((tmp_path / "shards").glob("model-*-of-*.safetensors"))) > 2
    save_clip(tmp_path / "pickled", clip)
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save(clip.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    shards, pickled = (load_backbone(f"local-dir:{tmp_path / kind}") for kind in ("shards", "pickled"))
    assert shards.weights_sha256 == pickled.weights_sha256 == whole.weights_sha256
    assert shards.weights_file_sha256 not in (None, whole.weights_file_sha256)
    for backbone in (whole, shards, pickled):
        assert folders_digest(backbone.name) == backbone.weights_file_sha256


def test_no_random_weights_are_needed_from_such_a_folder(folder):
    backbone = load_backbone(f"local-dir:{folder}", "random:3")
    assert backbone.weights_file_sha256 is None and backbone.image_width == 48


def test_a_siglip_of_transformers_has_the_features_that_transformers_gives_it(tmp_path):
    model = siglip_model()
    place = Folder(f"local-dir:{save_siglip(tmp_path, model, max_shard_size='20KB')}")
    described = describe(place)
    backbone = load_backbone(place.name)
    assert gap(backbone, model) < 1e-5
    exact = described._replace(trunk={**described.trunk, "activation": {}})  # as open_clip builds its own SigLIPs
    other = _filled(place.name, exact, weight_files(place, TRANSFORMERS)).eval()
    assert gap(Backbone.from_clip(other, tokenizer=backbone.tokenizer), model) > 1e-5
    half = [0.5, 0.5, 0.5]
    assert described.pixels == {"mean": half, "std": half, "resize_mode": "squash", "interpolation": "bilinear"}
    assert described.config["text_cfg"]["hf_tokenizer_name"] == str(tmp_path)


CUT = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("config.json", "vision_config", lambda old: {**old, "num_attention_heads": 4}),
        ("preprocessor_config.json", "image_mean", lambda old: [0.1, 0.2, 0.3]),
        ("tokenizer.json", "truncation", lambda old: CUT),
    ],
)
def test_what_lies_beside_the_weights_is_part_of_their_digest_and_the_folders_name_is_not(tmp_path, file, key, value):
    first, second = (save_siglip(tmp_path / name, siglip_model()) for name in ("first", "second"))
    expected = load_backbone(f"local-dir:{first}").weights_sha256
    assert load_backbone(f"local-dir:{second}").weights_sha256 == expected
    change_json(second / file, **{key: value(json.loads((second / file).read_text())[key])})
    assert load_backbone(f"local-dir:{second}").weights_sha256 != expected


def test_every_tensor_is_accounted_for(clip, own):
    state = clip.state_dict()
    (own / "model.safetensors").unlink()
    for problem, altered in {
        "has a tensor text_model.extra, which a clip has not": {**state, "text_model.extra": torch.ones(1)},
        "lacks logit_scale": {name: tensor for name, tensor in state.items() if name != "logit_scale"},
        "lacks text_model.encoder.layers.1.self_attn.k_proj.weight": {
            name: tensor
            for name, tensor in state.items()
            if name != "text_model.encoder.layers.1.self_attn.k_proj.weight"
        },
        "is (48, 25), not (48, 24)": {**state, "visual_projection.weight": torch.ones(25, 48)},
    }.items():
        torch.save(altered, own / "pytorch_model.bin")
        with pytest.raises(UserError) as raised:
            load_backbone(f"local-dir:{own}")
        assert problem in str(raised.value), raised.value


def test_numbers_of_positions_that_older_releases_saved_are_passed_over(clip, own):
    (own / "model.safetensors").unlink()
    positions = {f"{tower}_model.embeddings.position_ids": torch.arange(5)[None] for tower in ("text", "vision")}
    torch.save({**clip.state_dict(), **positions}, own / "pytorch_model.bin")
    assert gap(load_backbone(f"local-dir:{own}"), clip) < 1e-5


@pytest.mark.parametrize(("changes", "problem"), [
    ({"model_type": "siglip2"}, "is SigLIP 2 for images of any shape (NaFlex)"),
    ({"model_type": "metaclip_2"}, "is MetaCLIP 2; open_clip has it"),
    ({"model_type": "blip"}, "is a model of the kind 'blip'; only clip and siglip are read"),
    ({"model_type": "clip_vision_model"}, "is an image tower alone"),
    ({"model_type": ["clip"]}, "is a model of the kind"),
    ({"quantization_config": {"bits": 4}}, "is of quantised weights"),
    ({"vision_config": {"hidden_act": "relu"}}, "one tower has quick_gelu, the other not"),
    ({"vision_config": {"image_size": [32, 64]}}, "only square images and patches are read"),
    ({"vision_config": {"hidden_size": -4}}, "vision_config.hidden_size is -4, not a whole number from 1 to"),
    ({"vision_config": {"num_channels": 1}}, "is of images with 1 channels"),
    ({"text_config": 3}, "text_config is no object"),
])  # fmt: skip
def test_what_is_no_clip_that_can_be_built_is_named_before_weights_are_looked_for(own, changes, problem):
    (own / "model.safetensors").unlink()
    change_json(own / "config.json", **changes)
    with pytest.raises(UserError) as raised:
        load_backbone(f"local-dir:{own}")
    assert problem in str(raised.value) and "config.json" in str(raised.value) and "\n" not in str(raised.value)


def test_a_siglip_is_called_what_timm_and_open_clip_call_it():
    import open_clip

    known = [open_clip.get_model_config(name) for name in open_clip.list_models() if "SigLIP" in name]
    sizes = {768: (12, 12, 3072), 1024: (24, 16, 4096), 1152: (27, 16, 4304), 1536: (40, 16, 6144)}
    for config in known:
        name, width = config["vision_cfg"]["timm_model_name"], config["embed_dim"]
        layers, heads, hidden = sizes[width]
        image = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
                 "intermediate_size": hidden, "image_size": config["vision_cfg"]["image_size"],
                 "patch_size": int(name.split("patch")[1].split("_")[0])}  # fmt: skip
        found = open_clip_config({"model_type": "siglip", "vision_config": image}, "config.json")
        assert found["vision_cfg"] == config["vision_cfg"]
    assert len(known) > 20


@pytest.mark.parametrize(("stated", "mode"), [
    ({"size": 224, "crop_size": 224}, "shortest"),  # of OpenAI's own repositories
    ({"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}, "shortest"),
    ({"size": {"height": 224, "width": 224}, "do_center_crop": None, "do_resize": None}, "squash"),
    ({"image_processor": {"size": {"height": 224, "width": 224}, "do_center_crop": False}}, "squash"),
    (None, "shortest"),
])  # fmt: skip
def test_resizing_is_said_in_open_clips_words(stated, mode):
    assert preprocess_config(stated, "clip", 224, "")["resize_mode"] == mode


@pytest.mark.parametrize("stated", [
    {"size": {"shortest_edge": 256}}, {"size": {"longest_edge": 224}}, {"do_center_crop": False, "size": {"a": 1}},
    {"size": "224"}, {"do_resize": False}, {"do_normalize": False}, {"rescale_factor": 1}, {"image_processor": 3},
])  # fmt: skip
def test_what_views_do_not_do_is_refused(stated):
    with pytest.raises(UserError, match="^there: "):
        preprocess_config(stated, "clip", 224, "there")


def test_a_list_of_shards_names_no_file_elsewhere(clip, tmp_path):
    save_clip(tmp_path, clip, max_shard_size="200KB")
    index = tmp_path / "model.safetensors.index.json"
    listed = json.loads(index.read_text())["weight_map"]
    for elsewhere in ("../model.safetensors", "/etc/passwd", "a/b.safetensors", "", 3, ".."):
        change_json(index, weight_map={**listed, "logit_scale": elsewhere})
        with pytest.raises(UserError, match="which is no file beside it"):
            load_backbone(f"local-dir:{tmp_path}")
    change_json(index, weight_map={**listed, "logit_scale": "model-9.safetensors"})
    with pytest.raises(UserError, match=r"the folder has no model-9\.safetensors, which its .*index.json lists"):
        load_backbone(f"local-dir:{tmp_path}")
    assert place_of(f"local-dir:{tmp_path}").file("config.json")
