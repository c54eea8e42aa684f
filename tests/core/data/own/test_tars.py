"""WebDataset tar files of one's own."""

import gzip
import io
import json
import pickle
import tarfile

import pytest

from mmrl_core.data.own import dataset
from mmrl_core.data.own.settings import OwnSection
from mmrl_core.data.shards import write_few_shot, write_pool
from mmrl_core.errors import UserError
from tests.core.data.odd_images import png
from tests.core.data.own.own_data import counts, noted, where


def write(path, members, end=True):
    """A tar of (name or TarInfo, bytes) pairs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def samples(numbers, label="cls", prefix="", image="png"):
    """Samples 000, 001, ... whose label is the number's parity."""
    for number in numbers:
        yield f"{prefix}{number:03d}.{image}", png(number)
        text = str(number % 2) if label == "cls" else json.dumps(label(number))
        yield f"{prefix}{number:03d}.{'cls' if label == 'cls' else 'json'}", text.encode()


def opened(shards, **settings):
    return dataset.open_source("mine", OwnSection(shards=str(shards), **settings))


def refused(path, members, message):
    write(path, members)
    with pytest.raises(UserError, match=message):
        opened(path)


def test_a_folder_of_tars_becomes_a_source_whose_bytes_stay_in_the_tars(tmp_path):
    write(tmp_path / "a/00.tar", samples(range(10)))
    write(tmp_path / "a/deep er/01.tar", samples(range(10, 20), prefix="./ü x/"))
    (tmp_path / "a/.hidden.tar").write_bytes(b"no tar")
    (tmp_path / "a/notes.txt").write_bytes(b"no tar")
    source = opened(tmp_path / "a")
    assert source.class_names == ["0", "1"] and noted(source, "class names are numbers")
    assert [counts(source, label) for label in (0, 1)] == [(5, 2, 3)] * 2
    items = {item.path: item for item in source.train + source.val + source.test}
    assert source.read(items["00.tar/003.png"]) == png(3)
    assert source.read(items["deep er/01.tar/ü x/015.png"]) == png(15)
    assert items["deep er/01.tar/ü x/015.png"].label == 1


@pytest.mark.parametrize("pattern", ["a/s-*.tar", "*/s-?0.tar", "**/s-*.tar", "a/s-00.tar"])
def test_a_pattern_names_tars(tmp_path, monkeypatch, pattern):
    write(tmp_path / "a/s-00.tar", samples(range(4)))
    write(tmp_path / "a/other.tar", samples(range(4, 9)))
    monkeypatch.chdir(tmp_path)
    for shards in (pattern, str(tmp_path / pattern)):
        assert [path.split("/")[-1] for path in sorted(where(opened(shards)))] == [f"00{n}.png" for n in range(4)]


def test_the_split_is_the_same_however_the_samples_are_spread(tmp_path):
    write(tmp_path / "a/00.tar", samples(range(20)))
    for number in range(20):
        write(tmp_path / f"b/{number % 3}-{number}.tar", samples([number]))
    one, other = ({path[-7:]: split for path, split in where(opened(tmp_path / name)).items()} for name in "ab")
    assert one == other


def test_labels_may_be_text_or_lie_in_json(tmp_path, monkeypatch):
    words = ("cat", "dog")
    write(
        tmp_path / "text.tar",
        [(name, b" dog\n" if content == b"0" else content) for name, content in samples(range(8))],
    )
    assert opened(tmp_path / "text.tar").class_names == ["1", "dog"]
    for number, (facts, names) in enumerate([
        (lambda n: {"label": n % 2}, ["0", "1"]), (lambda n: {"label": words[n % 2]}, ["cat", "dog"]),
        (lambda n: {"class_name": words[n % 2]}, ["cat", "dog"]),
        (lambda n: {"label": 1 - n % 2, "class_name": words[n % 2], "more": [1]}, ["dog", "cat"]),
    ]):  # fmt: skip
        write(tmp_path / f"{number}.tar", samples(range(8), facts))
        assert opened(tmp_path / f"{number}.tar").class_names == names
    mixed = [*samples(range(8), lambda n: {"caption": "x", "class_name": words[n % 2]})]
    mixed += [
        (name.replace("json", "cls"), b"7" if b"cat" in content else b"3") for name, content in mixed if "json" in name
    ]
    write(tmp_path / "both.tar", sorted(mixed))
    source = opened(tmp_path / "both.tar", base_classes=["7"])
    assert (source.class_names, source.base) == (["dog", "cat"], [1])


