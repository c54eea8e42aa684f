"""Images in the user's own tar files stay there: a pool lists them, and says so when they are not what they were."""

import shutil

import pytest

from mmrl_core.data.own import dataset
from mmrl_core.data.own.settings import OwnSection
from mmrl_core.data.shards import (
    examples_of,
    packed,
    read_examples,
    read_manifest,
    shards_of,
    write_few_shot,
    write_pool,
)
from mmrl_core.errors import UserError
from tests.core.data.own.test_tars import samples, write


def prepared(out, shards, **settings):
    out.mkdir()
    return write_pool(dataset.open_source("mine", OwnSection(shards=str(shards), **settings)), out)


def images_of(pool):
    return [read_examples(pool, "test", half) for half in ("base", "novel")]


@pytest.fixture
def tars(tmp_path):
    write(tmp_path / "tars/00.tar", samples(range(20)))
    write(tmp_path / "tars/deep er/01.tar", samples(range(20, 40), prefix="./ü x/"))
    return tmp_path / "tars"


def test_a_pool_lists_them_and_reads_what_copies_hold(tars, tmp_path):
    listed, copied = tmp_path / "listed", tmp_path / "copied"
    prepared(listed, tars)
    prepared(copied, tars, copy_images=True)
    assert {path.suffix for path in listed.iterdir()} == {".jsonl", ".json"}
    assert {path.suffix for path in copied.iterdir()} == {".tar", ".json"}
    assert images_of(listed) == images_of(copied) and all(images_of(listed))


def test_few_shot_sets_are_copies(tars, tmp_path):
    (tmp_path / "few").mkdir()
    write_few_shot(dataset.open_source("mine", OwnSection(shards=str(tars))), 2, 1, tmp_path / "few")
    assert {path.suffix for path in (tmp_path / "few").iterdir()} == {".tar", ".json"}
    shutil.rmtree(tars)
    assert len(read_examples(tmp_path / "few", "train", "base")) == 2


def test_it_is_the_same_wherever_the_tars_lie(tars, tmp_path):
    before = prepared(tmp_path / "before", tars)
    after = prepared(tmp_path / "after", shutil.move(tars, tmp_path / "moved"))
    assert before["digest"] == after["digest"] and before["tars"] != after["tars"]
    assert read_manifest(tmp_path / "after")["tars"] == str(tmp_path / "moved")


def test_a_shard_travels_with_the_images_that_it_lists(tars, tmp_path):
    prepared(tmp_path / "pool", tars)
    [shard] = shards_of(tmp_path / "pool", "test", "base")
    examples, content = list(examples_of(shard)), packed(shard)
    shutil.rmtree(tars)
    assert list(examples_of(shard, content)) == examples


def test_a_tar_that_was_changed_or_is_gone_is_named(tars, tmp_path):
    prepared(tmp_path / "pool", tars)
    content = (tars / "00.tar").read_bytes()
    (tars / "00.tar").write_bytes(content.replace(b"IDAT", b"IdAT"))
    with pytest.raises(
        UserError, match=r"00\.tar holds another image at byte \d+ than when .*; restore it, or prepare again"
    ):
        images_of(tmp_path / "pool")
    shutil.rmtree(tars)
    with pytest.raises(UserError, match=r"cannot read .*\.tar \(No such file or directory\); restore it"):
        images_of(tmp_path / "pool")


def test_a_line_that_leaves_the_folder_is_refused(tars, tmp_path):
    pool = tmp_path / "pool"
    prepared(pool, tars)
    [shard] = shards_of(pool, "test", "base")
    shard.path.write_bytes(shard.path.read_bytes().replace(b'"tar":"', b'"tar":"../'))
    with pytest.raises(UserError, match="does not stay inside its folder"):
        list(examples_of(shard))
    shard.path.write_bytes(b"{}\n")
    with pytest.raises(UserError, match="cannot be read"):
        list(examples_of(shard))


def test_copying_is_of_shards():
    with pytest.raises(ValueError, match="copy_images is of shards"):
        OwnSection(images="photos", copy_images=True)


def test_only_what_changes_what_is_prepared_changes_the_fingerprint(tars):
    digests = [dataset.fingerprint("mine", OwnSection(shards=str(tars), copy_images=copied))["digest"]
               for copied in (False, True)]  # fmt: skip
    assert digests[0] != digests[1]
    spec = dataset.fingerprint("mine", OwnSection(shards=str(tars)))["spec"]
    assert "copy_images" not in spec  # earlier projects' pools stay as they are
