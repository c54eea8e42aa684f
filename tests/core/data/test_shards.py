import gc
import json
import random
import tarfile
import tracemalloc
from dataclasses import replace

import pytest
import webdataset
from PIL import Image

from mmrl_core.data import sets, shards
from mmrl_core.data.images import decode
from mmrl_core.data.sets import read_set
from mmrl_core.data.shards import read_examples, read_manifest, stream_examples, write_few_shot, write_pool
from mmrl_core.errors import UserError


def written(write, *arguments, to):
    to.mkdir(parents=True)
    write(*arguments, to)
    return to


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def pool(pets, tmp_path):
    return written(write_pool, pets.open(), to=tmp_path / "pool")


def test_two_runs_write_the_same_bytes(pets, tmp_path):
    for write, arguments in ((write_pool, ()), (write_few_shot, (2, 1))):
        first = written(write, pets.open(), *arguments, to=tmp_path / f"{write.__name__} a")
        second = written(write, pets.open(), *arguments, to=tmp_path / f"{write.__name__} b")
        assert contents(first) == contents(second)


def test_headers_hold_no_time_no_owner_and_plain_permissions(pool):
    with tarfile.open(pool / "test-base-000000.tar") as tar:
        members = tar.getmembers()
    assert {(m.mtime, m.uname, m.gname, m.uid, m.gid, m.mode) for m in members} == {(0, "", "", 0, 0, 0o644)}
    assert [m.name for m in members[:2]] == ["test-00000000.jpg", "test-00000000.json"]


def test_a_pool_holds_val_and_test_in_a_shard_for_each_half(pool):
    manifest = read_manifest(pool)
    names = ["val-base-000000.tar", "val-novel-000000.tar", "test-base-000000.tar", "test-novel-000000.tar"]
    assert [shard["file"] for shard in manifest["shards"]] == names
    assert [shard["count"] for shard in manifest["shards"]] == [6, 3, 4, 2]
    assert (manifest["base"], manifest["novel"], manifest["counts"]) == ([0, 1], [2], {"val": 9, "test": 6})
    assert sorted(contents(pool)) == sorted([*names, "manifest.json"])


def test_examples_are_the_items_in_order_with_their_bytes_as_they_came(pets, pool):
    source = pets.open()
    examples = read_examples(pool, "test", "base") + read_examples(pool, "test", "novel")
    assert [(e.path, e.label, e.class_name) for e in examples] == source.test
    assert [e.image for e in examples] == [source.read(item) for item in source.test]
    assert [e.key for e in examples[-2:]] == ["test-00000004", "test-00000005"]


def test_streamed_examples_are_the_ones_read(pool):
    assert list(stream_examples(pool, "val", "novel")) == read_examples(pool, "val", "novel")


def test_a_few_shot_folder_holds_the_sampled_items_in_sampling_order(pets, tmp_path):
    folder = written(write_few_shot, pets.open(), 2, 1, to=tmp_path / "few")
    manifest = read_manifest(folder)
    examples = read_examples(folder, "train", "base") + read_examples(folder, "train", "novel")
    assert [e.path for e in examples] == manifest["items"]["train"]
    assert (manifest["shots"], manifest["seed"], manifest["counts"]) == (2, 1, {"train": 6, "val": 6})
    assert manifest["short_classes"] == {}
    index = int(examples[0].key.removeprefix("train-"))
    assert pets.open().train[index].path == examples[0].path


def test_a_class_short_of_training_items_is_reported_in_the_manifest(pets, tmp_path):
    pets.splits["train"] = [row for row in pets.splits["train"][:-3] if row[2] != "dog"]
    pets.save()
    folder = written(write_few_shot, pets.open(), 4, 1, to=tmp_path / "few")
    assert read_manifest(folder)["short_classes"] == {"dog": 0, "newt": 2}


def test_of_classes_that_share_a_name_each_is_counted_for_itself(pets, tmp_path):
    source = replace(pets.open(), class_names=["cat", *["twin"] * 2])
    folder = written(write_few_shot, source, 100, 1, to=tmp_path / "few")
    short = read_manifest(folder)["short_classes"]
    assert list(short) == ["cat", "twin (label 1)", "twin (label 2)"]
    assert sum(short.values()) == len(source.train)


