"""Train, val and test of the user's own data. Byte-identical images get the same split when splits are drawn here."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from mmrl_core.data.own.records import Record, is_split, some, split_in
from mmrl_core.data.own.settings import OwnSection
from mmrl_core.errors import UserError

# An image as its label and the digest of its bytes: what splits are drawn from, whatever the files are called.
Content = tuple[str, bytes]


def splits_of(where: str, records: Sequence[Record], digests: list[bytes], spec: OwnSection) -> list[str]:
    """The split of each record: the one it names; drawn by the shares of `spec` where none does; val drawn from train
    where only one other is named, which tests. Raises UserError when train is alone or missing among named splits."""
    named = [record.split for record in records if record.split is not None]
    contents = [(record.label, digest) for record, digest in zip(records, digests, strict=True)]
    if not named:
        return draw(contents, {"test": spec.test_share, "val": spec.val_share}, spec.split_seed)
    _check_named(where, set(named))
    if len(set(named)) == 3:
        return named
    training = [content for split, content in zip(named, contents, strict=True) if split == "train"]
    drawn = iter(draw(training, {"val": spec.val_share}, spec.split_seed))
    return [next(drawn) if split == "train" else "test" for split in named]


def _check_named(where: str, named: set[str]) -> None:
    lacking = "train" if "train" not in named else "test" if len(named) == 1 else None
    if lacking:
        raise UserError(f"{where} names splits but no {lacking} split; add one, or name no splits at all")


def notes_on_splits(records: Sequence[Record]) -> list[str]:
    """What should be known where the data name train and val alone, or no split though their folders are called so."""
    named = {record.split for record in records}
    if named == {"train", "val"}:
        return ["there is no test split: the images of val are the test images, and those of val are drawn from train"]
    above = {record.path.rpartition("/")[0] for record in records}
    folders = {folder for path in above for folder in path.split("/") if is_split(folder)}
    if named == {None} and len({split_in(folder)[0] for folder in folders}) > 1:
        return [f"paths lie in folders {some(sorted(folders))}, but no split is named: one was drawn"]
    return []


def draw(contents: list[Content], shares: dict[str, float], seed: int) -> list[str]:
    """The split of each image, alike for the same ones: shares of its class for the splits named, the rest "train".

    A class's draw depends on its own images and the seed alone. Every class keeps one image to train on, and has one
    to test on where it has two. An image under two labels trains both: no score should rest on it.
    """
    classes: dict[str, set[bytes]] = defaultdict(set)
    for label, sha256 in contents:
        classes[label].add(sha256)
    seen, shared = set[bytes](), set[bytes]()
    for members in classes.values():
        shared |= seen & members
        seen |= members
    drawn = {label: _draw_class(members - shared, len(members), shares, seed) for label, members in classes.items()}
    return [drawn[label].get(sha256, "train") for label, sha256 in contents]


def _draw_class(free: set[bytes], total: int, shares: dict[str, float], seed: int) -> dict[bytes, str]:
    order = sorted(free, key=lambda sha256: hashlib.sha256(f"{seed} {sha256.hex()}".encode()).digest())
    if len(order) == total:
        order = order[1:]  # no other is sure to train
    drawn: dict[bytes, str] = {}
    for split, share in shares.items():
        wanted = max(int(share * total + 0.5), split == "test")
        drawn |= dict.fromkeys(order[:wanted], split)
        order = order[wanted:]
    return drawn
