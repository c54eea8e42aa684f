"""ImageNet and its four variants: a folder a class, and CoOp's classnames.txt (lines of wnid and name).

ImageNet's validation images are its test set and nothing else: its val list is empty, so that nothing is tuned on test
images. Items are sorted by folder, then by file name; CoOp's code took the file system's order within a folder, so its
few-shot draws from ImageNet cannot be had again from the files alone. Two classes may share a name, as in copies of
CoOp's list: they share a prompt, and `Backbone.tokenize` lets them.
"""

import os
from collections import Counter
from pathlib import Path
from typing import Any

from mmrl_core.data.benchmark import coop
from mmrl_core.data.known.files import Files
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
    images, classes = _locate(key, root)
    return _splits(key, images, classes), []


def open_source(key: str, root: str | Path) -> Source:
    """The dataset. Raises UserError on a missing folder or list, on class folders and a list that do not agree, and on
    links among the class folders and images."""
    images, classes = _locate(key, root)
    splits, class_names = _splits(key, images, classes), list(classes.values())
    lists = splits["train"], splits["val"], splits["test"]
    return Source(key, [template(key)], class_names, *lists, reader=Files(images))


def fingerprint(key: str, root: str | Path) -> dict[str, Any]:
    """Hashes that change when the list of names or any image does."""
    images, _ = _locate(key, root)
    # Each part for itself: a walk of `images` would not enter a train or val folder that is a link.
    walks = {split: coop.files_digest(images / part) for split, part in _parts(key).items()}
    return {
        "split_sha256": sha256_file(images.parent / CLASS_NAMES),
        "files_sha256": {split: digest for split, (digest, _) in walks.items()},
        "counts": {"files": sum(files for _, files in walks.values())},
    }


def _parts(key: str) -> dict[str, str]:
    """Where the images of a split lie below the images folder. CoOp's guide has ImageNet's two as links."""
    return {"train": "train/", "test": "val/"} if key == "imagenet" else {"test": ""}


def _locate(key: str, root: str | Path) -> tuple[Path, dict[str, str]]:
    """The images folder, and the class names by class folder in the labels' order."""
    folder, below = VARIANTS.get(key, IMAGENET)
    images = Path(root) / folder / below
    for part in _parts(key).values():
        if not (images / part).is_dir():
            raise UserError(f"the images folder {images / part} is not there; the root must hold {needs(key)}")
    return images, _classes(key, images, _names(images.parent / CLASS_NAMES))


def _names(path: Path) -> dict[str, str]:
    """Class names by wnid, in the list's order."""
    try:
        lines = [line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the list {path} ({error}); put CoOp's {CLASS_NAMES} there") from None
    if bad := next((line for line in lines if len(line) != 2), None):
        raise UserError(f"{path}: the line {' '.join(bad)!r} is no wnid and a name; correct the list")
    wnid, times = Counter(wnid for wnid, _ in lines).most_common(1)[0] if lines else ("no class", 0)
    if times != 1:
        raise UserError(f"{path} names {wnid} {times} times, not once; correct the list")
    return {wnid: name.strip() for wnid, name in lines}


def _classes(key: str, images: Path, names: dict[str, str]) -> dict[str, str]:
    """Class names by folder, in the labels' order: sorted wnids, or for ImageNetV2 the lines of the list by number."""
    if key == "imagenetv2":
        return {str(label): name for label, name in enumerate(names.values())}
    top = images / next(iter(_parts(key).values()))
    folders = _folders(top)
    if unknown := next((folder for folder in folders if folder not in names), None):
        raise UserError(f"{top / unknown} is a class that {CLASS_NAMES} does not name; complete the list")
    if not folders:
        raise UserError(f"{top} holds no class folder; put the images there")
    return {folder: names[folder] for folder in folders}


def _splits(key: str, images: Path, classes: dict[str, str]) -> dict[str, list[Item]]:
    filled = {split: _items(images, part, classes) for split, part in _parts(key).items()}
    return {split: filled.get(split, []) for split in coop.SPLITS}


def _items(images: Path, part: str, classes: dict[str, str]) -> list[Item]:
    present = set(_folders(images / part))
    if missing := next((folder for folder in classes if folder not in present), None):
        raise UserError(f"the class folder {images / part / missing} is not there; complete the images")
    if surplus := sorted(present - classes.keys()):
        raise UserError(f"{images / part / surplus[0]} is no class of this dataset; take the folder away")
    return [
        Item(f"{part}{folder}/{image}", label, name)
        for label, (folder, name) in enumerate(classes.items())
        for image in _images(images / part / folder)
    ]


def _folders(top: Path) -> list[str]:
    return sorted(entry.name for entry in _entries(top) if entry.is_dir())  # a README.txt is no class


def _images(folder: Path) -> list[str]:
    files = (entry.name for entry in _entries(folder) if entry.is_file())
    return sorted(name for name in files if name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS)


def _entries(folder: Path) -> list[os.DirEntry]:
    """What a folder holds, hidden entries left out as CoOp leaves them. Raises UserError on a link: it may lead out of
    the folder, and a fingerprint would not see behind it."""
    try:
        with os.scandir(folder) as listing:
            entries = [entry for entry in listing if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"cannot list the folder {folder} ({error.strerror}); make it readable") from None
    if link := next((entry.path for entry in entries if entry.is_symlink()), None):
        raise UserError(f"{link} is a link; put what it leads to there itself")
    return entries
