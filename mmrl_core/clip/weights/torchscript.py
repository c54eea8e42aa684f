"""The tensors of a TorchScript archive, read without running anything that is in it.

`torch.jit.load` runs no Python of the archive's, but it does run its TorchScript: a module's `__setstate__` is called
while loading, and TorchScript may write files. An archive is a zip of a pickle that describes the modules, and of one
file a tensor; here the pickle may make nothing but tensors and inert objects.
"""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

DTYPES = {
    "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16, "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64, "IntStorage": torch.int32, "LongStorage": torch.int64, "BoolStorage": torch.bool,
}  # fmt: skip


class _Object:
    """Stands for an object of any class of the archive's: holds its attributes and can do nothing."""

    state: object = None

    def __init__(self, *_arguments: object):
        pass

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Dtype(NamedTuple):
    """Stands for a storage class."""

    dtype: torch.dtype


class _Reader(pickle.Unpickler):
    """Makes tensors, ordered dicts and `_Object`s; any other global is an error before anything is called."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(archive.open(f"{root}data.pkl"))
        self.archive, self.root = archive, root

    def find_class(self, module: str, name: str) -> object:
        if module == "torch" and name in DTYPES:
            return _Dtype(DTYPES[name])
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module.split(".")[0] == "__torch__" or module == "torch.jit._pickle":
            return _Object
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no file of weights needs")

    def persistent_load(self, pid: tuple[object, _Dtype, str, object, int]) -> Tensor:
        """The stored numbers, flat: (numel,)."""
        _, (dtype,), key, _, numel = pid
        content = bytearray(self.archive.read(f"{self.root}data/{key}"))
        return torch.frombuffer(content, dtype=dtype, count=numel) if numel else torch.empty(0, dtype=dtype)


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_hooks: object) -> Tensor:
    return storage.as_strided(size, stride, offset)


def is_torchscript(path: str | Path) -> bool:
    """Whether a file is an archive that `torch.jit.save` wrote."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Parameters and buffers by name, as `torch.jit.load(path).state_dict()` has them, on the CPU.

    Raises pickle.UnpicklingError when the archive would make anything but tensors, and what zipfile and torch raise on
    a damaged file.
    """
    with zipfile.ZipFile(path) as archive:
        root = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")
        return dict(_named_tensors(_Reader(archive, root).load(), ""))


def _named_tensors(module: _Object, prefix: str) -> Iterator[tuple[str, Tensor]]:
    attributes = module.state if isinstance(module.state, dict) else {}
    for name, value in attributes.items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, _Object):
            yield from _named_tensors(value, f"{prefix}{name}.")
