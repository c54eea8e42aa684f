"""Which folders above images are splits, which are classes, and which only hold the others."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from mmrl_core.data.own.records import is_split, some, split_in
from mmrl_core.errors import UserError, refuse_all

Folders = tuple[str, ...]  # those above an image, from the outermost


class Layout(NamedTuple):
    """How deep a path's class folder lies, and its split folder where there are splits; split folder -> split."""

    class_at: int
    split_at: int
    splits: Mapping[str, str]

    @property
    def depth(self) -> int:
        """How many folders lie above every image, at least."""
        return max(self.class_at, self.split_at if self.splits else 0) + 1

    def place(self, folder: str) -> tuple[str, str | None]:
        """The label and the split of the images in a folder, None where there are no splits."""
        folders = _parts(folder)
        return folders[self.class_at], self.splits[folders[self.split_at]] if self.splits else None


def layout_of(where: str, paths: Mapping[str, list[str]]) -> Layout:
    """How the folders above the images are to be read, which are given by the folder that they lie in, "" for the top:
    class folders, with split folders above or below them or not, all of it in folders that hold nothing else or not.

    Raises UserError on images in no class folder, and on folders that may be read in more than one way.
    """
    images = [_parts(folder) for folder in paths]  # one for all images of a folder
    top = _depth_of_wrappers(images)
    layout = _splits_above(where, images, top) or _splits_below(where, images, top) or Layout(top, top, {})
    _check_inside(where, paths, layout)
    _check_other_splits(where, images, layout)
    return layout


def _check_inside(where: str, paths: Mapping[str, list[str]], layout: Layout) -> None:
    """Raises UserError on images in no class folder; in one line where that is all of them, or all of a split."""
    apart = [folder for folder in paths if len(_parts(folder)) < layout.depth]
    outside = sorted(path for folder in apart for path in paths[folder])
    if paths and len(apart) == len(paths):
        raise UserError(
            f"{where}: none of its {len(outside)} images lies in a class folder, the first {outside[0]}; make a folder "
            "for each class, or give a table with the columns path and label"
        )
    for name in sorted(layout.splits):
        of_split = [folder for folder in paths if _parts(folder)[layout.split_at : layout.split_at + 1] == (name,)]
        if layout.split_at == 0 and set(of_split) <= set(apart):
            others = " and ".join(f"{where}/{other}" for other in sorted(layout.splits) if other != name)
            number = sum(len(paths[folder]) for folder in of_split)
            raise UserError(
                f"{where}: the {number} images in {name} lie in no class folders, as images without labels do; "
                f"give {others} alone, and let `mmrl predict` label {name} afterwards"
            )
    refuse_all(
        "images",
        [f"{where}: {path} lies in no class folder; move it into the folder of its class" for path in outside],
    )


def _parts(folder: str) -> Folders:
    return tuple(folder.split("/")) if folder else ()


def _at(images: Iterable[Folders], depth: int) -> set[str]:
    """The names of the folders at that depth."""
    return {folders[depth] for folders in images if len(folders) > depth}


def _depth_of_wrappers(images: list[Folders]) -> int:
    """How many folders lie above all that tells images apart. A split's folder is none of them."""
    depth = 0
    while len(names := _at(images, depth)) == 1 and not split_in(*names)[0]:
        below, direct = _at(images, depth + 1), min(map(len, images)) - 1 - depth
        if direct < 0 or len(below) < (1 if direct else 2):
            break
        depth += 1
    return depth


def _splits_above(where: str, images: list[Folders], top: int) -> Layout | None:
    """Where the folders at `top` are splits."""
    inside = {name: [folders for folders in images if folders[top : top + 1] == (name,)] for name in _at(images, top)}
    splits = _split_folders(where, inside, top)
    if splits:
        return Layout(_depth_of_classes(inside, splits, top + 1), top, splits)
    _check_alike(where, inside, top)
    return None


