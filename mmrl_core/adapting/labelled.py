"""Labelled images in the forms that programs have them: by class, in a folder, a Hugging Face or a torchvision dataset.

Nothing is decoded here but what a dataset decodes itself.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL.Image import Image

from mmrl_core.adapting.images import FORMS, is_one_image, open_image
from mmrl_core.data.known.files import Files
from mmrl_core.data.own import folder
from mmrl_core.data.own.class_names import ordered_labels, readable_names
from mmrl_core.data.own.records import Gathered, Records, did_you_mean
from mmrl_core.errors import UserError

KINDS = (
    "a mapping of class names to lists of images, a folder of class folders, a Hugging Face Dataset, or a torchvision "
    "dataset"
)


class Entry(NamedTuple):
    """One labelled image. `read` gives it in a form that `open_image` takes, and is called by the caller's thread: a
    dataset may not bear several. `name` is what errors call it."""

    key: str  # what its augmentation depends on
    label: int
    read: Callable[[], Any]
    name: str

    def open(self) -> Image:
        """The RGB image. Raises UserError where it cannot be read."""
        return open_image(self.read(), self.name)


class Collection(NamedTuple):
    """Labelled images, not yet opened. Every class has one at least; `held_out` are those of the folder's own
    validation split."""

    class_names: list[str]
    entries: list[Entry]
    held_out: list[Entry]


def collect(images: Any, class_names: Sequence[str] | None = None) -> Collection:
    """The labelled images to train on, of two classes or more. Raises UserError for fewer, and as `collect_some`."""
    collection = collect_some(images, class_names)
    if not collection.class_names:
        raise UserError(f"there is no image to train on; give {KINDS}")
    if len(collection.class_names) < 2:
        raise UserError(f"only the class {collection.class_names[0]!r} has images; at least 2 classes are needed")
    return collection


def collect_some(images: Any, class_names: Sequence[str] | None = None) -> Collection:
    """Labelled images in any of the forms that KINDS names.

    `class_names` are the names of the labels of a dataset that has none, or that are to be others. The classes are
    those that have images. Raises UserError for another form, a class without an image in a mapping or folder, labels
    out of range, and names that make the same prompt.
    """
    if isinstance(images, str | Path | Mapping) and class_names is not None:
        raise UserError("class_names is for datasets whose labels are numbers; folders and mappings have their names")
    if isinstance(images, str | Path):
        return _of_folder(Path(images))
    if isinstance(images, Mapping):
        return _of_mapping(images)
    if hasattr(images, "features") and hasattr(images, "column_names"):
        return _of_huggingface(images, class_names)
    if not is_one_image(images) and not hasattr(images, "ndim") and hasattr(images, "__getitem__"):
        return _of_pairs(images, class_names)
    raise UserError(f"images is of type {type(images).__name__}; give {KINDS}")


def _of_mapping(images: Mapping[Any, Any]) -> Collection:
    for name, own in images.items():
        if not isinstance(name, str):
            raise UserError(f"the class {name!r} is of type {type(name).__name__}; name classes by text")
        _check_list(name, own)
    pairs = [(name, image) for name, own in images.items() for image in own]
    keys = [f"{name}/{index}" for name, own in images.items() for index in range(len(own))]
    label_of = {name: label for label, name in enumerate(images)}
    entries = [
        Entry(key, label_of[name], partial(_given, image), key) for key, (name, image) in zip(keys, pairs, strict=True)
    ]
    return _checked("images", list(images), entries)


def _check_list(name: str, images: Any) -> None:
    """UserError unless it is a list of images, with one at least."""
    if hasattr(images, "features") and hasattr(images, "column_names"):
        raise UserError(f"images is a mapping of splits, of which {name!r} is one; give that one: images[{name!r}]")
    if is_one_image(images) or not isinstance(images, Sequence):
        what = "a folder" if isinstance(images, str | Path) and Path(images).is_dir() else type(images).__name__
        raise UserError(f"images[{name!r}] is no list of images but {what}; give a list, each of them {FORMS}")
    if not images:
        raise UserError(f"class {name!r} has no image; add one, or leave the class out")


def _of_folder(path: Path) -> Collection:
    """Of class folders, or of those in the folders of splits: then train alone, with val held out."""
    gathered = folder.gather(path)
    if not gathered.records:
        raise UserError(f"{path} holds no image; it needs a folder for each class, with its images")
    labels = ordered_labels(gathered)
    label_of = {label: number for number, label in enumerate(labels)}
    of_split: dict[str | None, list[Entry]] = {}
    for record in gathered.records:
        entry = Entry(record.path, label_of[record.label], partial(_given, path / record.path), record.path)
        of_split.setdefault(record.split, []).append(entry)
    train = of_split.get("train", []) + of_split.get(None, [])
    _check_folder_classes(path, labels, train)
    return _checked(str(path), labels, train, of_split.get("val", []))


def _check_folder_classes(path: Path, labels: list[str], train: list[Entry]) -> None:
    used = {entry.label for entry in train}
    if lacking := [name for label, name in enumerate(labels) if label not in used]:
        raise UserError(f"{path} has no image to train class {lacking[0]!r} with; add one, or remove the class")


def _of_huggingface(dataset: Any, class_names: Sequence[str] | None) -> Collection:
    """Of a `datasets.Dataset` with a column of images and one of labels; nothing of that package is imported."""
    if not hasattr(dataset, "__len__"):
        raise UserError("the dataset is streamed, so that its images have no order to draw from; load it whole")
    features = dict(dataset.features)
    image = _column(features, "images", lambda feature: type(feature).__name__ == "Image", ("image", "img"))
    label = _column(features, "labels", lambda feature: hasattr(feature, "names"), ("label", "labels", "class"))
    names = class_names or getattr(features[label], "names", None)
    values = list(dataset[label])  # a column alone: no image is decoded for it
    return _of_numbers("the dataset", values, names, lambda index: _undecoded(dataset[index][image]))


def _undecoded(image: Any) -> Any:
    """The image; of a column that is not decoded its bytes, or else its path."""
    return image.get("bytes") or image.get("path") if isinstance(image, dict) else image


def _column(features: dict[str, Any], what: str, fits: Callable[[Any], bool], usual: tuple[str, ...]) -> str:
    """The column that is of that kind, or else has a usual name."""
    found = [name for name, feature in features.items() if fits(feature)]
    found = [name for name in found if name in usual] or found or [name for name in usual if name in features]
    if len(found) == 1 or (found and found[0] in usual):
        return found[0]
    say = f"columns {', '.join(found)} may all be" if found else f"of the columns {', '.join(features)} none is"
    raise UserError(f"{say} the {what}; rename the one that is to {usual[0]!r} with dataset.rename_column")


def _of_pairs(dataset: Any, class_names: Sequence[str] | None) -> Collection:
    """Of anything that gives (image, label) by index: a torchvision dataset, a subset of one, a list of pairs."""
    names = class_names or _classes_of(dataset)
    labels = _cheap_labels(dataset)
    if labels is None:
        labels = [_pair(dataset, index)[1] for index in range(len(dataset))]
    return _of_numbers(type(dataset).__name__, labels, names, lambda index: _pair(dataset, index)[0])


def _pair(dataset: Any, index: int) -> tuple[Any, Any]:
    pair = dataset[index]
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise UserError(f"entry {index} of the {type(dataset).__name__} is no pair (image, label); give {KINDS}")
    return pair[0], pair[1]


def _classes_of(dataset: Any) -> Sequence[str] | None:
    """The class names of a dataset, or of the one that it is a subset of."""
    while dataset is not None:
        for attribute in ("classes", "categories"):
            if names := getattr(dataset, attribute, None):
                return list(names)
        dataset = getattr(dataset, "dataset", None)
    return None


def _cheap_labels(dataset: Any) -> list[Any] | None:
    """Every label where a dataset has them at hand; None where its images have to be read for them."""
    indices, inner = getattr(dataset, "indices", None), getattr(dataset, "dataset", None)
    if indices is not None and inner is not None:
        labels = _cheap_labels(inner)
        return None if labels is None else [labels[index] for index in indices]
    labels = getattr(dataset, "targets", None)
    if labels is None or getattr(dataset, "target_transform", None) is not None:
        return None
    return list(labels) if hasattr(dataset, "__len__") and len(labels) == len(dataset) else None


def _of_numbers(where: str, labels: list[Any], names: Sequence[str] | None, image: Callable[[int], Any]) -> Collection:
    """Of labels by index, numbers with names or names themselves; the classes are those that have images."""
    if not labels:
        return Collection([], [], [])
    if names is None and labels and all(isinstance(label, str) for label in labels):
        names = sorted(set(labels))
        number_of = {name: number for number, name in enumerate(names)}
        numbers = [number_of[label] for label in labels]
    elif names is None:
        raise UserError(f"{where} does not name its classes; give class_names, a list with the name of each label")
    else:
        numbers = [_number(label, index, len(names)) for index, label in enumerate(labels)]
    kept = sorted(set(numbers))
    position = {number: place for place, number in enumerate(kept)}

    entries = [
        Entry(str(index), position[number], partial(_of_dataset, image, index), f"number {index}")
        for index, number in enumerate(numbers)
    ]
    return _checked(where, [names[number] for number in kept], entries)


def _given(image: Any) -> Any:
    return image


def _of_dataset(image: Callable[[int], Any], index: int) -> Any:
    try:
        return image(index)
    except OSError as error:  # of Pillow too
        raise UserError(f"the dataset cannot read image {index} ({error}); mend it, or leave it out") from None


def _number(label: Any, index: int, count: int) -> int:
    try:
        number = operator.index(label)
    except TypeError:
        raise UserError(f"image {index} has the label {label!r}; labels are whole numbers from 0 on") from None
    if not 0 <= number < count:
        raise UserError(f"image {index} has the label {number}, and with {count} classes labels are 0 to {count - 1}")
    return number


def _checked(where: str, names: list[Any], entries: list[Entry], held_out: list[Entry] = []) -> Collection:
    """The collection with readable names. Raises UserError for what cannot be names of classes."""
    for name in names:
        if not isinstance(name, str):
            raise UserError(f"{where}: the class name {name!r} is of type {type(name).__name__}; name classes by text")
    readable = readable_names(Gathered(where, Records.of([]), [], Files(Path())), names, None)
    return Collection(readable, entries, held_out)


def among(collection: Collection, class_names: list[str]) -> list[Entry]:
    """The images of a collection with labels into other class names. Raises UserError for a class that is not there."""
    place_of = {name: place for place, name in reversed([*enumerate(class_names)])}  # of a name twice, the first
    unknown = [name for name in collection.class_names if name not in place_of]
    if unknown:
        raise UserError(
            f"validation has the class {unknown[0]!r}, which is not trained; {did_you_mean(unknown[0], class_names)}"
        )
    place = [place_of[name] for name in collection.class_names]
    return [entry._replace(label=place[entry.label]) for entry in [*collection.entries, *collection.held_out]]
