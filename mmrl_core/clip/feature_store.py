"""Frozen features on disk: what the frozen image tower gives for a view is computed once, then read.

A record is one view's trunk activations and zero-shot features. Its path is a digest of all that its bits depend on:
backbone, layer, precision and machine give the folder, called a shelf; image and transform give the record in it.
Records are written to a temporary file and renamed: two processes that need the same one may both compute it, and
neither waits. On a CPU results with and without the store are the same bits.
"""

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from PIL.Image import Image
from safetensors import SafetensorError
from torch import Tensor

from mmrl_core import DATA_VERSION, METHOD_VERSION
from mmrl_core.clip.graphs import FrozenPass
from mmrl_core.clip.towers import Frozen, ImageTower
from mmrl_core.config import TrainConfig
from mmrl_core.data.views import normalised
from mmrl_core.errors import Damaged, UserError
from mmrl_core.files import canonical_json, read_json, write_bytes, write_json

MEMORY = 128 * 2**20  # bytes of records that a process keeps in memory
UNUSED = 3600  # seconds without use after which a shelf may be removed to make room
CARD, LEDGER = "shelf.json", "ledger"
log = logging.getLogger(__name__)


class Memory:
    """Records in this process's memory, up to `budget` bytes: many trainings read the same ones."""

    def __init__(self, budget: int):
        self.budget = budget
        self._records: dict[str, Frozen] = {}

    def get(self, key: str) -> Frozen | None:
        return self._records.get(key)

    def put(self, key: str, record: Frozen) -> None:
        size = sum(tensor.nbytes for tensor in record)
        if key not in self._records and size <= self.budget:
            self._records[key] = record
            self.budget -= size


class FeatureStore:
    """A folder of at most `budget` bytes. What does not fit is computed each time it is wanted, with one warning.

    Shelves that were not used for an hour make room for others. `depth` is the insertion depth whose trunks are kept,
    for models of that depth and deeper ones alike; None: each model's own. Without `keeps` the store is only read.
    """

    def __init__(self, folder: str | Path, budget: float, depth: int | None = None, keeps: bool = True):
        self.folder, self.budget, self.depth, self.keeps = Path(folder), budget, depth, keeps
        self._record_bytes: dict[Path, int] = {}
        self._closed = False
        self.memory = Memory(MEMORY)

    def __getstate__(self) -> dict[str, Any]:
        """A store that travels to another process leaves its memory behind."""
        return {**self.__dict__, "memory": Memory(MEMORY)}

    def shelf(self, facts: dict[str, Any]) -> "Shelf":
        """The records that share `facts`."""
        return Shelf(self, self.folder / hashlib.sha256(canonical_json(facts)).hexdigest()[:16], facts)

    def used(self) -> int:
        """Bytes of all records, as the shelves' ledgers count them."""
        return sum(self._size(shelf) for shelf in self._shelves())

    @property
    def is_full(self) -> bool:
        """Whether no further record of the largest kind fits."""
        return self.used() + max(self._record_bytes.values(), default=0) > self.budget

    def _shelves(self) -> list[Path]:
        return [path.parent for path in self.folder.glob(f"*/{CARD}")]

    def _size(self, shelf: Path) -> int:
        """Bytes of a shelf: its ledger holds one byte for each record, and its records are of one size."""
        try:
            if shelf not in self._record_bytes:
                self._record_bytes[shelf] = _record_bytes(shelf / CARD)
            return (shelf / LEDGER).stat().st_size * self._record_bytes[shelf]
        except (OSError, UserError):  # being made or removed, or damaged
            return 0

    def make_room(self, size: int, wanted_by: Path) -> bool:
        """Whether `size` bytes more are within the budget, if need be after removing what nobody uses."""
        if self._closed:
            return False
        for shelf in self._stale(wanted_by) if self.used() + size > self.budget else []:
            shutil.rmtree(shelf, ignore_errors=True)
        if self.used() + size > self.budget:
            self.close(f"its budget of {self.budget / 1e9:g} GB is used up; raise features.budget_gb or `mmrl clean`")
        return not self._closed

    def _stale(self, wanted_by: Path) -> list[Path]:
        before = time.time() - UNUSED
        return [path for path in self._shelves() if path != wanted_by and _modified(path / CARD) < before]

    def close(self, reason: str) -> None:
        """Store nothing more in this process; what is there stays in use."""
        log.warning("frozen features are no longer kept in %s (%s): they are computed each time", self.folder, reason)
        self._closed = True


