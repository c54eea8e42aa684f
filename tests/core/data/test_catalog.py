import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmrl_core.data.catalog import fingerprint, known_keys, open_source
from mmrl_core.errors import UserError
from tests.support.photographs import needs_photographs

GOLDEN = Path(__file__).parents[2] / "golden"


def test_digits_split_forty_twenty_and_the_rest_of_every_class(digits):
    assert (len(digits.train), len(digits.val), len(digits.test)) == (400, 200, 1197)
    assert set(Counter(item.label for item in digits.train).values()) == {40}
    assert set(Counter(item.label for item in digits.val).values()) == {20}
    assert len({item.path for item in digits.train + digits.val + digits.test}) == 1797


def test_digits_lists_are_in_class_order_and_always_the_same(digits):
    assert [item.label for item in digits.test] == sorted(item.label for item in digits.test)
    assert digits.train[0].class_name == digits.class_names[0] == "zero"
    again = open_source("digits", "nowhere")
    assert (again.train, again.val, again.test) == (digits.train, digits.val, digits.test)


def test_a_digit_is_a_32_pixel_png_of_the_scikit_learn_image_light_on_dark(digits):
    from sklearn.datasets import load_digits

    item = digits.test[5]
    image = Image.open(io.BytesIO(digits.read(item)))
    assert (image.format, image.size) == ("PNG", (32, 32))
    original = load_digits().images[int(item.path[7:11])]
    assert np.corrcoef(np.asarray(image.resize((8, 8), Image.Resampling.BOX)).ravel(), original.ravel())[0, 1] > 0.95
    assert digits.read(item) == open_source("digits", "").read(item)


@needs_photographs
def test_caltech101_opens_with_the_counts_of_its_split():
    source = open_source("caltech101", os.environ["MMRL_TEST_DATA"])
    assert (len(source.train), len(source.val), len(source.test), len(source.class_names)) == (4128, 1649, 2465, 100)
    assert source.read(source.train[0])[:2] == b"\xff\xd8"
    assert source.templates == ["a photo of a {}."]
    runs = json.loads((GOLDEN / "caltech101_label_runs.json").read_text())
    for split in ("train", "val"):
        labels = [label for label, length in runs[split] for _ in range(length)]
        assert [item.label for item in source.items(split)] == labels


def test_a_folder_opens_with_its_items_names_and_bytes(pets):
    source = pets.open()
    assert source.class_names == ["cat", "dog", "newt"]
    assert (source.key, source.templates) == ("oxford_pets", ["a photo of a {}, a type of pet."])
    assert [list(item) for item in source.val] == pets.splits["val"]
    assert source.read(source.test[0]) == (pets.images / source.test[0].path).read_bytes()
    assert source.image_extension(source.test[0]) == "jpg"


def test_an_unknown_key_lists_the_known_ones():
    with pytest.raises(
        UserError,
        match="caltech101, digits, digits_inverted, .*, fgvc_aircraft, food101, imagenet, ",
    ):
        open_source("cifar", "")
    assert len(known_keys()) == 23


def test_an_alias_opens_the_data_set_under_its_own_key(pets):
    (pets.root / "oxford_pets").rename(pets.root / "dtd")
    (pets.root / "dtd" / pets.split_path.name).rename(pets.root / "dtd" / "split_zhou_DescribableTextures.json")
    assert open_source("describable_textures", pets.root).key == "dtd"
    assert fingerprint("describable_textures", pets.root) == fingerprint("dtd", pets.root)


def test_stanford_cars_keeps_its_images_beside_the_split_file(pets):
    pets.images.rename(pets.root / "stanford_cars")
    pets.split_path.rename(pets.root / "stanford_cars" / "split_zhou_StanfordCars.json")
    assert len(open_source("stanford_cars", pets.root).train) == 15


@pytest.mark.parametrize(
    ("gone", "named"),
    [("", "data root"), ("oxford_pets", "data set folder"), ("oxford_pets/images", "images folder"),
     ("oxford_pets/split_zhou_OxfordPets.json", "split file")],
)  # fmt: skip
def test_what_is_missing_is_named(pets, gone, named):
    (pets.root / gone).rename(pets.root.parent / "away")
    with pytest.raises(UserError, match=f"the {named} .*{gone} is not there"):
        pets.open()


@pytest.mark.parametrize(
    "row",
    [["a.jpg", 0], ["a.jpg", "0", "cat"], ["a.jpg", True, "cat"], ["a.jpg", 0, " "], ["", 0, "cat"], "a.jpg", None],
)
def test_a_malformed_row_is_named(pets, row):
    pets.splits["val"][2] = row
    pets.save()
    with pytest.raises(UserError, match="split_zhou_OxfordPets.json, val item 2"):
        pets.open()


