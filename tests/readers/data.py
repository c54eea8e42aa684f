"""Images, datasets, prepared data."""

import csv
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
from PIL import Image
from pillow_heif import register_heif_opener

from mmrl_core.data.benchmark import aircraft, coop, imagenet
from mmrl_core.data.images import decode
from mmrl_core.data.own import dataset
from mmrl_core.data.own.beside import section_of
from mmrl_core.data.own.settings import OwnSection
from mmrl_core.data.shards import read_examples, read_manifest, write_few_shot, write_pool
from mmrl_core.data.source import Source
from mmrl_core.data.splits import Item
from mmrl_core.files import canonical_json, sha256_file
from mmrl_core.protocols import HALVES, labels_of
from tests.readers.damage import Reader, damaged_bytes, damaged_json, damaged_parquet

NAMES = ["cat", "dog"]
register_heif_opener()


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


def make_label_studio(folder: Path) -> None:
    make_table(folder)
    result = [{"type": "choices", "from_name": "choice", "value": {"choices": ["0"]}}]
    annotation = {"id": 1, "was_cancelled": False, "result": result}
    tasks = [{"data": {"image": f"{number}.png"}, "annotations": [annotation]} for number in range(3)]
    (folder / "export.json").write_text(json.dumps([*tasks, {"image": "3.png", "annotation_id": 2, "choice": "1"}]))


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


def image(name: str, content: bytes) -> Reader:
    return Reader(
        f"image, {name}", lambda folder: (folder / "image").write_bytes(content), "image", damaged_bytes,
        lambda folder: decode((folder / "image").read_bytes(), "image"),
    )  # fmt: skip


READERS = [
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
    Reader("own table, JSON", make_label_studio, "export.json", damaged_json, own(table="export.json")),
    Reader("folder with a table", make_label_studio, "export.json", damaged_bytes, section_of),
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
    image("HEIC", encoded(1, "HEIF")),
]