def _record_bytes(card: Path) -> int:
    """The size of a shelf's records. Raises Damaged where its card does not say that."""
    size = read_json(card, made_by="mmrl train", keys=("record_bytes",))["record_bytes"]
    if type(size) is not int or size < 0:
        raise Damaged(f"{card} says {size!r} as the size of a record")
    return size


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()


class Shelf:
    """Records of one backbone, layer and precision."""

    def __init__(self, store: FeatureStore, folder: Path, facts: dict[str, Any]):
        self.store, self.folder, self.facts = store, folder, facts

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / name[:2] / f"{name[2:34]}.safetensors"

    def get(self, key: str) -> Frozen | None:
        """One view's record, memory-mapped; None where there is no whole one."""
        path = self._path(key)
        try:
            record = safetensors.torch.load_file(path)
            os.utime(self.folder / CARD)
            return Frozen(record["trunk"], record["zero_shot"])
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, KeyError):
            path.unlink(missing_ok=True)
            return None

    def put(self, key: str, record: Frozen) -> None:
        """Keep a view's record, unless the budget or the disk has no room for it."""
        if not self.store.keeps:
            return
        content = safetensors.torch.save({name: value.cpu().contiguous() for name, value in record._asdict().items()})
        if not self.store.make_room(len(content), self.folder):
            return
        try:
            self._enter(len(content))
            write_bytes(self._path(key), content, sync=False)
        except OSError as error:
            self.store.close(error.strerror or str(error))

    def _enter(self, size: int) -> None:
        """Count the record before it is written: a process killed in between counts one too many, never too few."""
        if not (self.folder / CARD).exists():
            write_json(self.folder / CARD, {**self.facts, "record_bytes": size})
        with open(self.folder / LEDGER, "ab") as ledger:
            ledger.write(b".")


class LoadedBatch(NamedTuple):
    """A batch as it was read: records from memory and from the store, and views of the images that have neither."""

    kept: list[Frozen | None]  # of every image, from memory
    keys: list[str]  # of the images that memory lacks
    records: list[Frozen | None]  # of these, from the store
    views: Tensor | None  # (missing, 3, S, S), uint8 or float32
    whole: Frozen | None  # all records as one batch, where none is missing


