"""FGVC Aircraft as its authors ship it: images named by id, and one list of ids and variants a split."""

from pathlib import Path
from typing import Any

from mmrl_core.data.benchmark import coop
from mmrl_core.data.known.files import Files
from mmrl_core.data.source import Source
from mmrl_core.data.splits import Item
from mmrl_core.errors import UserError
from mmrl_core.files import sha256_file

FOLDER, VARIANTS = "fgvc_aircraft", "variants.txt"
LISTS = {split: f"images_variant_{split}.txt" for split in coop.SPLITS}


def needs(key: str) -> str:
    """What must lie below the data root."""
    return ", ".join(f"{FOLDER}/{name}" for name in ("images", VARIANTS, *LISTS.values()))


def template(key: str) -> str:
    """The published prompt."""
    return "a photo of a {}, a type of aircraft."


def read(key: str, root: str | Path) -> tuple[dict[str, list[Item]], list[str]]:
    """The three lists and the paths in them that are not there. Raises UserError as `open_source` does."""
    folder = Path(root) / FOLDER
    images = folder / "images"
    if not images.is_dir():
        raise UserError(f"the images folder {images} is not there; the root must hold {needs(key)}")
    splits = _splits(folder)
    return splits, coop.missing_images(images, folder / VARIANTS, splits)


def open_source(key: str, root: str | Path) -> Source:
    """The dataset, every image known to be there. Labels are line numbers of variants.txt."""
    splits, missing = read(key, root)
    folder = Path(root) / FOLDER
    if missing:
        raise UserError(
            f"{folder} names {missing[0]}, which is not in images ({len(missing)} missing in all); complete it"
        )
    lists = splits["train"], splits["val"], splits["test"]
    return Source(key, [template(key)], _variants(folder), *lists, reader=Files(folder / "images"))


def fingerprint(key: str, root: str | Path) -> dict[str, Any]:
    """Hashes that change when a list or any image does."""
    folder = Path(root) / FOLDER
    splits, _ = read(key, root)
    digest, files = coop.files_digest(folder / "images")
    lists = {name: sha256_file(folder / name) for name in (VARIANTS, *LISTS.values())}
    counts = {split: len(items) for split, items in splits.items()}
    return {"lists_sha256": lists, "files_sha256": digest, "counts": {**counts, "files": files}}


def _splits(folder: Path) -> dict[str, list[Item]]:
    label_of = {name: label for label, name in enumerate(_variants(folder))}
    return {split: [_item(line, label_of, folder / name) for line in _lines(folder / name)]
            for split, name in LISTS.items()}  # fmt: skip


def _variants(folder: Path) -> list[str]:
    variants = _lines(folder / VARIANTS)
    if repeated := next((name for name in variants if variants.count(name) > 1), None):
        raise UserError(f"{folder / VARIANTS} names {repeated!r} more than once; correct the list")
    return variants


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the list {path} ({error}); put FGVC Aircraft's own there") from None


def _item(line: str, label_of: dict[str, int], path: Path) -> Item:
    image, _, name = line.partition(" ")
    if name not in label_of or not image.isalnum():
        raise UserError(f"{path}: the line {line!r} is no image id and a variant of {VARIANTS}; correct the list")
    return Item(f"{image}.jpg", label_of[name], name)