@pytest.mark.parametrize("text", ["{", "[]", '{"train": [], "val": []}', '{"train": [], "val": [], "test": 3}', "\xff"])
def test_a_malformed_split_file_is_named(pets, text):
    pets.split_path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="split_zhou_OxfordPets.json"):
        pets.open()


def test_an_empty_split_file_is_refused(pets):
    pets.save({"train": [], "val": [], "test": []})
    with pytest.raises(UserError, match="labels must be 0 to n-1"):
        pets.open()


@pytest.mark.parametrize(("label", "said"), [(4, "none has label 2"), (-1, "-1 is negative")])
def test_labels_with_a_gap_are_refused(pets, label, said):
    pets.rewrite(lambda path, old, name: [path, label if old == 2 else old, name])
    with pytest.raises(UserError, match=said):
        pets.open()


def test_one_label_with_two_names_is_refused(pets):
    pets.splits["test"][0][2] = "tiger"
    pets.save()
    with pytest.raises(UserError, match="label 0 is named both 'cat' and 'tiger'"):
        pets.open()


@pytest.mark.parametrize("name", ["sea_cat", "sea cat"])
def test_two_labels_with_one_name_in_the_prompt_are_refused(pets, name):
    pets.rewrite(lambda path, label, old: [path, label, {0: "sea cat", 2: name}.get(label, old)])
    with pytest.raises(UserError, match=f"labels 0 and 2 are both named '{name}'"):
        pets.open()


@pytest.mark.parametrize("path", ["../images/cat/train_0.JPG", "cat/../cat/train_0.JPG", "/etc/passwd"])
def test_a_path_that_leaves_the_images_folder_is_refused(pets, path):
    pets.splits["train"][1][0] = path
    pets.save()
    with pytest.raises(UserError, match="train item 1: the path .* leaves the images folder"):
        pets.open()


def test_a_link_out_of_the_images_folder_is_refused(pets):
    image = pets.images / pets.splits["test"][0][0]
    image.rename(pets.root / "elsewhere.jpg")
    image.symlink_to(pets.root / "elsewhere.jpg")
    with pytest.raises(UserError, match="a link out of"):
        pets.open()


def test_a_linked_folder_out_of_the_images_folder_is_refused(pets):
    (pets.images / "cat").rename(pets.root / "cat")
    (pets.images / "cat").symlink_to(pets.root / "cat")
    with pytest.raises(UserError, match="a link out of"):
        pets.open()


def test_a_link_within_the_images_folder_is_an_image_like_any_other(pets):
    (pets.images / "cat").rename(pets.images / "felines")
    (pets.images / "cat").symlink_to("felines")
    assert pets.open().read(pets.open().train[0])


def test_missing_images_are_counted_in_all_lists_and_the_first_is_named(pets):
    for split in pets.splits:
        (pets.images / pets.splits[split][0][0]).unlink()
    with pytest.raises(UserError, match=r"OxfordPets.json names cat/train_0.JPG, .*\(3 missing in all\)"):
        pets.open()


def test_an_image_that_vanishes_after_opening_is_named(pets):
    source = pets.open()
    (pets.images / source.test[0].path).unlink()
    with pytest.raises(UserError, match="test_0.JPG"):
        source.read(source.test[0])


def test_a_file_that_is_no_image_by_name_is_refused(pets):
    (pets.images / "cat" / "note.json").write_text("{}")
    pets.splits["test"][0][0] = "cat/note.json"
    pets.save()
    source = pets.open()
    with pytest.raises(UserError, match="note.json is no image file name"):
        source.image_extension(source.test[0])


def test_a_fingerprint_is_stable_json_and_notices_any_file_that_changes(pets):
    first = fingerprint("oxford_pets", pets.root)
    assert first == json.loads(json.dumps(first)) == fingerprint("oxford_pets", pets.root)
    assert first["counts"] == {"train": 15, "val": 9, "test": 6, "files": 30}
    image = pets.images / pets.splits["test"][0][0]
    os.utime(image, ns=(0, image.stat().st_mtime_ns + 1))
    touched = fingerprint("oxford_pets", pets.root)
    assert touched["digest"] != first["digest"] and touched["split_sha256"] == first["split_sha256"]
    pets.splits["train"].pop()
    pets.save()
    assert fingerprint("oxford_pets", pets.root)["split_sha256"] != first["split_sha256"]


def test_a_fingerprint_of_digits_needs_no_root_and_names_its_dataset():
    assert fingerprint("digits", "nowhere") == fingerprint("digits", "")
    assert fingerprint("digits", "")["dataset"] == "digits"


def test_importing_and_fingerprinting_stay_light(pets):
    code = (
        "import sys; from mmrl_core.data import catalog, shards, splits;"
        f"catalog.fingerprint('digits', ''); catalog.fingerprint('oxford_pets', {str(pets.root)!r});"
        "heavy = {'torch', 'torchvision', 'sklearn', 'webdataset', 'numpy'} & set(sys.modules);"
        "sys.exit(' '.join(sorted(heavy)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