def test_our_own_shards_come_back_with_their_labels_and_splits(pets, tmp_path):
    source = pets.open()
    for name, function, arguments in (("pool", write_pool, ()), ("few", write_few_shot, (5, 1))):
        (tmp_path / "out" / name).mkdir(parents=True)
        function(source, *arguments, tmp_path / "out" / name)
    for path in (tmp_path / "out/few").glob("val-*"):
        path.unlink()  # a sample of the pool's
    again = dataset.open_source("pets", OwnSection(shards=str(tmp_path / "out")))
    assert again.class_names == ["cat", "dog", "newt"]
    assert [counts(again, label) for label in range(3)] == [(5, 3, 2)] * 3
    originals = {source.read(item): item.label for item in source.train}
    assert {again.read(item): item.label for item in again.train} == originals


@pytest.mark.parametrize(
    "names", [("train-0.tar", "val-0.tar", "test-0.tar"), ("train/0.tar", "valid/0.tar", "test/0.tar")]
)
def test_tars_named_after_splits_are_splits(tmp_path, names):
    for number, name in enumerate(names):
        write(tmp_path / "a" / name, samples(range(4 * number, 4 * number + 4)))
    splits = where(opened(tmp_path / "a"))
    assert {path.rsplit("/", 1)[0]: split for path, split in splits.items()} == dict(
        zip(names, ("train", "val", "test"), strict=True)
    )
    write(tmp_path / "a/extra.tar", samples(range(40, 44)))
    with pytest.raises(UserError, match=r"extra.tar does not; name all tar files alike"):
        opened(tmp_path / "a")


def test_extensions_beside_the_image_are_left_alone(tmp_path):
    extra = ("mask.png", "txt", "pyd")
    members = [
        pair
        for n in range(6)
        for pair in [*samples([n], image="PNG"), *((f"{n:03d}.{field}", b"?") for field in extra)]
    ]
    source = opened(write(tmp_path / "a.tar", members))
    assert source.read(source.train[0]).startswith(b"\x89PNG") and len(where(source)) == 6
    lone = [pair for n in range(6) for pair in samples([n], image="photo.png")]
    assert len(where(opened(write(tmp_path / "b.tar", lone)))) == 6


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


def test_nothing_is_ever_unpickled(tmp_path):
    bomb = pickle.dumps(Bomb())
    members = [pair for n in range(6) for pair in [*samples([n]), (f"{n:03d}.pkl", bomb), (f"{n:03d}.pth", bomb)]]
    assert len(where(opened(write(tmp_path / "a.tar", members)))) == 6
    refused(tmp_path / "b.tar", [("0.png", png(0)), ("0.cls", bomb)], "its label is not UTF-8 text")


def whole(tmp_path):
    return write(tmp_path / "a.tar", samples(range(6))).read_bytes()


@pytest.mark.parametrize("kept", [100, 512, 700, 512 * 2, 512 * 4, 512 * 11 + 5, 512 * 24])
def test_a_tar_cut_short_anywhere_is_refused(tmp_path, kept):
    content = whole(tmp_path)
    assert any(content[512 * 23 : 512 * 24]) and not any(content[512 * 24 :])
    (tmp_path / "a.tar").write_bytes(content[:kept])
    with pytest.raises(UserError, match=r"cannot read the tar file .*a.tar .*; replace the tar file"):
        opened(tmp_path / "a.tar")


def test_a_damaged_appended_compressed_or_foreign_tar_is_refused(tmp_path):
    content = whole(tmp_path)
    damaged = bytearray(content)
    damaged[512 * 8 + 3] ^= 1  # in a header in the middle
    for other in (bytes(damaged), content + content, b"", b"no tar" * 200, gzip.compress(content)):
        (tmp_path / "a.tar").write_bytes(other)
        with pytest.raises(UserError, match=r"cannot read the tar file .*a.tar"):
            opened(tmp_path / "a.tar")


def test_a_tar_that_shrinks_after_it_was_opened_is_named(tmp_path):
    path = write(tmp_path / "a.tar", samples(range(6)))
    source = opened(path)
    path.write_bytes(path.read_bytes()[:512])
    with pytest.raises(UserError, match=r"a.tar ends too early"):
        source.read(source.train[0])
    path.unlink()
    with pytest.raises(UserError, match=r"cannot read .*a.tar .No such file"):
        source.read(source.train[0])


