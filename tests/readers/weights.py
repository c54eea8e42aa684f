"""Adapters, weights of backbones, checkpoints, frozen features, releases."""

import contextlib
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from mmrl_core.bundle import check_bundle, write_bundle
from mmrl_core.clip.backbone import Backbone, load_backbone
from mmrl_core.clip.feature_store import FeatureStore
from mmrl_core.clip.towers import Frozen
from mmrl_core.clip.weights.packaged import describe
from mmrl_core.clip.weights.places import place_of, shards_of
from mmrl_core.clip.weights.preprocessing import CONFIG as CONFIGURATION
from mmrl_core.clip.weights.pretrained import load_clip
from mmrl_core.errors import UserError
from mmrl_core.evaluation.abstain import card_threshold
from mmrl_core.files import sha256_file
from mmrl_core.light.predictor import LightPredictor
from mmrl_core.method.adapter import load_adapter, save_adapter
from mmrl_core.method.adapter_card import CARD, FOLDED, TENSORS, CardContent, card_sha256, read_verified_card
from mmrl_core.method.model import AdaptedCLIP
from mmrl_core.method.published_checkpoints import implied_settings, read_published
from mmrl_core.method.shapes import tensor_shapes
from mmrl_core.method.tensor_file import read_tensors
from mmrl_core.training import checkpoints
from tests.readers.damage import Reader, damaged_bytes, damaged_json
from tests.support.alter import sum_again
from tests.support.small import small_kind

ADAPTER = Path(__file__).parents[1] / "golden/registered_before_the_move/model/artifacts/seed1"


def copy_adapter(folder: Path) -> None:
    shutil.copytree(ADAPTER, folder, dirs_exist_ok=True)


@functools.cache
def tiny() -> Backbone:
    return load_backbone("tiny")


def seal_card(folder: Path) -> None:
    """Make the card's digest right, as somebody who alters one on purpose would."""
    try:
        card = json.loads((folder / CARD).read_bytes())
        card["card_sha256"] = card_sha256(card)
        (folder / CARD).write_text(json.dumps(card))
    except (ValueError, TypeError, RecursionError, AttributeError):
        pass  # no card that anybody could seal


def load_sealed(folder: Path) -> None:
    seal_card(folder)
    adapter, card = load_adapter(folder, tiny())
    AdaptedCLIP(tiny(), adapter, card["class_names"], card["template"])
    card_threshold({**card, "abstain": card.get("abstain") or {"confidence": "class_cosine", "threshold": 0.0}})


def load_light_sealed(folder: Path) -> None:
    """By NumPy, with folded.safetensors as it is, and ask it something."""
    with contextlib.suppress(ValueError, TypeError, RecursionError, AttributeError):
        card = json.loads((folder / CARD).read_bytes())
        card["folded_sha256"] = sha256_file(folder / FOLDED)
        (folder / CARD).write_text(json.dumps(card))
    seal_card(folder)
    if light := LightPredictor.load(folder):
        [found] = light.stream([Image.new("RGB", (9, 7))])
        assert found


def make_kind(kind: str) -> Callable[[Path], object]:
    """An adapter with a probe, or a baseline."""
    content: CardContent = {"class_names": ["cat", "dog", "cow"], "template": "a {}."}
    return lambda folder: save_adapter(folder, small_kind(tiny(), kind, 3), tiny(), content)


def read_adapter_tensors(folder: Path) -> None:
    read_tensors(folder / TENSORS, tensor_shapes(load_adapter(ADAPTER, tiny())[0].config, tiny()))


# Weights and checkpoints.


def make_checkpoints(folder: Path) -> None:
    state = {"adapter": {"space": torch.zeros(2, 3)}, "epoch": 1}
    checkpoints.Folder(folder).save(checkpoints.pack(state), 1, 0)


def read_checkpoints(folder: Path) -> None:
    checkpoints.newest(checkpoints.Folder(folder), ("adapter", "epoch"))


