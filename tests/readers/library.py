"""What mmrl_core reads."""

import csv
import functools
import hashlib
import io
import json
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import open_clip
import pyarrow
import pyarrow.parquet
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from mmrl_core.bundle import check_bundle, write_bundle
from mmrl_core.clip.backbone import Backbone, load_backbone
from mmrl_core.clip.feature_store import FeatureStore
from mmrl_core.clip.pretrained import load_clip
from mmrl_core.clip.towers import Frozen
from mmrl_core.data.benchmark import aircraft, coop, imagenet
from mmrl_core.data.images import decode
from mmrl_core.data.own import dataset
from mmrl_core.data.own.settings import OwnSection
from mmrl_core.data.shards import read_examples, read_manifest, write_few_shot, write_pool
from mmrl_core.data.source import Source
from mmrl_core.data.splits import Item
from mmrl_core.errors import UserError
from mmrl_core.evaluation.abstain import card_threshold
from mmrl_core.files import canonical_json, sha256_file
from mmrl_core.method.adapter import load_adapter, tensor_shapes
from mmrl_core.method.adapter_card import CARD, TENSORS, card_sha256, read_verified_card
from mmrl_core.method.model import AdaptedCLIP
from mmrl_core.method.published_checkpoints import implied_settings, read_published
from mmrl_core.method.tensor_file import read_tensors
from mmrl_core.protocols import HALVES, labels_of
from mmrl_core.training import checkpoints
from tests.readers.damage import Reader, damaged_bytes, damaged_json, damaged_parquet
from tests.support.alter import sum_again

ADAPTER = Path(__file__).parents[1] / "golden/registered_before_the_move/model/artifacts/seed1"
NAMES = ["cat", "dog"]


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


def read_adapter_tensors(folder: Path) -> None:
    read_tensors(folder / TENSORS, tensor_shapes(load_adapter(ADAPTER, tiny())[0].config, tiny()))


def png(number: int, size: int = 8) -> bytes:
    return encoded(number, "PNG", size)


def encoded(number: int, kind: str, size: int = 16, mode: str = "RGB") -> bytes:
    pixels = random.Random(number).randbytes(size * size * 3)
    content = io.BytesIO()
    Image.frombytes("RGB", (size, size), pixels).convert(mode).save(content, format=kind)
    return content.getvalue()


# Prepared data.


def prepare(folder: Path) -> None:
    items = [Item(f"{number}.png", number % 2, NAMES[number % 2]) for number in range(4)]
    source = Source("pets", ["a {}."], NAMES, items, items, items, reader=lambda item: png(int(item.path[0])))
    (folder / "pool").mkdir()
    (folder / "few").mkdir()
    write_pool(source, folder / "pool")
    write_few_shot(source, 1, 1, folder / "few")


def seal_manifest(folder: Path) -> None:
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        facts = {key: value for key, value in manifest.items() if key not in ("schema_version", "digest")}
        for shard in facts["shards"]:
            shard["sha256"] = sha256_file(folder / shard["file"])
        manifest["digest"] = hashlib.sha256(canonical_json(facts)).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(manifest))
    except (ValueError, TypeError, LookupError, RecursionError, AttributeError, OSError):
        pass


def read_prepared(folder: Path) -> None:
    manifest = read_manifest(folder)
    labels_of(manifest, HALVES)
    for split in ("train", "val", "test"):
        if split in manifest["counts"]:
            for half in HALVES:
                read_examples(folder, split, half)


def read_sealed(folder: Path) -> None:
    seal_manifest(folder)
    read_prepared(folder)


# Datasets of the user's own.


def own(**settings: str) -> Callable[[Path], object]:
    """Reads a dataset whose places are given relative to the folder, as `check` and `prepare` do."""

    def read(folder: Path) -> None:
        places = {name: str(folder / value) for name, value in settings.items()}
        source = dataset.open_source("pets", OwnSection(**places))
        dataset.fingerprint("pets", OwnSection(**places))
        for split in ("train", "val", "test"):
            for item in source.items(split):
                canonical_json(item._asdict())

    return read


