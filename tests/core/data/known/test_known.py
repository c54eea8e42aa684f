"""What is known of image files: kept between processes, believed only of files that are as they were."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mmrl_core.data.catalog import fingerprint, open_source
from mmrl_core.data.check import check_own
from mmrl_core.data.known.store import FILE
from mmrl_core.data.own.settings import OwnSection
from mmrl_core.data.shards import read_manifest, write_few_shot, write_pool
from mmrl_core.protocols import PROTOCOLS
from tests.core.data.many import SETTLED, fill, pictures, with_comment
from tests.core.data.own.own_data import where

IMAGES, CLASSES = 600, 3


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("many") / "images", IMAGES, CLASSES)


@pytest.fixture
def images(made, tmp_path):
    return shutil.copytree(made, tmp_path / "images")


@pytest.fixture
def known(tmp_path):
    return tmp_path / "known"


def opened(images, known=None):
    return open_source("many", "", {"many": OwnSection(images=str(images))}, known=known)


def checked(images, known=None):
    own = {"many": OwnSection(images=str(images))}
    return check_own("many", own, PROTOCOLS["few-shot"], None, 4, known=known)


def rows(known: Path) -> dict[str, tuple]:
    """What is kept, by name."""
    with sqlite3.connect(known / FILE) as database:
        found = database.execute("SELECT name, size, mtime, sha256, decoder FROM images").fetchall()
    database.close()
    return {name.decode(): tuple(row) for name, *row in found}


def swap_bytes(path: Path, **times):
    """Other bytes in the same file, of the same number."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    with open(path, "r+b") as file:
        file.write(content)
    os.utime(path, ns=times.get("ns", (SETTLED, SETTLED)))


def test_what_is_known_changes_nothing_of_source_notes_and_prepared_bytes(images, known, tmp_path):
    plain = opened(images)
    for number in range(2):
        source = opened(images, known)
        assert where(source) == where(plain) and (source.notes, source.train) == (plain.notes, plain.train)
        assert checked(images, known) == checked(images)
        for name, of in (("plain", plain), ("known", source)):
            for write, arguments in ((write_pool, ()), (write_few_shot, (4, 1))):
                (tmp_path / f"{name} {number} {write.__name__}").mkdir()
                write(of, *arguments, tmp_path / f"{name} {number} {write.__name__}")
        for write in ("write_pool", "write_few_shot"):
            one, other = (read_manifest(tmp_path / f"{name} {number} {write}") for name in ("plain", "known"))
            assert one == other  # with the digests of all shards


def test_a_file_that_is_as_it_was_is_not_read_again(images, known):
    before = where(opened(images, known))
    path = images / "class 0000/0000000.jpg"
    swap_bytes(path)  # the same size, time of change and inode: only a read would tell
    kept = rows(known)
    assert where(opened(images, known)) == before and rows(known) == kept
    (known / FILE).unlink()
    opened(images, known)
    changed = {name for name, row in rows(known).items() if row != kept[name]}
    assert changed == {"class 0000/0000000.jpg"}


def of_another_size(path):
    path.write_bytes(path.read_bytes() + b" ")
    os.utime(path, ns=(SETTLED, SETTLED))


def of_another_time(path):
    swap_bytes(path, ns=(SETTLED + 1, SETTLED + 1))


def of_another_inode(path):
    aside = path.with_suffix(".new")
    aside.write_bytes(path.read_bytes())
    swap_bytes(aside)
    aside.replace(path)


@pytest.mark.parametrize("change", [of_another_size, of_another_time, of_another_inode])
def test_a_file_that_changed_is_read_again(images, known, change):
    opened(images, known)
    kept, path = rows(known), images / "class 0001/0000001.jpg"
    change(path)
    opened(images, known)
    assert {name for name, row in rows(known).items() if row[2] != kept[name][2]} == {"class 0001/0000001.jpg"}


def test_a_file_that_changed_this_moment_is_not_relied_on(images, known):
    path = images / "class 0001/0000001.jpg"
    os.utime(path)
    opened(images, known)
    assert len(rows(known)) == IMAGES - 1 and "class 0001/0000001.jpg" not in rows(known)


def test_an_image_that_was_decoded_is_known_to_be_whole_and_a_damaged_one_is_told_each_time(images, known, tmp_path):
    path = images / "class 0002/0000002.jpg"
    path.write_bytes(path.read_bytes()[:300])
    os.utime(path, ns=(SETTLED, SETTLED))
    opened(images, known)
    assert not any(row[3] for row in rows(known).values())  # only their digests were asked for
    for _ in range(2):
        row = checked(images, known)
        assert (row["state"], row["missing"]) == ("incomplete", 1)
        assert row["problems"][0].startswith("cannot read the image class 0002/0000002.jpg of many")
    assert sum(bool(row[3]) for row in rows(known).values()) == IMAGES - 1