def make_published(folder: Path, zipped: bool = True) -> None:
    learner = "representation_learner."
    state = {learner + "compound_rep_tokens": torch.zeros(2, 4), "image_encoder.proj_rep": torch.zeros(4, 4)}
    for letter in "vt":
        for layer in range(2):
            name = f"{learner}compound_rep_tokens_r2{letter}proj.{layer}."
            state |= {name + "weight": torch.zeros(4, 4), name + "bias": torch.zeros(4)}
    content = {"state_dict": state, "epoch": 10}
    torch.save(content, folder / "model.pth.tar", _use_new_zipfile_serialization=zipped)


def read_authors(folder: Path) -> None:
    implied_settings(read_published(folder / "model.pth.tar"), 4)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


SMALL = "readers-small"
CONFIG = {
    "embed_dim": 8,
    "vision_cfg": {"layers": 1, "width": 16, "head_width": 8, "patch_size": 16, "image_size": 16},
    "text_cfg": {"width": 8, "heads": 1, "layers": 1, "vocab_size": 20, "context_length": 4},
}


def know_small(folder: Path) -> None:
    (folder / f"{SMALL}.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder / f"{SMALL}.json")


def make_state_dict(folder: Path) -> None:
    know_small(folder)
    torch.save(open_clip.create_model(SMALL).state_dict(), folder / "weights")


def make_safetensors(folder: Path) -> None:
    know_small(folder)
    state = {name: tensor.contiguous().clone() for name, tensor in open_clip.create_model(SMALL).state_dict().items()}
    safetensors.torch.save_file(state, folder / "weights.safetensors")


def make_torchscript(folder: Path) -> None:
    """Of another make than OpenAI's, which is refused when all of it is read."""
    know_small(folder)
    torch.jit.trace(Block(), torch.zeros(1, 2)).save(folder / "weights")


def weights(name: str = "weights") -> Callable[[Path], object]:
    return lambda folder: load_clip(SMALL, str(folder / name))


def torchscript(folder: Path) -> None:
    """Refused whole and damaged alike."""
    with pytest.raises(UserError, match="does not load"):
        load_clip(SMALL, str(folder / "weights"))


# CLIPs with their configuration.


def make_packaged(folder: Path) -> None:
    make_safetensors(folder)
    (folder / "weights.safetensors").rename(folder / "open_clip_model.safetensors")
    pixels = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    (folder / CONFIGURATION).write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": pixels}))


def make_transformers(folder: Path) -> None:
    """Its configurations alone, and a list of shards."""
    image = {"image_size": 32, "num_hidden_layers": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-5, "hidden_size": 64,
             "num_attention_heads": 2, "patch_size": 16}  # fmt: skip
    text = {"hidden_act": "gelu", "eos_token_id": 2, "vocab_size": 49408, "max_position_embeddings": 77}
    config = {"model_type": "clip", "projection_dim": 8, "vision_config": image, "text_config": text}
    (folder / "config.json").write_text(json.dumps(config))
    pixels = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True,
              "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 255}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    (folder / "index.json").write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))


def read_packaged(folder: Path) -> None:
    load_clip(f"local-dir:{folder}", None)


def read_transformers(folder: Path) -> None:
    describe(place_of(f"local-dir:{folder}"))


SHELF = {"backbone": "small"}


def make_features(folder: Path) -> None:
    shelf = FeatureStore(folder / "features", 1e6).shelf(SHELF)
    shelf.put("key", Frozen(torch.zeros(2, 3), torch.zeros(4)))
    shutil.copy(shelf._path("key"), folder / "record")
    shutil.copy(shelf.folder / "shelf.json", folder / "card")


def read_features(folder: Path) -> None:
    store = FeatureStore(folder / "features", 1e6)
    shelf = store.shelf(SHELF)
    shelf._path("key").parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "record", shelf._path("key"))
    shutil.copy(folder / "card", shelf.folder / "shelf.json")
    shelf.get("key")
    assert store.used() >= 0
    assert store.is_full in (True, False)
    shelf.put("other", Frozen(torch.zeros(2, 3), torch.zeros(4)))