class FrozenFeatures:
    """Frozen features of images for one tower, from the store where there is one.

    `batch_size` settles how many images go through the tower together on a CPU (`ImageTower.chunk`).
    """

    def __init__(self, tower: ImageTower, batch_size: int, store: FeatureStore | None = None):
        self.tower, self.chunk, self.device = tower, tower.chunk(batch_size), tower.backbone.device
        self.base, self.shelf, self.memory, self.name = tower, None, Memory(0), ""
        if store is not None:
            self.base = _shared_tower(tower, store.depth)
            self.shelf = store.shelf(_facts(self.base, self.chunk))
            self.memory, self.name = store.memory, store.shelf(_facts(tower, self.chunk)).folder.name
        self._compute = FrozenPass(self.base, self.chunk)

    def load(self, keys: Sequence[str], views: Callable[[list[int]], Tensor]) -> LoadedBatch:
        """Read a batch; `views` gives those of the positions that the store lacks, as bytes or normalised. May run in
        any thread."""
        kept = [self.memory.get(f"{self.name} {key}") for key in keys]
        rest = [index for index, record in enumerate(kept) if record is None]
        records = [self.shelf.get(keys[index]) if self.shelf else None for index in rest]
        missing = [index for index, record in zip(rest, records, strict=True) if record is None]
        pinned = self._pinned(views(missing)) if missing else None
        whole = None if missing or not rest else Frozen(*map(self._pinned, _stack(filter(None, records))))
        return LoadedBatch(kept, [keys[index] for index in rest], records, pinned, whole)

    def _pinned(self, tensor: Tensor) -> Tensor:
        """In memory that a GPU reads while the program goes on."""
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    def frozen(self, loaded: LoadedBatch) -> Frozen:
        """Frozen features of a loaded batch, on the backbone's device, computed where they have to be."""
        if not loaded.keys:
            return _stack(filter(None, loaded.kept))
        shared = loaded.whole.to(self.device) if loaded.whole else self._computed(loaded)
        own = Frozen(self.tower.advance(shared.trunk, self.base.first, self.chunk), shared.zero_shot)
        return self._remember(loaded, own) if self.shelf else own

    def _computed(self, loaded: LoadedBatch) -> Frozen:
        """The base tower's features of the images that memory lacks: computed where the store has no record."""
        assert loaded.views is not None  # `load` gives views where a record is missing
        views = normalised(loaded.views.to(self.device, non_blocking=True), self.tower.backbone.view_settings)
        computed = self._compute(views)
        return self._merge(self.shelf, loaded, computed) if self.shelf else computed

    def _remember(self, loaded: LoadedBatch, features: Frozen) -> Frozen:
        """Put the features into memory as far as there is room; returns the whole batch in order."""
        fresh = [Frozen(*row) for row in zip(*features, strict=True)]
        for key, record in zip(loaded.keys, fresh, strict=True):
            self.memory.put(f"{self.name} {key}", record)
        if len(fresh) == len(loaded.kept):
            return features
        following = iter(fresh)
        return _stack([record or next(following) for record in loaded.kept])

    def _merge(self, shelf: Shelf, loaded: LoadedBatch, computed: Frozen) -> Frozen:
        """Put what was computed on the shelf; returns it and the records that were there as one batch, in order."""
        fresh = (Frozen(*row) for row in zip(*computed, strict=True))
        records = []
        for key, record in zip(loaded.keys, loaded.records, strict=True):
            if record is None:
                record = next(fresh)
                shelf.put(key, record)
            records.append(record.to(self.device))
        return _stack(records)


def _stack(records: Iterable[Frozen]) -> Frozen:
    return Frozen(*(torch.stack(column) for column in zip(*records, strict=True)))


def _shared_tower(tower: ImageTower, depth: int | None) -> ImageTower:
    """The tower whose trunks the store keeps: of insertion depth `depth`, or this one where its trunk is shorter."""
    backbone = tower.backbone
    n_insert = len(tower.blocks) - tower.first if depth is None else backbone.depth - depth + 1
    shared = ImageTower(backbone, n_insert, tower.dtype)
    return shared if shared.first <= tower.first else tower


def _facts(tower: ImageTower, chunk: int) -> dict[str, Any]:
    """All that a record's bits depend on, apart from the view."""
    return {
        "backbone": tower.backbone.identity,
        "blocks": tower.first,
        "precision": str(tower.dtype),
        "images_a_chunk": chunk,
        "versions": [METHOD_VERSION, DATA_VERSION, torch.__version__],
        "machine": [tower.backbone.device.type, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()],
    }


def training_key(digest: str, train: TrainConfig, epoch: int, item: str) -> str:
    """The record of a training view; without augmentation that is the test view's."""
    if train.augmentation == "none":
        return evaluation_key(digest)
    return f"{digest} train {train.views} {train.augmentation} {train.seed} {epoch} {item}"


def evaluation_key(digest: str) -> str:
    """The record of an image's test view, by the sha256 of the encoded image."""
    return f"{digest} test"


def image_digest(image: Image) -> str:
    """sha256 of an image's pixels."""
    return hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes()).hexdigest()
