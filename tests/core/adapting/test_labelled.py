"""The forms in which labelled images come, and what is wrong with them."""

import importlib.util
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset
from torchvision.datasets import FakeData, ImageFolder
from torchvision.transforms import ToTensor

from mmrl_core.adapting.images import open_image
from mmrl_core.adapting.labelled import Collection, among, collect, collect_some
from mmrl_core.errors import UserError
from tests.core.test_predict import noise

RED, BLUE = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")


def colours(collection: Collection, held_out: bool = False) -> list[tuple[str, tuple[int, ...]]]:
    """Each image's class and the colour of its first pixel."""
    chosen = collection.held_out if held_out else collection.entries
    return [(collection.class_names[entry.label], entry.open().getpixel((0, 0))) for entry in chosen]


@pytest.fixture
def folder(tmp_path):
    for name, image in (("blue", BLUE), ("red", RED)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(2):
            image.save(tmp_path / "photos" / name / f"{index}.png")
    return tmp_path / "photos"


BOTH = [("blue", (0, 0, 255))] * 2 + [("red", (255, 0, 0))] * 2


def test_a_mapping_keeps_its_order_and_takes_paths_bytes_images_and_arrays(folder):
    image = folder / "red" / "0.png"
    found = collect({"red": [image, str(image), image.read_bytes()], "blue": [BLUE, np.asarray(BLUE)]})
    assert found.class_names == ["red", "blue"]
    assert colours(found) == [("red", (255, 0, 0))] * 3 + [("blue", (0, 0, 255))] * 2
    assert [entry.key for entry in found.entries] == ["red/0", "red/1", "red/2", "blue/0", "blue/1"]


def test_a_folder_has_its_classes_in_the_order_of_their_names(folder):
    assert colours(collect(folder)) == colours(collect(str(folder))) == BOTH


def test_of_a_folder_of_splits_train_is_trained_on_val_held_out_and_test_left(folder, tmp_path):
    for split in ("train", "val", "test"):
        for name, image in (("red", RED), ("blue", BLUE)):
            (tmp_path / "splits" / split / name).mkdir(parents=True)
            image.save(tmp_path / "splits" / split / name / f"{split}.png")
    found = collect(tmp_path / "splits")
    assert colours(found) == BOTH[1:3] == colours(found, held_out=True)
    assert [entry.key for entry in found.held_out] == ["val/blue/val.png", "val/red/val.png"]


def test_of_a_torchvision_folder_and_its_subsets_no_image_is_read_for_its_label(folder):
    dataset = ImageFolder(str(folder))
    assert colours(collect(dataset)) == BOTH
    subset = Subset(Subset(dataset, [3, 0, 2]), [0, 1])
    dataset.loader = None  # reading one would fail
    found = collect(subset)
    assert [found.class_names[entry.label] for entry in found.entries] == ["red", "blue"]


def test_a_torchvision_dataset_without_names_is_given_them():
    found = collect(FakeData(6, (3, 8, 8), num_classes=2), ["cat", "dog"])
    assert set(found.class_names) == {"cat", "dog"} and len(found.entries) == 6
    with pytest.raises(UserError, match="FakeData does not name its classes; give class_names"):
        collect(FakeData(6, (3, 8, 8), num_classes=2))


def test_a_list_of_pairs_has_names_or_numbers_of_names_and_classes_without_an_image_are_left_out():
    pairs = [(RED, "red"), (BLUE, "blue")]
    assert colours(collect(pairs)) == [("red", (255, 0, 0)), ("blue", (0, 0, 255))]
    numbered = collect([(RED, 2), (BLUE, torch.tensor(0))], ["blue", "green", "red"])
    assert numbered.class_names == ["blue", "red"] and colours(numbered) == colours(collect(pairs))


class Kind(NamedTuple):
    """As much of a feature of Hugging Face's `datasets` as is looked at; `Image` is another such class."""

    names: list[str]


class Table:
    """As much of `datasets.Dataset` as is looked at."""

    def __init__(self, columns: dict[str, list[Any]], features: dict[str, Any]):
        self.columns, self.features, self.column_names = columns, features, list(columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key):
        return self.columns[key] if isinstance(key, str) else {name: own[key] for name, own in self.columns.items()}


def looks_alike(images, labels, names, image="image", label="label"):
    features = {image: type("Image", (), {})(), label: Kind(names) if names else object()}
    return Table({image: images, label: labels}, features)


def real(images, labels, names, image="image", label="label"):
    import datasets

    kind = datasets.ClassLabel(names=names) if names else datasets.Value("string")
    features = datasets.Features({image: datasets.Image(), label: kind})
    return datasets.Dataset.from_dict({image: images, label: labels}, features=features)


HUGGING_FACE = [looks_alike, *([real] if importlib.util.find_spec("datasets") else [])]


@pytest.mark.parametrize("dataset", HUGGING_FACE)
def test_a_hugging_face_dataset_names_its_classes_itself(dataset):
    found = collect(dataset([RED, BLUE], [2, 0], ["blue", "green", "red"]))
    assert colours(found) == [("red", (255, 0, 0)), ("blue", (0, 0, 255))] and found.class_names == ["blue", "red"]
    by_kind = collect(dataset([RED, BLUE], [1, 0], ["blue", "red"], image="picture", label="colour"))
    assert colours(by_kind) == colours(found)
    assert colours(collect(dataset([RED, BLUE], ["red", "blue"], None))) == colours(found)


def test_images_of_a_hugging_face_dataset_that_it_does_not_decode_are_decoded_here(tmp_path):
    (tmp_path / "noise.png").write_bytes(noise(2))
    undecoded = [{"bytes": noise(1), "path": None}, {"bytes": None, "path": str(tmp_path / "noise.png")}]
    found = [entry.open() for entry in collect(looks_alike(undecoded, [0, 1], ["a", "b"])).entries]
    assert found == [open_image(noise(1), ""), open_image(noise(2), "")]


@pytest.mark.parametrize("dataset", HUGGING_FACE)
def test_what_of_a_hugging_face_dataset_cannot_be_used_is_one_line(dataset):
    whole = dataset([RED, BLUE], [1, 0], ["blue", "red"])
    with pytest.raises(UserError, match=r"a mapping of splits, .* give that one: images\['train'\]"):
        collect({"train": whole, "test": whole})
    with pytest.raises(UserError, match="of the columns image, what none is the labels; rename .* to 'label'"):
        collect(dataset([RED, BLUE], ["red", "blue"], None, label="what"))


class Pairs:
    """A dataset of one's own, as torch's tutorials write them."""

    def __init__(self, pairs, classes):
        self.pairs, self.classes = pairs, classes

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        return self.pairs[index]


@pytest.mark.parametrize(
    ("images", "line"),
    [
        ({"red": [RED], "blue": []}, "class 'blue' has no image; add one, or leave the class out"),
        ({"red": [RED]}, "only the class 'red' has images; at least 2 classes are needed"),
        ({}, "there is no image to train on; give a mapping"),
        ([], "there is no image to train on"),
        ({"Red ": [RED], "red": [RED]}, "classes 'Red ' and 'red' make the same prompt; rename one"),
        ({"red": [RED], " ": [BLUE]}, "the class name ' ' is empty"),
        ({"red": [RED], 3: [BLUE]}, "the class 3 is of type int; name classes by text"),
        ({"red": [RED], "blue": BLUE}, r"images\['blue'\] is no list of images but Image; give a list"),
        ({"red": [RED], "blue": "blue.png"}, r"images\['blue'\] is no list of images but str"),
        ({"red": [RED], "blue": "."}, r"images\['blue'\] is no list of images but a folder"),
        ({"red": [RED], "blue": torch.zeros(2, 3, 8, 8)}, r"images\['blue'\] is no list of images but Tensor"),
        (torch.zeros(2, 3, 8, 8), "images is of type Tensor; give a mapping of class names"),
        (RED, "images is of type Image; give a mapping"),
        (3, "images is of type int; give a mapping"),
        ("nowhere", "the images folder nowhere is not there"),
        ([RED, BLUE], r"entry 0 of the list is no pair \(image, label\)"),
        ([(RED, 0), (BLUE, 1)], "list does not name its classes; give class_names"),
        (Pairs([(RED, 0), (BLUE, 2)], ["a", "b"]), "image 1 has the label 2, and with 2 classes labels are 0 to 1"),
        (Pairs([(RED, 0), (BLUE, -1)], ["a", "b"]), "image 1 has the label -1"),
        (Pairs([(RED, 0), (BLUE, 1.0)], ["a", "b"]), "image 1 has the label 1.0; labels are whole numbers from 0 on"),
        (Pairs([(RED, 0), (BLUE, 1)], ["a", "a"]), "classes 'a' and 'a' make the same prompt"),
        (Pairs([(RED, 0), (BLUE, 1)], [0, 1]), "the class name 0 is of type int"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_labelled_images_that_cannot_be_used_are_told_in_one_line(images, line):
    with pytest.raises(UserError, match=line) as error:
        collect(images)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("image", "line"),
    [
        (None, "image number 7 is of type NoneType; give a path, encoded bytes, a PIL image or an array"),
        ("nowhere.jpg", "cannot read the image nowhere.jpg"),
        ("a\0b", "cannot read the image a.*NUL|null"),
        (b"no image", "number 7 is not an image of a known format"),
        (np.zeros((8, 8, 3)), r"image number 7 is an array of float64 of shape \(8, 8, 3\); give bytes \(uint8\)"),
        (np.zeros((3, 8, 8), np.uint8), r"an array of uint8 of shape \(3, 8, 8\)"),
        (torch.zeros(3, 8, 8), "image number 7 is a tensor of torch, whose range and normalisation are not known"),
    ],
    ids=str,
)
def test_an_image_that_cannot_be_used_is_told_in_one_line(image, line):
    with pytest.raises(UserError, match=line):
        open_image(image, "number 7")


def test_every_form_of_an_image_opens_as_the_same_pixels(tmp_path):
    (tmp_path / "noise.png").write_bytes(noise(1))
    decoded = open_image(noise(1), "bytes")
    for form in (
        tmp_path / "noise.png",
        str(tmp_path / "noise.png"),
        bytearray(noise(1)),
        decoded,
        np.asarray(decoded),
    ):
        assert np.array_equal(np.asarray(open_image(form, "form")), np.asarray(decoded))
    grey = np.asarray(decoded.convert("L"))
    assert open_image(grey, "grey").mode == "RGB"


def test_a_dataset_that_already_makes_tensors_is_refused_with_what_to_do():
    dataset = FakeData(4, (3, 8, 8), num_classes=2, transform=ToTensor())
    entry = collect(dataset, ["a", "b"]).entries[0]
    with pytest.raises(UserError, match="leave out the dataset's transform"):
        entry.open()


def test_an_image_that_a_dataset_cannot_read_is_named(folder):
    (folder / "red" / "1.png").write_text("no image")
    entry = collect(ImageFolder(str(folder))).entries[3]
    with pytest.raises(UserError, match=r"the dataset cannot read image 3 \(cannot identify image file .*1.png"):
        entry.open()


def test_held_out_images_get_the_labels_of_the_trained_classes():
    held = among(collect_some({"blue": [BLUE], "red": [RED]}), ["red", "green", "blue"])
    assert [entry.label for entry in held] == [2, 0]
    assert [entry.label for entry in among(collect_some({"green": [RED]}), ["red", "green"])] == [1]
