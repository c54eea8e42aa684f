"""What the user should know of their data: classes that are short of images, and images that occur twice."""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import combinations
from typing import NamedTuple

from mmrl_core.data.benchmark.coop import SPLITS
from mmrl_core.data.own.records import some


class Placed(NamedTuple):
    """An image of the data, its class and the split it went to."""

    path: str
    class_name: str
    split: str
    sha256: bytes


def repeats(images: Iterator[Placed], digests: list[bytes]) -> list[Placed]:
    """Those of the images whose digest, given in the same order, is another's as well."""
    seen, again = set[bytes](), set[bytes]()
    for digest in digests:
        (again if digest in seen else seen).add(digest)
    return [image for image in images if image.sha256 in again] if again else []


def findings(placed: Counter[tuple[str, str]], repeated: list[Placed]) -> list[str]:
    """One line for each kind of finding, how many, and the first of them: from the number of images by class and split,
    and the images that occur more than once."""
    return [*_short_classes(placed), *_repeated(repeated), *_under_two_classes(repeated), *_across_splits(repeated)]


def same_images(placed: Counter[tuple[str, str]], repeated: list[Placed]) -> list[str]:
    """A line for each class that holds the very images of another, which nothing can tell apart."""
    total, occurring_again = _by_class(placed), Counter(image.class_name for image in repeated)
    held = defaultdict(set)
    for image in repeated:
        if total[image.class_name] == occurring_again[image.class_name]:
            held[image.class_name].add(image.sha256)
    first: dict[frozenset[bytes], str] = {}
    pairs = [(first.setdefault(frozenset(digests), name), name) for name, digests in held.items()]
    return [
        f"classes {one!r} and {other!r} hold the same images; give each its own, or leave one out"
        for one, other in pairs if one != other
    ]  # fmt: skip


def _by_class(placed: Counter[tuple[str, str]]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for (name, _), number in placed.items():
        counts[name] += number
    return counts


def _short_classes(filled: Counter[tuple[str, str]]) -> Iterable[str]:
    counts = _by_class(filled)
    short = {"a single image": [name for name in counts if counts[name] == 1]}
    for split, what in (("train", "no training image"), ("test", "no test image")):
        short[what] = [name for name in counts if not filled[name, split]]
    for what, names in short.items():
        if names:
            yield f"classes with {what}: {len(names)} of {len(counts)} ({some(names)})"


def _repeated(images: list[Placed]) -> Iterable[str]:
    groups = [group for group in _groups(images, lambda image: (image.sha256, image.class_name)) if len(group) > 1]
    if groups:
        number = sum(len(group) - 1 for group in groups)
        yield f"images that repeat another of their class: {number}, the first {_pair(*groups[0][:2])}"


def _under_two_classes(images: list[Placed]) -> Iterable[str]:
    pairs = _parted(_groups(images, lambda image: image.sha256), lambda image: image.class_name)
    if pairs:
        yield f"images that lie under two classes: {len(pairs)}, the first {_pair(*pairs[0])}"


def _across_splits(images: list[Placed]) -> Iterable[str]:
    for splits in combinations(SPLITS, 2):
        members = [image for image in images if image.split in splits]
        pairs = _parted(_groups(members, lambda image: image.sha256), lambda image: image.split)
        if pairs:
            yield f"images of {splits[1]} that are in {splits[0]} too: {len(pairs)}, the first {_pair(*pairs[0])}"


def _groups(images: Iterable[Placed], key: Callable[[Placed], Hashable]) -> list[list[Placed]]:
    groups = defaultdict(list)
    for image in images:
        groups[key(image)].append(image)
    return list(groups.values())


def _parted(groups: list[list[Placed]], by: Callable[[Placed], str]) -> list[tuple[Placed, Placed]]:
    """From each group whose members differ in `by`, the first member and the first that differs from it."""
    parted = ((group[0], next((other for other in group if by(other) != by(group[0])), None)) for group in groups)
    return [(first, other) for first, other in parted if other]


def _pair(first: Placed, other: Placed) -> str:
    return f"{first.path} and {other.path}"
