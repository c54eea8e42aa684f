"""Real CLIP weights: which activation they need, OpenAI's own file format, and what is said when they do not fit."""

import json
import pickle
import zipfile

import huggingface_hub
import open_clip
import pytest
import torch
from open_clip.model import convert_weights_to_fp16
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file

from mmrl_core.clip.backbone import OPENAI_MEAN, TESTED, Backbone, load_backbone, new_clip, tokenizer_for
from mmrl_core.clip.weights import pretrained
from mmrl_core.errors import UserError
from mmrl_core.files import sha256_file

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


def test_any_other_file_gets_the_activation_of_the_models_name(plain_file):
    plain, quick = load_backbone(NAME, str(plain_file)), load_backbone(f"{NAME}-quickgelu", str(plain_file))
    assert not is_quick(plain.clip) and is_quick(quick.clip)
    assert plain.weights_file_sha256 == sha256_file(plain_file)
    assert load_backbone(NAME, "random").weights_file_sha256 is None


def published(monkeypatch, name, tag, path, **facts):
    """Let open_clip find a tag's weights in a file, and know those facts of it."""
    known = {"url": "", "file": str(path), **facts}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, {tag: known})


@pytest.fixture
def plain_file(original, tmp_path):
    torch.save(original.state_dict(), tmp_path / "plain.pt")
    return tmp_path / "plain.pt"


@pytest.mark.parametrize(("name", "tag"), TESTED)
def test_every_tested_model_has_towers_of_the_method_and_the_activation_of_its_weights(
    monkeypatch, tmp_path, name, tag
):
    assert tag in open_clip.list_pretrained_tags_by_model(name)
    quick = tag == "openai" or (name, tag) == ("ViT-B-32", "laion400m_e32")
    torch.save({"visual.proj": torch.zeros(1), "logit_scale": torch.zeros(())}, tmp_path / "weights.pt")
    monkeypatch.setattr(pretrained, "_fetched", lambda *_: tmp_path / "weights.pt")
    monkeypatch.setattr(pretrained, "fill", lambda *_: None)  # hundreds of megabytes, on no device
    with torch.device("meta"):
        backbone = load_backbone(name, tag, device="meta")
    assert is_quick(backbone.clip) is quick
    assert (backbone.depth, backbone.image_size) == (12, 224)
    inception = (name, tag) == ("ViT-L-14", "laion2b_s32b_b82k")
    assert backbone.mean == ((0.5, 0.5, 0.5) if inception else OPENAI_MEAN)


