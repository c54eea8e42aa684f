"""What keeps a dataset from being trained on or tested: classes that have no image for it."""

from collections.abc import Iterable

from mmrl_core.data.own.records import some
from mmrl_core.data.shards import Manifest, halves_of
from mmrl_core.data.source import Source, told_apart
from mmrl_core.errors import UserError, refuse_all
from mmrl_core.protocols import HALVES, Half, LabelsByHalf, Protocol, labels_of


def lacking(source: Source, n_base: int | None, protocol: Protocol) -> list[str]:
    """A line for each half of the classes of which some have no test image, or no training image though they are to be
    trained on, and one where a single class is to be trained on. Every protocol tests all classes.

    Raises UserError where `n_base` leaves a half without a class.
    """
    base, novel = halves_of(source, n_base)
    halves = LabelsByHalf(base=base, novel=novel)
    of_test = [_without(source, "test", halves[half], half) for half in HALVES]
    of_train = [_without(source, "train", halves[half], half) for half in protocol.trains_on]
    alone = _alone(source.class_names, labels_of(halves, protocol.trains_on))
    return [line for line in (*of_test, *of_train, alone) if line]


def refuse_lacking(source: Source, n_base: int | None, protocol: Protocol) -> None:
    """Raises UserError with the lines of `lacking`."""
    refuse_all("kinds of images are missing", [f"{source.key}: {line}" for line in lacking(source, n_base, protocol)])


def check_trained(manifest: Manifest, halves: Iterable[Half]) -> None:
    """Raises UserError where a few-shot set has no image of a class that is to be trained on, or but one such class."""
    if alone := _alone(manifest["class_names"], labels_of(manifest, halves)):
        raise UserError(f"{manifest['dataset']}: {alone}")
    none = {name for name, number in manifest.get("short_classes", {}).items() if not number}
    shown = told_apart(manifest["class_names"])
    names = [name for label in labels_of(manifest, halves) if (name := shown[label]) in none]
    if names:
        raise UserError(
            f"{manifest['dataset']}: {len(names)} classes to be trained on have no training image ({some(names)}); "
            "give each some, or leave the class out"
        )


def _alone(class_names: list[str], trained: list[int]) -> str | None:
    if len(trained) != 1:
        return None
    return (
        f"{class_names[trained[0]]} is the one class to be trained on, where 2 are the least; add classes, "
        "make more of them base classes, or set data.protocol: few-shot"
    )


def _without(source: Source, split: str, labels: list[int], half: Half) -> str | None:
    held = {item.label for item in source.items(split)}
    names = [source.class_names[label] for label in labels if label not in held]
    if not names:
        return None
    kind = {"train": "training", "test": "test"}[split]
    return (
        f"{len(names)} of {len(labels)} {half} classes have no {kind} image ({some(names)}); "
        "give each more images, or leave the class out"
    )
