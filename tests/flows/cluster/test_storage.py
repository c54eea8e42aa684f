"""Checkpoints in a folder, below file:// and in an S3 store: what is whole there counts, the newest first."""

import os
import uuid
from collections.abc import Iterator

import pytest
import torch
from pyarrow.fs import S3FileSystem

from flows.cluster.storage import STANDSTILL, open_storage, reached_storage
from mmrl_core.errors import UserError
from mmrl_core.training.checkpoints import NAME, newest, pack, unpack
from tests.support.s3 import Store, s3_store

CPU = torch.device("cpu")
WHOLE = [pack({"epoch": epoch, "weights": torch.full((100,), float(epoch))}) for epoch in range(6)]


@pytest.fixture(scope="module")
def s3() -> Iterator[Store]:
    with s3_store() as store:
        yield store


@pytest.fixture(params=["path", "file://", "s3://"])
def where(request, tmp_path) -> str:
    """An absolute path, or a URI."""
    if request.param == "s3://":
        return request.getfixturevalue("s3").uri(uuid.uuid4().hex)
    (tmp_path / "job").mkdir()  # as the command does
    return str(tmp_path) if request.param == "path" else f"file://{tmp_path}"


def epoch_gone_on_from(where: str) -> int | None:
    content = newest(open_storage(where, "job"), ["epoch", "weights"])
    return unpack(content, CPU, ["epoch"])["epoch"] if content else None


def test_a_store_that_stands_still_for_a_while_is_waited_for(s3):
    """AWS's own 3 seconds would end an upload to a slow one, again and again."""
    store = open_storage(f"{s3.uri('slow')}&region=eu-west-1", "job")
    slow = S3FileSystem(scheme="http", endpoint_override=s3.address, region="eu-west-1", request_timeout=STANDSTILL)
    assert store.system == slow


def test_the_newest_two_are_kept_and_the_newest_by_name_is_gone_on_from(where):
    store = open_storage(where, "job")
    assert epoch_gone_on_from(where) is None
    for epoch, step in ((0, 500), (1, 0), (1, 500), (2, 0)):
        store.save(WHOLE[epoch], epoch, step)
    assert [name.rpartition("/")[2] for name, _ in store.load()] == [NAME.format(2, 0), NAME.format(1, 500)]
    assert epoch_gone_on_from(where) == 2


def test_the_order_is_of_epochs_whatever_the_clocks_of_those_that_wrote_say(tmp_path):
    (tmp_path / "job").mkdir()
    for epoch, seconds in ((3, 0), (1, 1), (2, 2)):
        path = tmp_path / "job" / NAME.format(epoch, 0)
        path.write_bytes(WHOLE[epoch])
        os.utime(path, (seconds, seconds))
    assert epoch_gone_on_from(str(tmp_path)) == 3


@pytest.mark.parametrize("lying", [2, 3])
@pytest.mark.parametrize("damaged", [0, 1, 2])
def test_of_two_or_three_that_lie_there_the_newest_whole_one_is_gone_on_from(where, lying, damaged):
    store, whole = open_storage(where, "job"), 3 - damaged
    for epoch in range(4 - lying, 4):
        store._write(NAME.format(epoch, 0), WHOLE[epoch] if epoch <= whole else WHOLE[epoch][:-100])
    assert epoch_gone_on_from(where) == (whole if whole >= 4 - lying else None)


@pytest.mark.parametrize("whole", [1, 0])
def test_what_is_written_after_going_back_stays_until_newer_states_replace_the_damaged_ones(where, whole):
    store = open_storage(where, "job")
    for epoch in (1, 2, 3):
        store._write(NAME.format(epoch, 0), WHOLE[epoch] if epoch <= whole else b"")
    for epoch in range(whole + 1, 6):
        resumed = open_storage(where, "job")  # killed after every epoch
        assert newest(resumed, ["epoch"]) == (WHOLE[epoch - 1] if epoch > 1 else b"")
        resumed.save(WHOLE[epoch], epoch, 0)
    assert resumed._checkpoints() == [NAME.format(5, 0), NAME.format(4, 0)]


def test_one_that_goes_while_they_are_read_is_passed_over(where):
    store = open_storage(where, "job")
    for epoch in (1, 2, 3):
        store._write(NAME.format(epoch, 0), WHOLE[epoch])
    reading = store.load()
    assert next(reading)[1] == WHOLE[3]
    open_storage(where, "job")._delete(NAME.format(2, 0))
    assert next(reading)[1] == WHOLE[1]


def test_other_files_beside_them_are_no_checkpoints_and_all_go_in_the_end(where):
    store = open_storage(where, "job")
    store._write(".validate_storage_marker", b"")  # Ray's
    assert store.exists() and epoch_gone_on_from(where) is None
    store.save(WHOLE[1], 1, 0)
    store.remove()
    assert not store.exists() and not list(store.load())
    store.remove()  # nothing more to do


def test_a_node_that_does_not_see_the_folder_is_told_apart_from_one_that_finds_it_empty(where):
    with pytest.raises(UserError, match="not seen from here"):
        reached_storage(where, "another")
    open_storage(where, "job")._write(".validate_storage_marker", b"")
    assert not list(reached_storage(where, "job").load())


def test_a_uri_of_no_known_kind_is_refused():
    with pytest.raises(ValueError, match="nope"):
        open_storage("nope://bucket/folder", "job")