def test_no_shard_is_written_for_an_empty_half(pets, tmp_path):
    pets.save({split: [row for row in rows if row[1] == 0] for split, rows in pets.splits.items()})
    folder = written(write_pool, pets.open(), to=tmp_path / "pool")
    assert sorted(contents(folder)) == ["manifest.json", "test-base-000000.tar", "val-base-000000.tar"]
    assert read_examples(folder, "test", "novel") == []


def test_a_long_split_goes_into_several_shards_and_comes_back_whole(pets, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_ITEMS", 4)
    folder = written(write_pool, pets.open(), to=tmp_path / "pool")
    assert [s["count"] for s in read_manifest(folder)["shards"] if s["split"] == "val"] == [4, 2, 3]
    assert [(e.path, e.label, e.class_name) for e in read_examples(folder, "val", "base")] == pets.open().val[:6]


def test_any_webdataset_reader_can_read_the_shards(pool):
    urls = [str(pool / "val-base-000000.tar")]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, nodesplitter=None, workersplitter=None))
    assert [sample["__key__"] for sample in samples] == [e.key for e in read_examples(pool, "val", "base")]
    assert json.loads(samples[0]["json"]) == {"path": "cat/val_0.JPG", "label": 0, "class_name": "cat"}


def test_webdatasets_own_writer_would_write_the_same_bytes(pool, tmp_path):
    for path in pool.glob("*.tar"):
        copy = tmp_path / path.name
        header = {"mtime": 0, "user": "", "group": "", "mode": 0o644}
        with open(copy, "wb") as file, webdataset.TarWriter(file, encoder=False, **header) as tar:
            for sample in webdataset.WebDataset(str(path), shardshuffle=False):
                tar.write({key: value for key, value in sample.items() if key == "__key__" or key[0] != "_"})
        assert copy.read_bytes() == path.read_bytes()


def test_a_folder_whose_name_looks_like_a_url_or_a_pattern_is_just_a_folder(pets, tmp_path):
    folder = written(write_pool, pets.open(), to=tmp_path / "pipe: 100%d#a?b::{1..3}")
    assert len(read_examples(folder, "test", "base")) == 4


def test_progress_is_reported_after_every_item(pets, tmp_path):
    calls = []
    (tmp_path / "few").mkdir()
    write_few_shot(pets.open(), 1, 1, tmp_path / "few", lambda done, total: calls.append((done, total)))
    assert calls == [(done, 6) for done in range(1, 7)]


def flip_a_byte(shard):
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)


def truncate(shard):
    shard.write_bytes(shard.read_bytes()[:-512])


@pytest.mark.parametrize("damage", [flip_a_byte, truncate, lambda shard: shard.unlink()])
@pytest.mark.parametrize("read", [read_examples, stream_examples])
def test_an_altered_truncated_or_missing_shard_is_named_before_any_example(pool, damage, read):
    damage(pool / "val-base-000000.tar")
    with pytest.raises(UserError, match=r"val-base-000000.tar .*run `mmrl prepare` again"):
        read(pool, "val", "base")
    assert len(read(pool, "val", "novel") if read is read_examples else list(read(pool, "val", "novel"))) == 3


def test_a_reader_of_base_classes_opens_no_novel_shard(pool):
    for shard in pool.glob("*-novel-*.tar"):
        shard.unlink()
    assert len(read_examples(pool, "test", "base")) == 4