def make_table(folder: Path) -> None:
    for number in range(4):
        (folder / f"{number}.png").write_bytes(png(number))
    rows = [
        {"path": f"{number}.png", "label": str(number % 2), "split": split}
        for number, split in enumerate(["train", "train", "test", "test"])
    ]
    with open(folder / "table.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "label", "split"])
        writer.writeheader()
        writer.writerows(rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[1:3]), folder / "two.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "table.parquet")
    (folder / "classes.csv").write_text("class,name\n0,cat\n1,dog\n")


def make_tar(folder: Path) -> None:
    (folder / "shards").mkdir()
    with tarfile.open(folder / "shards/0.tar", "w") as tar:
        for number in range(6):
            label = {"label": number % 2, "class_name": NAMES[number % 2]}
            for name, content in ((f"{number}.png", png(number)), (f"{number}.json", json.dumps(label).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def make_facts(folder: Path) -> None:
    (folder / "facts.json").write_text(json.dumps({"label": 1, "class_name": "dog", "more": {"x": [1, "y"]}}))


def read_facts(folder: Path) -> None:
    """Tars whose second sample has the damaged JSON."""
    (folder / "shards").mkdir(exist_ok=True)
    facts = (folder / "facts.json").read_bytes()
    with tarfile.open(folder / "shards/0.tar", "w") as tar:
        for number in range(4):
            about = facts if number == 1 else json.dumps({"label": number % 2}).encode()
            for name, content in ((f"{number}.png", png(number)), (f"{number}.json", about)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    own(shards="shards")(folder)


# Benchmark datasets.


def make_pets(folder: Path) -> None:
    (folder / "oxford_pets/images").mkdir(parents=True)
    rows = [[f"{number}.jpg", number % 2, NAMES[number % 2]] for number in range(4)]
    for name, _, _ in rows:
        (folder / "oxford_pets/images" / name).write_bytes(b"")
    document = {"train": rows, "val": rows[:1], "test": rows[2:]}
    (folder / "oxford_pets/split_zhou_OxfordPets.json").write_text(json.dumps(document))


def make_aircraft(folder: Path) -> None:
    (folder / "fgvc_aircraft/images").mkdir(parents=True)
    for number in range(3):
        (folder / f"fgvc_aircraft/images/000{number}.jpg").write_bytes(b"")
    (folder / "fgvc_aircraft/variants.txt").write_text("707-320\nA300\n")
    for number, split in enumerate(("train", "val", "test")):
        (folder / f"fgvc_aircraft/images_variant_{split}.txt").write_text(f"000{number} 707-320\n000{number} A300\n")


def make_imagenet(folder: Path) -> None:
    for wnid in ("n01440764", "n01443537"):
        (folder / "imagenet-adversarial/imagenet-a" / wnid).mkdir(parents=True)
        (folder / "imagenet-adversarial/imagenet-a" / wnid / "x.JPEG").write_bytes(b"")
    (folder / "imagenet-adversarial/classnames.txt").write_text("n01440764 tench\nn01443537 goldfish\n")


def benchmark(module, key: str) -> Callable[[Path], object]:
    def read(folder: Path) -> None:
        module.read(key, folder)
        module.open_source(key, folder)
        module.fingerprint(key, folder)

    return read


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


@functools.cache
def _bundle(folder: Path) -> Path:
    write_bundle(ADAPTER, folder, {"model": "pets", "version": 1})
    return folder


def make_bundle(folder: Path) -> None:
    write_bundle(ADAPTER, folder / "bundle", {"model": "pets", "version": 1})


def read_bundle(folder: Path) -> None:
    check_bundle(folder / "bundle")


def read_sealed_bundle(folder: Path) -> None:
    sum_again(folder / "bundle")
    check_bundle(folder / "bundle")


def image(name: str, content: bytes) -> Reader:
    return Reader(
        f"image, {name}", lambda folder: (folder / "image").write_bytes(content), "image", damaged_bytes,
        lambda folder: decode((folder / "image").read_bytes(), "image"),
    )  # fmt: skip


READERS = [
    Reader("adapter.json", copy_adapter, CARD, damaged_json, read_verified_card),
    Reader("adapter.json with a right digest", copy_adapter, CARD, damaged_json, load_sealed, share=0.5),
    Reader("adapter.safetensors", copy_adapter, TENSORS, damaged_bytes, read_adapter_tensors, share=0.5),
    Reader(
        "manifest of prepared data", prepare, "pool/manifest.json", damaged_json, lambda f: read_prepared(f / "pool")
    ),
    Reader(
        "manifest with a right digest", prepare, "few/manifest.json", damaged_json, lambda f: read_sealed(f / "few")
    ),
    Reader(
        "shard with a right digest",
        prepare,
        "pool/test-base-000000.tar",
        damaged_bytes,
        lambda f: read_sealed(f / "pool"),
    ),
    Reader("own table, CSV", make_table, "table.csv", damaged_bytes, own(table="table.csv")),
    Reader("own table, Parquet", make_table, "two.parquet", damaged_parquet, own(table="two.parquet")),
    Reader(
        "table of class names", make_table, "classes.csv", damaged_bytes, own(table="table.csv", classes="classes.csv")
    ),
    Reader("own shards", make_tar, "shards/0.tar", damaged_bytes, own(shards="shards")),
    Reader("JSON in own shards", make_facts, "facts.json", damaged_json, read_facts),
    Reader(
        "CoOp's split file",
        make_pets,
        "oxford_pets/split_zhou_OxfordPets.json",
        damaged_json,
        benchmark(coop, "oxford_pets"),
    ),
    Reader(
        "FGVC Aircraft's variants",
        make_aircraft,
        "fgvc_aircraft/variants.txt",
        damaged_bytes,
        benchmark(aircraft, "fgvc_aircraft"),
    ),
    Reader(
        "FGVC Aircraft's lists",
        make_aircraft,
        "fgvc_aircraft/images_variant_train.txt",
        damaged_bytes,
        benchmark(aircraft, "fgvc_aircraft"),
    ),
    Reader(
        "ImageNet's class names",
        make_imagenet,
        "imagenet-adversarial/classnames.txt",
        damaged_bytes,
        benchmark(imagenet, "imagenet_a"),
    ),
    image("PNG", png(1)),
    image("16-bit PNG", encoded(1, "PNG", mode="I;16")),
    image("palette PNG", encoded(1, "PNG", mode="P")),
    image("JPEG", encoded(1, "JPEG")),
    image("CMYK JPEG", encoded(1, "JPEG", mode="CMYK")),
    image("GIF", encoded(1, "GIF")),
    image("BMP", encoded(1, "BMP")),
    image("PPM", encoded(1, "PPM")),
    image("TIFF", encoded(1, "TIFF")),
    image("WEBP", encoded(1, "WEBP")),
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
    Reader("weights, state dict", make_state_dict, "weights", damaged_bytes, weights(), share=0.3),
    Reader(
        "weights, safetensors",
        make_safetensors,
        "weights.safetensors",
        damaged_bytes,
        weights("weights.safetensors"),
        share=0.3,
    ),
    Reader("weights, TorchScript", make_torchscript, "weights", damaged_bytes, torchscript),
    Reader("record of frozen features", make_features, "record", damaged_bytes, read_features),
    Reader("card of frozen features", make_features, "card", damaged_json, read_features),
]