def test_a_tags_weights_get_their_activation_and_normalisation(monkeypatch, plain_file):
    published(monkeypatch, NAME, "quick", plain_file, quick_gelu=True, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    backbone = load_backbone(NAME, "quick")
    assert is_quick(backbone.clip) and backbone.weights_file_sha256 == sha256_file(plain_file)
    assert (backbone.mean, backbone.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_weights_trained_without_quickgelu_are_refused_by_a_model_that_has_it():
    with pytest.raises(UserError, match="trained with GELU, but ViT-B-16-quickgelu has QuickGELU; use ViT-B-16$"):
        load_backbone("ViT-B-16-quickgelu", "laion2b_s34b_b88k")


@pytest.mark.parametrize("quick", [True, False])
def test_a_file_whose_digest_is_published_gets_the_activation_of_its_tag(monkeypatch, plain_file, quick):
    url = f"https://github.com/mlfoundations/open_clip/releases/small-{sha256_file(plain_file)[:8]}.pt"
    published(monkeypatch, "another", "tag", "nowhere", url=url, quick_gelu=quick)
    assert is_quick(load_backbone(NAME, str(plain_file)).clip) is quick
    if not quick:
        with pytest.raises(UserError, match=rf"plain.pt was trained with GELU, but .* use {NAME}$"):
            load_backbone(f"{NAME}-quickgelu", str(plain_file))


@pytest.mark.parametrize("name", ["ViT-B-16.pt", "vit_b_32-quickgelu-laion400m_e32-46683a32.pt"])
def test_a_file_that_bears_a_published_name_must_be_that_file(plain_file, name):
    path = plain_file.rename(plain_file.with_name(name))
    with pytest.raises(UserError, match=f"{name} are not the file that their name .* not (5806e77cd80f|46683a32); "):
        load_backbone(NAME, str(path))


def test_a_file_in_a_folder_or_cache_that_names_its_digest_must_have_it(plain_file, tmp_path):
    good, bad = sha256_file(plain_file), 64 * "0"
    for digest in (good, bad):
        (tmp_path / digest).mkdir()
        (tmp_path / digest / "weights.pt").write_bytes(plain_file.read_bytes())
        (tmp_path / "blobs").mkdir(exist_ok=True)
        (tmp_path / "blobs" / digest).write_bytes(plain_file.read_bytes())
        (tmp_path / f"link {digest}.pt").symlink_to(tmp_path / "blobs" / digest)  # as Hugging Face's cache has them
    for path in (f"{good}/weights.pt", f"link {good}.pt"):
        assert load_backbone(NAME, str(tmp_path / path)).weights_file_sha256 == good
    for path in (f"{bad}/weights.pt", f"link {bad}.pt"):
        with pytest.raises(UserError, match="not 000000000000"):
            load_backbone(NAME, str(tmp_path / path))


def test_a_pickle_is_never_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    path = tmp_path / "weights.pt"
    path.write_bytes(pickle.dumps({"input_resolution": Bomb()}))
    with pytest.raises(UserError, match="does not load into .*: it is damaged or holds more than tensors"):
        load_backbone(NAME, str(path))
    assert not (tmp_path / "ran").exists()


def test_a_torchscript_archive_of_another_make_says_what_to_save_instead(tmp_path):
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(tmp_path / "linear.pt")
    with pytest.raises(UserError, match="not of an OpenAI model; save its state dict instead"):
        load_backbone(NAME, str(tmp_path / "linear.pt"))


def test_weights_of_another_shape_are_refused_in_one_line(openai_file):
    with pytest.raises(UserError, match="does not load into ViT-B-32") as caught:
        load_backbone("ViT-B-32", str(openai_file))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


OTHER_SIZES = {
    "image size is 64, not 32; use backbone.name mmrl-test-ViT-64$": {"vision_cfg": {"image_size": 64}},
    f"context length is 32, not 77; use weights of {NAME}$": {"text_cfg": {"context_length": 32}},
    "vocabulary is 500, not 49408; ": {"text_cfg": {"vocab_size": 500}},
    "patch size is 8, not 16; ": {"vision_cfg": {"patch_size": 8}},
    "embedding width is 32, not 64; ": {"embed_dim": 32},
    "number of image layers is 3, not 2; ": {"vision_cfg": {"layers": 3}},
    "image size is 64, not 32, their context length is 32, not 77; ": {
        "vision_cfg": {"image_size": 64}, "text_cfg": {"context_length": 32},
    },
}  # fmt: skip


def of_other_sizes(changes: dict) -> dict[str, torch.Tensor]:
    shape = {key: {**value, **changes.get(key, {})} if isinstance(value, dict) else changes.get(key, value)
             for key, value in SHAPE.items()}  # fmt: skip
    return new_clip(shape).state_dict()


@pytest.mark.parametrize(("message", "changes"), OTHER_SIZES.items())
def test_weights_of_another_size_are_refused_with_both_sizes_and_the_model_that_they_fit(tmp_path, message, changes):
    (tmp_path / "mmrl-test-ViT-64.json").write_text(
        json.dumps({**SHAPE, "vision_cfg": {**SHAPE["vision_cfg"], "image_size": 64}})
    )
    open_clip.add_model_config(tmp_path)
    torch.save(of_other_sizes(changes), tmp_path / "weights.pt")
    with pytest.raises(UserError, match=f"weights.pt' does not load into {NAME}: their {message}"):
        load_backbone(NAME, str(tmp_path / "weights.pt"))


@pytest.mark.parametrize("kind", ["safetensors", "a training checkpoint", "OpenAI's", "a tag"])
def test_weights_of_another_size_are_refused_in_whatever_form_they_come(monkeypatch, tmp_path, kind):
    state, path = of_other_sizes({"vision_cfg": {"image_size": 64}}), tmp_path / "weights.pt"
    if kind == "safetensors":
        path = tmp_path / "weights.safetensors"
        save_file(state, path)
    elif kind == "a training checkpoint":
        torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    else:
        extra = {"input_resolution": 64, "context_length": 77, "vocab_size": 49408} if kind == "OpenAI's" else {}
        torch.save({**state, **{key: torch.tensor(value) for key, value in extra.items()}}, path)
        published(monkeypatch, NAME, "other", path)
    with pytest.raises(UserError, match="does not load into .*: their image size is 64, not 32; "):
        load_backbone(NAME, "other" if kind == "a tag" else str(path))


@pytest.mark.parametrize(
    ("name", "tag", "problem"),
    [
        ("RN50", "openai", "its image tower is a ResNet: convolutions have no sequence"),
        ("MobileCLIP2-S0", "dfndr2b", "its image tower is a FastViT: convolutions"),
        (
            "swin_base_patch4_window7_224",
            None,
            "its image tower is timm's swin_base_patch4_window7_224",
        ),
        ("convnext_base", "laion400m_s13b_b51k", "its image tower is a ConvNeXt: convolutions"),
        ("mmrl-test-wide", None, "its images are not square"),
    ],
)
def test_a_model_that_the_method_does_not_cover_is_refused_before_its_weights_are_fetched_or_read(
    tmp_path, name, tag, problem
):
    wide = {**SHAPE, "vision_cfg": {**SHAPE["vision_cfg"], "image_size": [32, 64]}}
    (tmp_path / "mmrl-test-wide.json").write_text(json.dumps(wide))
    open_clip.add_model_config(tmp_path)
    assert tag is None or tag in open_clip.list_pretrained_tags_by_model(name)
    for weights in (tag, "no-such-file.pt"):
        with pytest.raises(UserError, match=f"backbone {name} is not supported: {problem}"):
            load_backbone(name, weights)


def test_a_tag_without_a_network_says_that_a_file_will_do(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="'laion2b_s34b_b79k' of ViT-B-32 could not be .* weights file") as caught:
        load_backbone("ViT-B-32", "laion2b_s34b_b79k")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_weights_that_are_taken_from_read_only_arrays_are_these_arrays_and_give_the_same_features():
    backbone = load_backbone("tiny")
    images, names = torch.zeros(2, 3, backbone.image_size, backbone.image_size), ["cat", "dog"]
    before = backbone.encode_image(images), backbone.encode_text(names, "a {}.")
    arrays = {name: array.copy() for name, array in backbone.arrays().items()}
    for array in arrays.values():
        array.flags.writeable = False
    backbone.adopt(arrays)
    weight = backbone.image_blocks[0].mlp[0].weight
    assert weight.data_ptr() in {array.ctypes.data for array in arrays.values()}
    after = backbone.encode_image(images), backbone.encode_text(names, "a {}.")
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_a_name_in_other_letters_is_told_the_model_that_has_it():
    with pytest.raises(UserError, match=r"'vit-b-16' is not a model of open_clip; did you mean ViT-B-16 or"):
        load_backbone("vit-b-16", "random")