def test_another_decoder_decodes_again(images, known, monkeypatch):
    checked(images, known)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 32 * 32 - 1)
    assert checked(images, known)["missing"] == IMAGES


def test_preparing_relies_on_what_check_decoded(images, known, tmp_path):
    checked(images, known)
    source = opened(images, known)
    item = source.test[0]
    content = (images / item.path).read_bytes()
    with open(images / item.path, "r+b") as file:
        file.write(bytes(len(content)))  # no image, but as it was for all that its state tells
    os.utime(images / item.path, ns=(SETTLED, SETTLED))
    tmp_path.joinpath("pool").mkdir()
    assert write_pool(source, tmp_path / "pool")["counts"]["test"] == len(source.test)


@pytest.mark.parametrize("spoil", ["no database", "a folder in its place", "cut short"])
def test_without_a_store_that_can_be_used_images_are_read(images, known, spoil):
    opened(images, known)
    for end in ("-wal", "-shm"):
        (known / f"{FILE}{end}").unlink(missing_ok=True)
    if spoil == "a folder in its place":
        (known / FILE).unlink()
        (known / FILE).mkdir()
    else:
        content = (known / FILE).read_bytes()
        (known / FILE).write_bytes(b"no database" * 500 if spoil == "no database" else content[: len(content) // 2])
    assert where(opened(images, known)) == where(opened(images))


OPEN = """
import sys
from mmrl_core.data.catalog import open_source
from mmrl_core.data.own.settings import OwnSection

def report(done, total):
    print(done, flush=True)
    if done == int(sys.argv[3]):
        sys.stdin.read()

open_source("many", "", {"many": OwnSection(images=sys.argv[1])}, known=sys.argv[2], report=report)
"""


def start(images, known, stop=0):
    return subprocess.Popen([sys.executable, "-c", OPEN, images, known, str(stop)], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, text=True)  # fmt: skip


def test_a_killed_process_leaves_what_it_committed_and_the_next_goes_on_from_there(images, known):
    with start(images, known, stop=500) as child:
        assert any(line == "500\n" for line in child.stdout)
        child.send_signal(signal.SIGKILL)
    kept = rows(known)
    assert 256 <= len(kept) < IMAGES
    for name in kept:
        swap_bytes(images / name)  # a read would tell
    opened(images, known)
    after = rows(known)
    assert len(after) == IMAGES and {name: after[name] for name in kept} == kept


def test_an_interrupted_process_keeps_all_that_it_found_out(images, known):
    with start(images, known, stop=100) as child:
        assert any(line == "100\n" for line in child.stdout)
        child.send_signal(signal.SIGINT)
    assert len(rows(known)) >= 100


def test_two_processes_at_once_keep_what_both_found_out(images, known):
    with start(images, known) as one, start(images, known) as other:
        assert [len(child.communicate()[0].splitlines()) for child in (one, other)] == [IMAGES] * 2
    assert one.returncode == other.returncode == 0
    plain = opened(images)
    assert len(rows(known)) == IMAGES and where(opened(images, known)) == where(plain)


def test_links_and_odd_names_are_known_as_well(images, known):
    (images / "class 0000/again.jpg").symlink_to("0000000.jpg")
    (images / "class 0000/ü ' é.jpg").write_bytes(with_comment(pictures(1)[0], "odd"))
    os.utime(images / "class 0000/ü ' é.jpg", ns=(SETTLED, SETTLED))
    before = where(opened(images, known))
    assert before["class 0000/again.jpg"] == before["class 0000/0000000.jpg"]
    assert len(rows(known)) == IMAGES + 2 and where(opened(images, known)) == before
    assert fingerprint("many", "", {"many": OwnSection(images=str(images))})["counts"]["files"] == IMAGES + 2


def test_images_of_a_benchmark_dataset_are_decoded_once(pets, known, tmp_path):
    for path in pets.images.rglob("*.*"):
        os.utime(path, ns=(SETTLED, SETTLED))
    for number in range(2):
        tmp_path.joinpath(f"{number}").mkdir()
        write_pool(open_source("oxford_pets", pets.root, known=known), tmp_path / f"{number}")
        item = pets.splits["test"][0][0]
        (pets.images / item).write_bytes(bytes((pets.images / item).stat().st_size))
        os.utime(pets.images / item, ns=(SETTLED, SETTLED))
    assert len(rows(known)) == 15
