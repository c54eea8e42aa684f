"""ImageNet, its variants and FGVC Aircraft in small, as folders on disk; and what `check` says of them."""

import io
import shutil

import pytest
from PIL import Image

from mmrl_core.data.catalog import BENCHMARK, fingerprint, open_source
from mmrl_core.data.check import PUBLISHED, check, describe
from mmrl_core.errors import UserError

NAMES = "n02 tench\nn01 white shark\nn03 white shark\nn04 hen\n"  # not in wnid order; one name twice, as ImageNet has


def jpeg(shade: int) -> bytes:
    encoded = io.BytesIO()
    Image.new("L", (8, 8), shade).save(encoded, format="JPEG")
    return encoded.getvalue()


def fill(folder, count: int = 2) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number}.JPEG").write_bytes(jpeg(10 * number))


@pytest.fixture
def root(tmp_path):
    imagenet = tmp_path / "imagenet"
    for split, count in (("train", 3), ("val", 2)):
        for wnid in ("n03", "n01", "n02"):
            fill(imagenet / "images" / split / wnid, count)
    for label in range(4):
        fill(tmp_path / "imagenetv2" / "imagenetv2-matched-frequency-format-val" / str(label), 1)
    rendition = tmp_path / "imagenet-rendition" / "imagenet-r"
    for wnid in ("n04", "n01"):
        fill(rendition / wnid)
    (rendition / "README.txt").write_text("not a class")
    for folder in (imagenet, tmp_path / "imagenetv2", rendition.parent):
        (folder / "classnames.txt").write_text(NAMES)
    return tmp_path


def test_imagenets_labels_are_the_sorted_folders_and_its_val_folder_is_the_test_set(root):
    source = open_source("imagenet", root)
    assert source.class_names == ["white shark", "tench", "white shark"]
    assert (len(source.train), source.val, len(source.test)) == (9, [], 6)
    assert source.test[2] == ("val/n02/0.JPEG", 1, "tench") and source.read(source.test[2]) == jpeg(0)


def test_a_variant_has_test_images_only_and_its_own_part_of_the_labels(root):
    source = open_source("imagenet_r", root)
    assert source.class_names == ["white shark", "hen"]  # n01, n04; the README is no class
    assert not source.train and not source.val and [item.label for item in source.test] == [0, 0, 1, 1]


def test_imagenetv2s_folders_are_line_numbers_of_the_list(root):
    source = open_source("imagenetv2", root)
    assert [(item.path, item.class_name) for item in source.test][:2] == [
        ("0/0.JPEG", "tench"),
        ("1/0.JPEG", "white shark"),
    ]


@pytest.mark.parametrize(("damage", "message"), [
    (lambda root: (root / "imagenet/classnames.txt").unlink(), r"cannot read the list .*classnames\.txt"),
    (lambda root: (root / "imagenet/classnames.txt").write_text("n01\n"), "the line 'n01' is no wnid and a name"),
    (lambda root: fill(root / "imagenet/images/train/n99"), "n99 is a class that classnames.txt does not name"),
    (lambda root: shutil.rmtree(root / "imagenet/images/val/n02"), "the class folder .*n02 is not there"),
    (lambda root: (root / "imagenet/images/val/n02/x.JPEG").symlink_to("/etc/hostname"), "is a link"),
])  # fmt: skip
def test_what_is_wrong_with_imagenet_is_named(root, damage, message):
    damage(root)
    with pytest.raises(UserError, match=message):
        open_source("imagenet", root)
    (row,) = check(root, ["imagenet"])
    assert row["state"] == "incomplete" and len(row["problems"]) == 1


@pytest.fixture
def aircraft(tmp_path):
    folder = tmp_path / "fgvc_aircraft"
    fill(folder / "images", 0)
    (folder / "variants.txt").write_text("707-320\nBAE 146-200\n")
    for number, split in enumerate(("train", "val", "test")):
        lines = [f"{number}00 BAE 146-200", f"{number}01 707-320"]
        (folder / f"images_variant_{split}.txt").write_text("\n".join(lines) + "\n")
        for line in lines:
            (folder / "images" / f"{line.split()[0]}.jpg").write_bytes(jpeg(number))
    return tmp_path


def test_aircraft_labels_are_line_numbers_of_the_variants(aircraft):
    source = open_source("fgvc_aircraft", aircraft)
    assert source.class_names == ["707-320", "BAE 146-200"]
    assert source.train == [("000.jpg", 1, "BAE 146-200"), ("001.jpg", 0, "707-320")]
    assert source.read(source.test[0]) == jpeg(2)


@pytest.mark.parametrize(("line", "message"), [
    ("300 Concorde", "the line '300 Concorde' is no image id and a variant"),
    ("../../x 707-320", "is no image id and a variant"),
    ("999 707-320", r"names 999\.jpg, which is not in images \(1 missing in all\)"),
])  # fmt: skip
def test_a_line_that_names_no_aircraft_is_refused(aircraft, line, message):
    with (aircraft / "fgvc_aircraft" / "images_variant_val.txt").open("a") as file:
        file.write(line)
    with pytest.raises(UserError, match=message):
        open_source("fgvc_aircraft", aircraft)


@pytest.mark.parametrize("key", ["imagenet", "imagenet_r"])
def test_a_fingerprint_changes_with_any_image(root, key):
    before = fingerprint(key, root)["digest"]
    assert fingerprint(key, root)["digest"] == before
    image = next(root.rglob(f"{'images/val' if key == 'imagenet' else 'imagenet-r'}/n01/0.JPEG"))
    image.write_bytes(jpeg(200) + b" ")
    assert fingerprint(key, root)["digest"] != before


def test_check_counts_what_is_there_and_compares_it_with_the_published(aircraft):
    (aircraft / "fgvc_aircraft/images/000.jpg").unlink()
    rows = {row["dataset"]: row for row in check(aircraft)}
    assert rows.keys() == BENCHMARK.keys() and rows["dtd"]["state"] == "absent"
    row = rows["fgvc_aircraft"]
    assert row["state"] == "incomplete" and row["missing"] == 1
    assert row["found"] == {"train": 1, "val": 2, "test": 2} and row["expected"]["train"] == 3334
    assert row["problems"][0] == "1 images are missing, the first is 000.jpg"
    assert "train has 1 images, published are 3334" in row["problems"]


def test_the_list_holds_all_fifteen_with_what_the_papers_say_of_them():
    rows = {row["dataset"]: row for row in describe()}
    assert len(BENCHMARK) == 15 == len(PUBLISHED) and rows.keys() > BENCHMARK.keys()
    assert rows["dtd"]["template"] == "{} texture."
    assert rows["eurosat"]["published"] == {"train": 13500, "val": 5400, "test": 8100}
    assert rows["digits"]["needs"] == "" and rows["imagenet_a"]["needs"].startswith("imagenet-adversarial/imagenet-a")