# Releases.


def make_bundle(folder: Path) -> None:
    write_bundle(ADAPTER, folder / "bundle", {"model": "pets", "version": 1})


def read_bundle(folder: Path) -> None:
    check_bundle(folder / "bundle")


def read_sealed_bundle(folder: Path) -> None:
    sum_again(folder / "bundle")
    check_bundle(folder / "bundle")


READERS = [
    Reader("adapter.json", copy_adapter, CARD, damaged_json, read_verified_card),
    Reader("adapter.json with a right digest", copy_adapter, CARD, damaged_json, load_sealed),
    Reader("adapter.json with a probe and a right digest", make_kind("mmrl + probe"), CARD, damaged_json, load_sealed),
    Reader("adapter.json of a baseline with a right digest", make_kind("tip_adapter"), CARD, damaged_json, load_sealed),
    Reader("adapter.safetensors of a baseline", make_kind("linear_probe"), TENSORS, damaged_bytes, load_sealed),
    Reader("folded.safetensors", make_kind("mmrl + probe"), FOLDED, damaged_bytes, LightPredictor.load),
    Reader("folded.safetensors with a right digest", make_kind("mmrl"), FOLDED, damaged_bytes, load_light_sealed),
    Reader("adapter.json, read by NumPy", make_kind("mmrlpp + probe"), CARD, damaged_json, load_light_sealed),
    Reader("adapter.safetensors", copy_adapter, TENSORS, damaged_bytes, read_adapter_tensors),
    Reader(
        "checkpoint of a training", make_checkpoints, "checkpoint-00000001-00000000.pt", damaged_bytes, read_checkpoints
    ),
    Reader("the authors' checkpoint", make_published, "model.pth.tar", damaged_bytes, read_authors),
    Reader(
        "the authors' checkpoint, older format",
        lambda f: make_published(f, zipped=False),
        "model.pth.tar",
        damaged_bytes,
        read_authors,
    ),
    Reader("weights, state dict", make_state_dict, "weights", damaged_bytes, weights()),
    Reader(
        "weights, safetensors",
        make_safetensors,
        "weights.safetensors",
        damaged_bytes,
        weights("weights.safetensors"),
    ),
    Reader("weights, TorchScript", make_torchscript, "weights", damaged_bytes, torchscript),
    Reader("open_clip's configuration", make_packaged, CONFIGURATION, damaged_json, read_packaged),
    Reader("transformers' configuration", make_transformers, "config.json", damaged_json, read_transformers),
    Reader("transformers' images", make_transformers, "preprocessor_config.json", damaged_json, read_transformers),
    Reader("list of shards", make_transformers, "index.json", damaged_json, lambda f: shards_of(f / "index.json")),
    Reader("record of frozen features", make_features, "record", damaged_bytes, read_features),
    Reader("card of frozen features", make_features, "card", damaged_json, read_features),
    Reader(
        "onnx/model.json of a bundle",
        make_bundle,
        "bundle/onnx/model.json",
        damaged_json,
        read_sealed_bundle,
        0.02,
        True,
    ),
    Reader(
        "expected.json of a bundle",
        make_bundle,
        "bundle/examples/expected.json",
        damaged_json,
        read_sealed_bundle,
        0.02,
        True,
    ),
    Reader(
        "classes of a bundle", make_bundle, "bundle/classes.safetensors", damaged_bytes, read_sealed_bundle, 0.02, True
    ),
    Reader(
        "a picture of a bundle", make_bundle, "bundle/examples/3.png", damaged_bytes, read_sealed_bundle, 0.02, True
    ),
    Reader("SHA256SUMS of a bundle", make_bundle, "bundle/SHA256SUMS", damaged_bytes, read_bundle, 0.02, True),
]