def test_a_folder_without_a_manifest_says_to_prepare(tmp_path):
    with pytest.raises(UserError, match="run `mmrl prepare --dataset birds --shots 2 --seed 1` first, or `dvc repro`"):
        read_manifest("data/birds/2shot-seed1")
    with pytest.raises(UserError, match="run `mmrl prepare` first"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(("key", "value"), [("schema_version", 99), ("templates", ["a {}."]), ("digest", "")])
def test_an_altered_manifest_says_to_prepare_again(pool, key, value):
    manifest = json.loads((pool / "manifest.json").read_text())
    (pool / "manifest.json").write_text(json.dumps({**manifest, key: value}))
    with pytest.raises(UserError, match="run `mmrl prepare` again"):
        read_manifest(pool)


def test_the_digest_changes_with_the_seed_and_with_an_image(pets, tmp_path):
    first = read_manifest(written(write_few_shot, pets.open(), 2, 1, to=tmp_path / "first"))
    other_seed = read_manifest(written(write_few_shot, pets.open(), 2, 2, to=tmp_path / "other seed"))
    image = pets.images / first["items"]["train"][0]
    image.write_bytes(image.read_bytes() + b"\0")
    other_image = read_manifest(written(write_few_shot, pets.open(), 2, 1, to=tmp_path / "other image"))
    assert len({first["digest"], other_seed["digest"], other_image["digest"]}) == 3
    assert other_image["items"] == first["items"]


def test_a_split_the_folder_lacks_is_the_users_mistake_and_a_half_that_is_none_is_ours(pool):
    with pytest.raises(UserError, match="holds val and test, not train"):
        read_examples(pool, "train", "base")
    with pytest.raises(ValueError, match="half"):
        read_examples(pool, "test", "both")


@pytest.mark.parametrize("damaged", [b"", b"not an image", None])
def test_a_damaged_image_is_found_while_preparing(pets, tmp_path, damaged):
    path = pets.images / "dog" / "val_1.JPG"
    path.write_bytes(path.read_bytes()[:-100] if damaged is None else damaged)
    with pytest.raises(UserError, match="dog/val_1.JPG of oxford_pets"):
        written(write_pool, pets.open(), to=tmp_path / "pool")


def test_digits_can_be_prepared_and_read_back(digits, tmp_path):
    few = replace(digits, val=digits.val[::10], test=digits.test[::100])
    folder = written(write_few_shot, few, 1, 1, to=tmp_path / "few")
    examples = read_examples(folder, "train", "base")
    assert [e.class_name for e in examples] == ["zero", "one", "two", "three", "four"]
    index = int(examples[0].key.removeprefix("train-"))
    assert examples[0].image == digits.read(digits.train[index])


def test_of_several_damaged_images_the_first_in_order_is_named(pets, tmp_path):
    for name in ("newt/val_0.JPG", "dog/val_2.JPG", "dog/val_1.JPG", "cat/test_0.JPG"):
        (pets.images / name).write_bytes(b"not an image")
    with pytest.raises(UserError, match="dog/val_1.JPG of oxford_pets"):
        written(write_pool, pets.open(), to=tmp_path / "pool")


def test_a_set_holds_the_images_in_written_order_with_labels_from_0(pets, tmp_path):
    folder = written(write_few_shot, pets.open(), 2, 1, to=tmp_path / "few")
    examples = read_examples(folder, "train", "novel")
    items = read_set(folder, "train", ("novel",), "a {}.")
    assert (items.items, items.labels) == ([e.key for e in examples], [0, 0])
    assert [image.tobytes() for image in items.images] == [decode(e.image, "").tobytes() for e in examples]
    assert (items.class_names, items.template) == (["newt"], "a {}.")


def test_a_set_of_both_halves_has_all_classes_in_label_order_and_base_images_first(pets, tmp_path):
    source = replace(pets.open(), base=[0, 2])
    folder = written(write_few_shot, source, 2, 1, to=tmp_path / "few")
    items = read_set(folder, "train", ("base", "novel"), "a {}.")
    assert items.class_names == ["cat", "dog", "newt"]
    assert items.labels == [0, 0, 2, 2, 1, 1]
    assert items.items == [e.key for half in ("base", "novel") for e in read_examples(folder, "train", half)]


def test_a_set_is_checked_whole_before_an_image_is_decoded(pool, monkeypatch):
    flip_a_byte(pool / "val-novel-000000.tar")
    monkeypatch.setattr(sets, "decode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UserError, match="val-novel-000000.tar"):
        read_set(pool, "val", ("base", "novel"), "a {}.")


def streaming_peak(folder) -> int:
    """Bytes allocated at the most while the test images are streamed and decoded."""
    gc.collect()
    tracemalloc.start()
    for example in stream_examples(folder, "test", "base"):
        decode(example.image, example.path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_streaming_takes_no_more_memory_for_a_test_set_twenty_times_as_large(pets, tmp_path):
    noise = Image.frombytes("RGB", (100, 100), random.Random(0).randbytes(30_000))
    noise.save(pets.images / "cat" / "test_0.JPG", quality=100)  # 27 kB
    source = replace(pets.open(), val=[])
    few, many = [source.test[0]] * 20, [source.test[0]] * 400
    small = written(write_pool, replace(source, test=few), to=tmp_path / "small")
    large = written(write_pool, replace(source, test=many), to=tmp_path / "large")
    streaming_peak(small)  # what is imported on the way is no part of it
    assert (
        streaming_peak(large)
        < 1.2 * streaming_peak(small)
        < 2_000_000
        < (large / "test-base-000000.tar").stat().st_size
    )