def linked(kind):
    info = tarfile.TarInfo("000.png")
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.usefixtures("without_heif")
@pytest.mark.parametrize(("members", "message"), [
    ([("../0.png", b""), ("../0.cls", b"0")], "the path '../0.png' does not stay inside"),
    ([("/tmp/0.png", b""), ("/tmp/0.cls", b"0")], "the path '/tmp/0.png' does not stay inside"),
    ([(linked(tarfile.SYMTYPE), b"")], "000.png is no regular file"),
    ([(linked(tarfile.LNKTYPE), b"")], "000.png is no regular file"),
    ([(linked(tarfile.FIFOTYPE), b"")], "000.png is no regular file"),
    ([("0.png", png(0))], "a.tar, sample 0 has no cls, and no json with label or class_name"),
    ([("0.png", png(0)), ("0.json", b'{"label": 1.5}')], "sample 0 has no cls"),
    ([("0.png", png(0)), ("0.json", b"{")], "sample 0: its json cannot be read"),
    ([("0.png", png(0)), ("0.json", b"[" * 100_000)], "sample 0: its json cannot be read"),
    ([("0.png", png(0)), ("0.json", b"[1]")], "sample 0: its json is no object"),
    ([("0.cls", b"0")], "sample 0 has 0 images, not one"),
    ([("0.cls", b"0"), ("0.heic", b"")], "sample 0: 0.heic is in the format HEIC, .*; convert it to JPEG"),
    ([("0.png", png(0)), ("0.jpg", png(0)), ("0.cls", b"0")], "sample 0 has 2 images"),
    ([("0.png", png(0)), ("0.png", png(1)), ("0.cls", b"0")], "sample 0 holds one member twice"),
    ([*samples([0, 1, 0])], "the members of sample 000 do not lie together, or it comes twice"),
    ([*samples(range(4), lambda n: {"label": 0, "class_name": f"c{n}"})], "label 0 is named 'c0' and 'c1'"),
    ([*samples([0, 2, 4])], "at least 2 are needed"), ([], "holds 0 classes"),
])  # fmt: skip
def test_a_tar_that_cannot_be_used_is_refused_by_name(tmp_path, members, message):
    refused(tmp_path / "a.tar", members, message)


def test_no_tar_at_all_and_a_link_to_one_elsewhere_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    for shards in (tmp_path / "a", tmp_path / "none", f"{tmp_path}/*.tar"):
        with pytest.raises(UserError, match="there is no .tar file at"):
            opened(shards)
    (tmp_path / "a/0.tar").symlink_to(write(tmp_path / "b/0.tar", samples(range(4))))
    with pytest.raises(UserError, match="0.tar is a link out of"):
        opened(tmp_path / "a")


def test_the_fingerprint_changes_with_a_tar(tmp_path):
    spec = OwnSection(shards=str(write(tmp_path / "a.tar", samples(range(4)))))
    before = dataset.fingerprint("mine", spec)
    assert (before, before["counts"]) == (dataset.fingerprint("mine", spec), {"images": 4, "classes": 2, "files": 1})
    write(tmp_path / "a.tar", samples(range(6)))
    assert dataset.fingerprint("mine", spec)["digest"] != before["digest"]


@pytest.mark.parametrize("names", [
    ("birds-train-000.tar", "birds-val-000.tar", "birds-test-000.tar"),
    ("000_train.tar", "001_validation.tar", "002_test.tar"),
    ("a/Training/0.tar", "a/Valid/0.tar", "a/Testing/0.tar"), ("trainset.tar", "devset.tar", "evalset.tar"),
    ("crash-test-train-0.tar", "crash-test-val-0.tar", "crash-test-test2-0.tar"),
    ("train/images-0.tar", "val/images-0.tar", "test/images-0.tar"),
])  # fmt: skip
def test_tars_name_their_split_in_any_word_of_their_path(tmp_path, names):
    for number, name in enumerate(names):
        write(tmp_path / "a" / name, samples(range(4 * number, 4 * number + 4)))
    splits = {path[: path.index(".tar") + 4]: split for path, split in where(opened(tmp_path / "a")).items()}
    assert splits == dict(zip(names, ("train", "val", "test"), strict=True))


@pytest.mark.parametrize(("names", "message"), [
    (("birds-train-0.tar", "birds-1.tar"), "birds-train-0.tar names a split, birds-1.tar does not; name all tar files"),
    (("train/val-0.tar", "test/0.tar"), "train/val-0.tar names train and val; leave one of the words"),
    (("birds-test-0.tar", "birds-test-1.tar"), "names splits but no train split"),
])  # fmt: skip
def test_tars_whose_names_leave_their_split_open_are_refused(tmp_path, names, message):
    for number, name in enumerate(names):
        write(tmp_path / "a" / name, samples(range(4 * number, 4 * number + 4)))
    with pytest.raises(UserError, match=message):
        opened(tmp_path / "a")


def test_every_tar_with_something_wrong_is_named_at_once(tmp_path):
    write(tmp_path / "a/whole.tar", samples(range(4)))
    write(tmp_path / "a/bare.tar", [("0.png", png(0))])
    (tmp_path / "a/cut.tar").write_bytes((tmp_path / "a/whole.tar").read_bytes()[:700])
    with pytest.raises(UserError, match=r"^2 tar files: .*bare.tar, sample 0 has no cls.*; cannot read the .*cut.tar"):
        opened(tmp_path / "a")


def test_files_beside_the_tars_are_noted(tmp_path):
    write(tmp_path / "a/00.tar", samples(range(10)))
    (tmp_path / "a/01.tar.gz").write_bytes(b"")
    assert "1 files that are no .tar files were left out: 01.tar.gz" in opened(tmp_path / "a").notes
