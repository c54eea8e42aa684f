"""A folder of class folders; what is the same for tables and shards (names, base classes, fingerprints) as well."""

import os
import subprocess
import sys

import pytest
from PIL import Image

from mmrl_core.config import parse
from mmrl_core.data.catalog import fingerprint, open_source
from mmrl_core.data.own import dataset
from mmrl_core.data.own.settings import OwnSection
from mmrl_core.data.shards import read_examples, read_manifest, write_few_shot, write_pool
from mmrl_core.errors import UserError
from tests.core.data.odd_images import encoded, oriented, png
from tests.core.data.own.own_data import SPLITS, counts, noted, where


def write_classes(tmp_path, *lines):
    (tmp_path / "classes.csv").write_text("\n".join(["class,name", *lines]), encoding="utf-8")
    return {"classes": str(tmp_path / "classes.csv")}


def test_a_folder_becomes_a_source_by_label_and_path(own_pets):
    source = own_pets.open(template="a photo of a {}, a pet.")
    assert (source.key, source.class_names) == ("pets", ["cat", "dog", "newt"])
    assert (source.templates, source.base, source.notes) == (["a photo of a {}, a pet."], None, [])
    assert [counts(source, label) for label in range(3)] == [(5, 2, 3)] * 3
    for split in SPLITS:
        assert source.items(split) == sorted(source.items(split), key=lambda item: (item.label, item.path))
    assert all(source.read(item) == (own_pets.root / item.path).read_bytes() for item in source.test)


def test_a_folder_goes_all_the_way_into_shards_and_back(own_pets, tmp_path):
    own_pets.add("cat/phone.JPG", oriented("JPEG", 6))
    spec = {"pets": OwnSection(images=str(own_pets.root), base_classes=["newt", "cat"])}
    source = open_source("pets", "", spec)
    for name, write, arguments in (("pool", write_pool, ()), ("few", write_few_shot, (2, 1))):
        (tmp_path / name).mkdir()
        write(source, *arguments, tmp_path / name)
    manifest = read_manifest(tmp_path / "pool")
    assert (manifest["base"], manifest["novel"], manifest["notes"]) == ([0, 2], [1], source.notes)
    for name, split, half, labels in (("pool", "test", "base", {0, 2}), ("pool", "val", "novel", {1}),
                                      ("few", "train", "base", {0, 2})):  # fmt: skip
        examples = read_examples(tmp_path / name, split, half)
        assert {example.label for example in examples} == labels
        assert all(example.image == (own_pets.root / example.path).read_bytes() for example in examples)
    assert fingerprint("pets", "", spec)["digest"] != fingerprint("pets", "", {"pets": OwnSection(**{
        **spec["pets"].model_dump(), "base_classes": None})})["digest"]  # fmt: skip


