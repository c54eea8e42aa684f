"""ImageNet and its four variants: a folder a class, and CoOp's classnames.txt (lines of wnid and name).

ImageNet's validation images are its test set and nothing else: its val list is empty, so that nothing is tuned on test
images. Items are sorted by folder, then by file name; CoOp's code took the file system's order within a folder, so its
few-shot draws from ImageNet cannot be had again from the files alone.
"""

import os
from functools import partial
from pathlib import Path

from mmrl_core.data import coop
from mmrl_core.data.source import IMAGE_EXTENSIONS, Source
from mmrl_core.data.splits import Item
from mmrl_core.errors import UserError
from mmrl_core.files import sha256_file

CLASS_NAMES = "classnames.txt"
IMAGENET = ("imagenet", "images")
# Folder and images; the variants have test images only.
VARIANTS = {
    "imagenetv2": ("imagenetv2", "imagenetv2-matched-frequency-format-val"),
    "imagenet_sketch": ("imagenet-sketch", "images"),
    "imagenet_a": ("imagenet-adversarial", "imagenet-a"),
    "imagenet_r": ("imagenet-rendition", "imagenet-r"),
}


def needs(key: str) -> str:
    """What must lie below the data root."""
    folder, images = VARIANTS.get(key, IMAGENET)
    lists = [f"{images}/train", f"{images}/val"] if key == "imagenet" else [images]
    return ", ".join(f"{folder}/{name}" for name in (*lists, CLASS_NAMES))


def template(key: str) -> str:
    """The published prompt."""
    return "a photo of a {}."


def read(key: str, root: str | Path) -> tuple[dict[str, list[Item]], list[str]]:
    """The three lists; never an image amiss, since the folders are the lists. Raises UserError as `open_source`."""
    images, names = _locate(key, root)
    return _splits(key, images, names), []


def open_source(key: str, root: str | Path) -> Source:
    """The dataset. Raises UserError on a missing folder or list, and on a class folder that the list does not name."""
    images, names = _locate(key, root)
    splits, class_names = _splits(key, images, names), list(_classes(key, images, names).values())
    return Source(key, [template(key)], class_names, **splits, reader=partial(coop.read_image, images))


def fingerprint(key: str, root: str | Path) -> dict:
    """Hashes that change when the list of names or any image does."""
    images, _ = _locate(key, root)
    digest, files = coop.files_digest(images)
    return {
        "split_sha256": sha256_file(images.parent / CLASS_NAMES), "files_sha256": digest, "counts": {"files": files}
    }  # fmt: skip


def _locate(key: str, root: str | Path) -> tuple[Path, dict[str, str]]:
    """The images folder, and the class names by wnid in the list's order."""
    folder, images = VARIANTS.get(key, IMAGENET)
    folder = Path(root) / folder
    if not (folder / images).is_dir():
        raise UserError(f"the images folder {folder / images} is not there; the root must hold {needs(key)}")
    return folder / images, _names(folder / CLASS_NAMES)


def _names(path: Path) -> dict[str, str]:
    try:
        lines = [line.split(maxsplit=1) for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the list {path} ({error}); put CoOp's {CLASS_NAMES} there") from None
    if bad := next((line for line in lines if len(line) != 2), None):
        raise UserError(f"{path}: the line {' '.join(bad)!r} is no wnid and a name; correct the list")
    return {wnid: name.strip() for wnid, name in lines}


def _splits(key: str, images: Path, names: dict[str, str]) -> dict[str, list[Item]]:
    classes = _classes(key, images, names)
    if key != "imagenet":
        return {"train": [], "val": [], "test": _items(images, "", classes)}
    return {"train": _items(images, "train/", classes), "val": [], "test": _items(images, "val/", classes)}


def _classes(key: str, images: Path, names: dict[str, str]) -> dict[str, str]:
    """Class names by folder, in the labels' order: sorted wnids, or for ImageNetV2 the lines of the list by number."""
    if key == "imagenetv2":
        return {str(label): name for label, name in enumerate(names.values())}
    top = images / "train" if key == "imagenet" else images
    if not top.is_dir():
        raise UserError(f"the folder {top} is not there; the root must hold {needs(key)}")
    folders = sorted(entry.name for entry in os.scandir(top) if entry.is_dir())  # a README.txt is no class
    if unknown := next((folder for folder in folders if folder not in names), None):
        raise UserError(f"{top / unknown} is a class that {CLASS_NAMES} does not name; complete the list")
    return {folder: names[folder] for folder in folders}


def _items(images: Path, prefix: str, classes: dict[str, str]) -> list[Item]:
    items = []
    for label, (folder, name) in enumerate(classes.items()):
        path = images / prefix / folder
        if not path.is_dir():
            raise UserError(f"the class folder {path} is not there; complete the images")
        items += [Item(f"{prefix}{folder}/{image}", label, name) for image in _images(path)]
    return items


def _images(folder: Path) -> list[str]:
    """The image files of a folder, sorted. Links are not followed, and so are no way out of the folder."""
    entries = [entry for entry in os.scandir(folder) if entry.name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS]
    if link := next((entry.path for entry in entries if entry.is_symlink()), None):
        raise UserError(f"{link} is a link; put the image itself there")
    return sorted(entry.name for entry in entries)