def _split_folders(where: str, inside: dict[str, list[Folders]], top: int) -> dict[str, str]:
    """Folder -> split for a level of folders; empty where they are classes."""
    named = {name: split for name in inside if (split := split_in(name)[0])}
    if len(inside) == 1 and named:
        ((name, split),) = named.items()
        other = "test" if split == "train" else "train"
        raise UserError(f"{where} holds {name} alone and no {other} split; add it, or give that folder as `images`")
    alike = _named_alike(named)
    if any(split_in(name)[1] and _is_class(inside[name], top) for name in alike):
        if len(named) == len(inside) > 2:  # train_cat, train_dog, test_cat and test_dog
            raise UserError(
                f"{where}: {some(sorted(alike))} name a split and a class at once; put the images into folders such as "
                "train/CLASS and test/CLASS, or list them in a table"
            )
        return {}  # as test kits and training kits may be
    if not alike and set(named) == set(inside) and len(set(named.values())) > 1:
        shared = set.intersection(*(_at(inside[name], top + 1) for name in named))
        alike = named if shared else {}  # train and test_images, but not training shoes and test kits
    return _checked(where, alike, list(inside))


def _named_alike(named: dict[str, str]) -> dict[str, str]:
    """Those of the folders that name two splits or more and do so in the same words, such as seg_train and seg_test."""
    groups: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    for name, split in named.items():
        groups[split_in(name)[1]][name] = split
    several = [group for words, group in sorted(groups.items()) if len(set(group.values())) > 1]
    return several[0] if several else {}


def _is_class(images: list[Folders], top: int) -> bool:
    """Whether images lie in the folder itself."""
    return any(len(folders) == top + 1 for folders in images)


def _checked(where: str, splits: dict[str, str], folders: list[str]) -> dict[str, str]:
    """The splits. Raises UserError on other folders beside them, and on two of one split."""
    others = sorted(set(folders) - set(splits))
    if splits and others:
        named = " and ".join(sorted(splits, key=lambda name: ("train", "val", "test").index(splits[name])))
        raise UserError(f"{where} holds {some(others)} beside {named}; leave only folders of splits there")
    if len(set(splits.values())) < len(splits):
        raise UserError(f"{where}: two of the folders {some(sorted(splits))} name one split; leave one of them")
    return splits


def _depth_of_classes(inside: dict[str, list[Folders]], splits: dict[str, str], depth: int) -> int:
    """`depth`, or deeper where every split holds one folder: one of its own name, or the same in all."""
    while True:
        below = {name: _at(inside[name], depth) for name in splits}
        if any(len(names) != 1 or _is_class(inside[name], depth - 1) for name, names in below.items()):
            return depth
        again = all(split_in(*names)[0] == splits[name] for name, names in below.items())
        holds_images = any(_is_class(images, depth) for images in inside.values())
        if not again and (holds_images or len(set.union(*below.values())) > 1):
            return depth
        depth += 1


def _splits_below(where: str, images: list[Folders], top: int) -> Layout | None:
    """Where the folders at `top` are classes, and those in each of them splits."""
    names = sorted(_at(images, top + 1))
    splits = _named_alike({name: split for name in names if (split := split_in(name)[0])})
    if not splits or set(splits) != set(names) or min(map(len, images)) < top + 2:
        return None
    return Layout(top, top + 1, _checked(where, splits, names))


def _check_alike(where: str, inside: dict[str, list[Folders]], top: int) -> None:
    """Raises UserError where a folder that names a split and all beside it have class folders in common."""
    named = sorted(name for name in inside if is_split(name))
    if not named or any(_is_class(images, top) for images in inside.values()):
        return
    shared = set.intersection(*(_at(images, top + 1) for images in inside.values()))
    if len(shared) > 1:
        raise UserError(
            f"{where}: {some(sorted(inside))} hold the same folders ({some(sorted(shared))}), and {named[0]} names a "
            "split; name the splits train, val and test, or list the images in a table where these are classes"
        )


def _check_other_splits(where: str, images: list[Folders], layout: Layout) -> None:
    """Raises UserError where train and test, or the like, lie beside each other at another place than the splits."""
    beside: dict[Folders, set[str]] = defaultdict(set)
    for folders in images:
        for depth in range(layout.class_at, len(folders)):
            beside[folders[:depth]].add(folders[depth])
    for above, names in sorted(beside.items()):
        bare = sorted(filter(is_split, names))
        if len({split_in(name)[0] for name in bare}) > 1 and not (layout.splits and len(above) == layout.split_at):
            raise UserError(
                f"{where}: {'/'.join(above)} holds {some(bare)}, which name splits, where other folders hold none; "
                "give each class its splits, or put the splits above all classes"
            )
