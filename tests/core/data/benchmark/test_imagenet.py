"""Damaged and odd folders of ImageNet's kind and of FGVC Aircraft: refused by name, never read as something else."""

import pytest

from mmrl_core.data.catalog import fingerprint, open_source
from mmrl_core.errors import UserError

V2 = "imagenetv2/imagenetv2-matched-frequency-format-val"
RENDITION = "imagenet-rendition/imagenet-r"


def put(root, *paths: str, text: str = "") -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


@pytest.fixture
def root(tmp_path):
    data = tmp_path / "data"
    put(data, *(f"imagenet/images/{part}/{wnid}/{n}.JPEG" for part in ("train", "val") for wnid in ("n1", "n2")
                for n in (2, 1)))  # fmt: skip
    put(data, f"{RENDITION}/n1/a.jpg", f"{RENDITION}/n2/a.jpg", f"{V2}/0/a.jpeg", f"{V2}/1/a.jpeg")
    for folder in ("imagenet", "imagenetv2", "imagenet-rendition"):
        put(data, f"{folder}/classnames.txt", text="n1 crane\nn2 hen\n")
    return data


def test_items_are_sorted_by_folder_then_by_file_name(root):
    paths = [item.path for item in open_source("imagenet", root).train]
    assert paths == ["train/n1/1.JPEG", "train/n1/2.JPEG", "train/n2/1.JPEG", "train/n2/2.JPEG"]


def test_two_classes_may_share_a_name_and_stay_two(root):
    put(root, "imagenet/classnames.txt", text="n1 crane\nn2 crane\n")
    source = open_source("imagenet", root)
    assert source.class_names == ["crane", "crane"]
    assert [(item.path, item.label) for item in source.test][1:3] == [("val/n1/2.JPEG", 0), ("val/n2/1.JPEG", 1)]


def test_hidden_entries_and_folders_named_like_images_are_no_images(root):
    put(root, f"{RENDITION}/n1/._a.jpg", f"{RENDITION}/.cache/b.jpg", f"{RENDITION}/n1/c.jpg/note.txt")
    assert [item.path for item in open_source("imagenet_r", root).test] == ["n1/a.jpg", "n2/a.jpg"]


def test_a_linked_class_folder_is_refused(root):
    (root / RENDITION / "n2").rename(root.parent / "n2")
    (root / RENDITION / "n2").symlink_to(root.parent / "n2")
    with pytest.raises(UserError, match="n2 is a link"):
        open_source("imagenet_r", root)


def test_train_and_val_may_be_links_as_coops_guide_has_them_and_the_fingerprint_sees_behind_them(root):
    for part in ("train", "val"):
        (root / "imagenet/images" / part).rename(root.parent / part)
        (root / "imagenet/images" / part).symlink_to(root.parent / part)
    source, before = open_source("imagenet", root), fingerprint("imagenet", root)
    assert source.read(source.train[0]) == b"" and before["counts"] == {"files": 8}
    put(root.parent, "val/n2/1.JPEG", text="changed")
    assert fingerprint("imagenet", root)["digest"] != before["digest"]


@pytest.mark.parametrize(("key", "path", "text", "message"), [
    ("imagenet_r", "imagenet-rendition/classnames.txt", "n1 crane\nn1 hen\n", "names n1 2 times, not once"),
    ("imagenetv2", "imagenetv2/classnames.txt", "", "names no class 0 times"),
    ("imagenetv2", f"{V2}/2/a.jpeg", "", "/2 is no class of this dataset"),
    ("imagenet", "imagenet/images/val/n3/1.JPEG", "", "val/n3 is no class of this dataset"),
])  # fmt: skip
def test_a_list_and_folders_that_do_not_agree_are_refused(root, key, path, text, message):
    put(root, path, text=text)
    with pytest.raises(UserError, match=message):
        open_source(key, root)


def test_a_folder_without_classes_is_refused(root):
    put(root, "imagenet-sketch/images/README.txt")
    put(root, "imagenet-sketch/classnames.txt", text="n1 crane\n")
    with pytest.raises(UserError, match="images holds no class folder"):
        open_source("imagenet_sketch", root)


def test_a_missing_val_folder_is_named_with_what_is_needed(root):
    (root / "imagenet/images/val").rename(root.parent / "away")
    with pytest.raises(UserError, match=r"images/val is not there; the root must hold imagenet/images/train, "):
        open_source("imagenet", root)


def test_an_aircraft_variant_listed_twice_is_refused(tmp_path):
    put(tmp_path, "fgvc_aircraft/images/1.jpg")
    put(tmp_path, "fgvc_aircraft/variants.txt", text="707-320\n707-320\n")
    put(tmp_path, *(f"fgvc_aircraft/images_variant_{split}.txt" for split in ("train", "val", "test")))
    with pytest.raises(UserError, match="names '707-320' more than once"):
        open_source("fgvc_aircraft", tmp_path)
