"""Which datasets there are, what each needs, and which of them are complete: below a folder, or of the user's own."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmrl_core.data.benchmark import coop
from mmrl_core.data.catalog import BENCHMARK, EMBEDDED, Own, canonical_key, open_source, store_in
from mmrl_core.data.foreign import foreign_name
from mmrl_core.data.lacking import lacking
from mmrl_core.data.own.dataset import open_checked
from mmrl_core.data.own.records import is_hidden, is_image, some
from mmrl_core.data.shards import Report, halves_of
from mmrl_core.data.source import Source
from mmrl_core.errors import Several, UserError
from mmrl_core.protocols import LabelsByHalf, Protocol, labels_of

SPLITS = ("train", "val", "test")
# Published counts of images: train, val, test. Where a split file has them, they are what published figures rest on.
PUBLISHED = {
    "imagenet": (1281167, 0, 50000), "caltech101": (4128, 1649, 2465), "oxford_pets": (2944, 736, 3669),
    "stanford_cars": (6509, 1635, 8041), "oxford_flowers": (4093, 1633, 2463), "food101": (50500, 20200, 30300),
    "fgvc_aircraft": (3334, 3333, 3333), "sun397": (15880, 3970, 19850), "dtd": (2820, 1128, 1692),
    "eurosat": (13500, 5400, 8100), "ucf101": (7639, 1898, 3783), "imagenetv2": (0, 0, 10000),
    "imagenet_sketch": (0, 0, 50889), "imagenet_a": (0, 0, 7500), "imagenet_r": (0, 0, 30000),
}  # fmt: skip


def describe() -> list[dict[str, Any]]:
    """One row a dataset: key, kind, what it needs below the data root, prompt template, and published counts (None
    where there are none)."""
    return [_describe_benchmark(key) for key in BENCHMARK] + [_describe_embedded(key) for key in EMBEDDED]


def _describe_benchmark(key: str) -> dict[str, Any]:
    module = BENCHMARK[key]
    return {
        "dataset": key, "kind": "benchmark", "needs": module.needs(key), "template": module.template(key),
        "published": _expected(key),
    }  # fmt: skip


def _describe_embedded(key: str) -> dict[str, Any]:
    template = open_source(key, "").templates[0]
    return {"dataset": key, "kind": "embedded", "needs": "", "template": template, "published": None}


def _expected(key: str) -> dict[str, int]:
    return dict(zip(SPLITS, PUBLISHED[key], strict=True))


def check(root: str | Path, keys: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """One row a dataset, by default every benchmark one: "state" complete, incomplete or absent, counts "found" on disk
    and "expected", how many named images are "missing", and "problems", a line each. No image is opened.

    Raises UserError on an unknown key; a broken dataset is a row, not an error.
    """
    keys = [canonical_key(key) for key in keys or BENCHMARK]
    return [_check(key, Path(root)) if key in BENCHMARK else _embedded(key) for key in keys]


def _embedded(key: str) -> dict[str, Any]:
    counts = {split: len(open_source(key, "").items(split)) for split in SPLITS}
    return {"dataset": key, "found": counts, "expected": None, "missing": 0, "state": "complete", "problems": []}


def _check(key: str, root: Path) -> dict[str, Any]:
    module, expected = BENCHMARK[key], _expected(key)
    row = {"dataset": key, "found": None, "expected": expected, "missing": 0}
    folder = module.needs(key).partition("/")[0]
    if not (root / folder).is_dir():
        return {**row, "state": "absent", "problems": [f"{root / folder} is not there; needed: {module.needs(key)}"]}
    try:
        splits, missing = module.read(key, root)
    except UserError as error:
        return {**row, "state": "incomplete", "problems": [str(error)]}
    lost = set(missing)
    counts = {split: sum(item.path not in lost for item in splits[split]) for split in SPLITS}
    problems = _problems(counts, expected, missing)
    return {**row, "found": counts, "missing": len(lost), "problems": problems,
            "state": "incomplete" if problems else "complete"}  # fmt: skip


def _problems(found: dict[str, int], expected: dict[str, int], missing: list[str]) -> list[str]:
    problems = [f"{len(missing)} images are missing, the first is {missing[0]}"] if missing else []
    return problems + [
        f"{split} has {found[split]} images, published are {expected[split]}"
        for split in SPLITS if found[split] != expected[split]
    ]  # fmt: skip


def holds_own(folder: Path) -> bool:
    """Whether images lie there, of formats that are not read as well, and none of the benchmark datasets."""
    if any((folder / module.needs(key).partition("/")[0]).is_dir() for key, module in BENCHMARK.items()):
        return False
    paths = (path for path, _ in coop.walk(folder, is_hidden))
    return any(is_image(path) or foreign_name(path) for path in paths)


def check_own(
    key: str, own: Own, protocol: Protocol, n_base: int | None, shots: int, report: Report | None = None,
    *, known: str | Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """A row as `check`'s for a dataset of the user's own, every image opened as preparing does; "missing" counts those
    that cannot be used. Besides it has the "class_names", and "notes": what does not keep the dataset from being used.

    `known` is the folder that `open_source` takes: what it tells of images is not found out again. Calls
    `report(done, total)` after every image.
    """
    row: dict[str, Any] = {"dataset": key, "found": None, "expected": None, "missing": 0}
    row |= {"class_names": [], "notes": []}
    try:
        source, bad = open_checked(key, own[canonical_key(key, own)], store_in(known), report)
        problems = lacking(source, n_base, protocol)
    except Several as error:
        return {**row, "state": "incomplete", "problems": error.problems}
    except UserError as error:
        return {**row, "state": "incomplete", "problems": [str(error)]}
    broken = [bad[item.path] for split in SPLITS for item in source.items(split) if item.path in bad]
    return {
        **row, "found": {split: len(source.items(split)) for split in SPLITS}, "missing": len(broken),
        "state": "incomplete" if broken or problems else "complete", "problems": [*broken, *problems],
        "class_names": source.class_names, "notes": [*source.notes, *_few(source, protocol, n_base, shots)],
    }  # fmt: skip


def _few(source: Source, protocol: Protocol, n_base: int | None, shots: int) -> Iterator[str]:
    """Notes on too few images to train on or to validate with, and on classes that are tested among no others."""
    base, novel = halves_of(source, n_base)
    halves, names = LabelsByHalf(base=base, novel=novel), source.class_names
    counts, trained = Counter(item.label for item in source.train), labels_of(halves, protocol.trains_on)
    if few := [names[label] for label in trained if counts[label] < shots]:
        yield f"classes with fewer than {shots} training images: {len(few)} of {len(trained)} ({some(few)})"
    if trained and not {item.label for item in source.val} & set(trained):
        yield "no validation image of a class that is trained on, which a search needs"
    for labels in (labels_of(halves, test.classes) for test in protocol.tests):
        if len(labels) == 1:
            yield f"{names[labels[0]]} is tested among no other classes, so that every answer is right"