def test_no_torch_and_no_numpy_is_needed_to_open_a_folder(own_pets):
    code = (
        "import sys; from mmrl_core.data.own.settings import OwnSection; from mmrl_core.data.own import dataset;"
        f"dataset.open_source('pets', OwnSection(images={str(own_pets.root)!r}));"
        "print({'torch', 'numpy'} & {*sys.modules})"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_names_of_any_kind_are_kept(folder):
    folder.add("ocelot d'été/Bild 1.PNG").add("ocelot d'été/b.JPeG").add("日本 猫/nested/deeper/猫 #1.png").fill(
        "a b", 1
    )
    source = folder.open()
    assert source.class_names == ["a b", "ocelot d'été", "日本 猫"]
    assert {source.image_extension(item) for item in source.train + source.val + source.test} == {"png", "jpeg"}
    assert "日本 猫/nested/deeper/猫 #1.png" in where(source)


def test_folders_that_are_numbers_lie_by_value_and_are_noted(folder):
    source = folder.fill("10", 1).fill("2", 1).open()
    assert source.class_names == ["2", "10"]
    assert noted(source, "class names are numbers")


def test_clutter_is_ignored_and_other_files_are_counted(own_pets):
    first = own_pets.open()
    for clutter in (".DS_Store", "cat/Thumbs.db", "dog/Desktop.ini", ".git/x/a.png", "__MACOSX/cat/._1.png",
                    "cat/._001.png", "newt/.ipynb_checkpoints/b.png"):  # fmt: skip
        own_pets.add(clutter, b"")
    assert (own_pets.open().notes, where(own_pets.open())) == ([], where(first))
    (own_pets.root / "empty").mkdir()
    own_pets.add("cat/readme.txt", b"").add("LICENSE", b"")
    assert own_pets.open().notes == [
        "2 files that are no images were left out, the first LICENSE",
        "1 folders without an image were left out: empty",
    ]


@pytest.mark.usefixtures("without_heif")
def test_images_of_formats_that_are_not_read_are_noted_with_what_to_make_of_them(own_pets, folder):
    own_pets.add("cat/a.HEIC", b"").add("dog/b.heic", b"").add("dog/c.psd", b"").add("dog/d.txt", b"")
    assert own_pets.open().notes == [
        "1 files that are no images were left out, the first dog/d.txt",
        "2 files in the format HEIC were left out, the first cat/a.HEIC; to use it, convert it to JPEG, "
        "or `pip install 'mmrl-ops[heif]'`",
        "1 files in the format Photoshop were left out, the first dog/c.psd; to use it, convert it to PNG",
    ]


@pytest.mark.usefixtures("without_heif")
def test_a_folder_of_nothing_but_such_images_is_refused_with_what_to_make_of_them(folder):
    folder.add("cat/a.heic", b"").add("dog/b.heic", b"").add("dog/c.txt", b"")
    with pytest.raises(UserError, match=r"no image that is read: .*2 files in the format HEIC .*convert it to JPEG"):
        folder.open()


def test_an_image_outside_the_class_folders_is_refused(own_pets):
    own_pets.add("stray.png")
    with pytest.raises(UserError, match="pets: stray.png lies in no class folder; move it"):
        own_pets.open()


def link_out(own_pets, tmp_path):
    (tmp_path / "secret.png").write_bytes(png(999))
    (own_pets.root / "cat/bad.png").symlink_to(tmp_path / "secret.png")


def link_to_a_like_named_neighbour(own_pets, tmp_path):
    (tmp_path / "pets2").mkdir()
    (tmp_path / "pets2/secret.png").write_bytes(png(999))
    (own_pets.root / "cat/bad.png").symlink_to("../../pets2/secret.png")


def broken_link(own_pets, tmp_path):
    (own_pets.root / "cat/bad.png").symlink_to("nowhere.png")


def link_loop(own_pets, tmp_path):
    (own_pets.root / "cat/bad.png").symlink_to("bad.png")


def link_to_a_folder(own_pets, tmp_path):
    (own_pets.root / "bad.png").symlink_to(own_pets.root / "cat")


def pipe(own_pets, tmp_path):
    os.mkfifo(own_pets.root / "cat/bad.png")


def no_utf8(own_pets, tmp_path):
    (own_pets.root / os.fsdecode(b"cat/bad.png \xff.png")).write_bytes(png(999))


@pytest.mark.parametrize(
    "spoil", [link_out, link_to_a_like_named_neighbour, broken_link, link_loop, link_to_a_folder, pipe, no_utf8]
)
def test_what_is_no_file_of_the_folder_is_refused_by_name(own_pets, tmp_path, spoil):
    spoil(own_pets, tmp_path)
    with pytest.raises(UserError, match=r"bad\.png"):
        own_pets.open()


def test_a_link_inside_the_folder_is_a_file_as_any_other(own_pets):
    (own_pets.root / "cat/again.png").symlink_to("000.png")
    assert where(own_pets.open())["cat/again.png"] == where(own_pets.open())["cat/000.png"]


@pytest.mark.parametrize("folders", [[], ["cat"]])
def test_fewer_than_two_classes_are_refused(folder, folders):
    for name in folders:
        folder.fill(name, 3)
    with pytest.raises(UserError, match="at least 2 are needed"):
        folder.open()


@pytest.mark.parametrize("name", ["sea\nlion", "sea\tlion", "\x07"])
def test_a_name_with_a_line_break_or_the_like_is_refused(folder, name):
    folder.fill("cat", 3).fill(name, 3)
    with pytest.raises(UserError, match="has a line break or control character; rename it"):
        folder.open()


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere is not there"):
        dataset.open_source("pets", OwnSection(images=str(tmp_path / "nowhere")))


@pytest.mark.parametrize("twin", ["sea_lion", "Sea lion", "sea  lion", "Sea&nbsp;lion", "&#83;ea lion", "ｓｅａ lion"])
def test_names_that_make_the_same_prompt_are_refused(folder, twin):
    folder.fill("sea lion", 2).fill(twin, 2)
    with pytest.raises(UserError, match="'sea lion' and .*|.* and 'sea lion' make the same prompt; rename one"):
        folder.open()


def test_a_table_of_classes_gives_readable_names_without_changing_the_order(own_pets, tmp_path):
    classes = write_classes(tmp_path, "newt,Alpine newt", "cat,wildcat", "dog,dog", "unused,other")
    source = own_pets.open(**classes, base_classes=["Alpine newt", "dog"])
    assert (source.class_names, source.base) == (["wildcat", "dog", "Alpine newt"], [1, 2])
    assert own_pets.open(**classes, base_classes=["newt"]).base == [2]
    assert where(source) == where(own_pets.open())


@pytest.mark.parametrize(("lines", "message"), [
    (["cat,cat", "dog,dog", "newd,newt"], "names no class 'newt'; add it .did you mean 'newd'"),
    (["cat,cat", "dog,cat", "newt,newt"], "'cat' and 'cat' make the same prompt"),
    (["cat,cat", "cat,lynx", "dog,dog"], "line 3: 'cat' is named 'lynx'"),
    (["cat,cat", "dog,"], "line 3: 'dog' is named ''"),
    (["cat,cat", "dog,big, bad dog"], "line 3 has 3 columns, the header 2; quote commas"),
])  # fmt: skip
def test_a_table_of_classes_that_does_not_fit_is_refused(own_pets, tmp_path, lines, message):
    with pytest.raises(UserError, match=message):
        own_pets.open(**write_classes(tmp_path, *lines))


@pytest.mark.parametrize(("base", "message"), [
    (["cat", "nwet"], "data.own.pets.base_classes names 'nwet', which is no class; did you mean 'newt'"),
    (["cat", "dog", "newt"], "3 of 3 classes"), ([], "0 of 3 classes"),
])  # fmt: skip
def test_base_classes_that_do_not_fit_are_refused(own_pets, base, message):
    with pytest.raises(UserError, match=message):
        own_pets.open(base_classes=base)


def test_a_damaged_image_is_named_when_the_data_are_prepared(own_pets, tmp_path):
    own_pets.add("cat/000.png", encoded_half())
    (tmp_path / "few").mkdir()
    with pytest.raises(UserError, match=r"^cannot read the image cat/000.png of pets"):
        write_few_shot(own_pets.open(test_share=0.01, val_share=0), 10, 1, tmp_path / "few")


def test_all_damaged_images_are_found_when_the_data_are_prepared_and_the_first_few_named(own_pets, tmp_path):
    for number in range(8):
        own_pets.add(f"dog/{number:03d}.png", encoded_half() + bytes([number]))
    (tmp_path / "few").mkdir()
    with pytest.raises(
        UserError, match=r"^\d images cannot be used: .*dog/00\d.png of pets.*; and \d more$"
    ) as refused:
        write_few_shot(own_pets.open(test_share=0.01, val_share=0), 10, 1, tmp_path / "few")
    assert len(refused.value.problems) == len({line.split()[4] for line in refused.value.problems}) >= 7


def encoded_half():
    return encoded(Image.effect_noise((64, 64), 50), "PNG")[:900]


def touch(own_pets, spec):
    os.utime(own_pets.root / "cat/000.png", ns=(0, 0))


def grow(own_pets, spec):
    own_pets.add("cat/new.png")


def rename(own_pets, spec):
    (own_pets.root / "cat/000.png").rename(own_pets.root / "cat/x.png")


@pytest.mark.parametrize("change", [touch, grow, rename])
def test_the_fingerprint_changes_with_a_file(own_pets, change):
    spec = OwnSection(images=str(own_pets.root))
    before = dataset.fingerprint("pets", spec)
    assert dataset.fingerprint("pets", spec) == before
    assert (before["dataset"], before["counts"]) == ("pets", {"images": 30, "classes": 3, "files": 30})
    change(own_pets, spec)
    after = dataset.fingerprint("pets", spec)
    assert after["files_sha256"] != before["files_sha256"] and after["digest"] != before["digest"]


@pytest.mark.parametrize(
    "setting", [{"template": "{}"}, {"test_share": 0.2}, {"split_seed": 3}, {"base_classes": ["cat"]}]
)
def test_the_fingerprint_changes_with_a_setting(own_pets, setting):
    one, other = (dataset.fingerprint("pets", OwnSection(images=str(own_pets.root), **more)) for more in ({}, setting))
    assert one["files_sha256"] == other["files_sha256"] and one["digest"] != other["digest"]


def test_the_fingerprint_changes_with_the_table_of_classes(own_pets, tmp_path):
    spec = OwnSection(images=str(own_pets.root), **write_classes(tmp_path, "cat,a", "dog,b", "newt,c"))
    before = dataset.fingerprint("pets", spec)["digest"]
    write_classes(tmp_path, "cat,a", "dog,b", "newt,cc")
    assert dataset.fingerprint("pets", spec)["digest"] != before
    (tmp_path / "classes.csv").unlink()
    with pytest.raises(UserError, match="cannot find .*classes.csv"):
        dataset.fingerprint("pets", spec)


@pytest.mark.parametrize(("values", "message"), [
    ({}, "name images"), ({"images": "a", "shards": "b"}, "name images"),
    ({"images": "a", "template": "a pet"}, "template .* needs {}"),
    ({"images": "a", "val_share": 0.7}, "something to train on"), ({"images": "a", "test_share": 0}, "above 0"),
])  # fmt: skip
def test_a_description_that_cannot_be_is_refused(values, message):
    with pytest.raises(UserError, match=message):
        parse(OwnSection, values, "params.yaml")
