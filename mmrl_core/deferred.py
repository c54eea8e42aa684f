"""Imports that do not run the `__init__` of packages through which everything else would come along.

`import torchvision.transforms` runs torchvision's `__init__`, which imports its models and, for one of its operators,
torch's compiler: 2 s for a few functions on images. `import_deferring("torchvision.transforms", "torchvision")` puts
that `__init__` off until somebody asks the package for something: by `import torchvision`, or by an attribute of it.

All that is imported is the real thing, and is executed once. Until its `__init__` runs, a package is not in
`sys.modules`, so that the first `import` of it comes to `_Finder`, which hands out the object that its submodules and
importers already hold, for the import system to execute. (`importlib.util.LazyLoader` cannot do this to packages: the
import of any submodule asks the package for its `__path__`, and so executes it.)
"""

import ast
import importlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, cast

__all__ = ["import_deferring"]

# What the import system reads of a package to find its submodules.
METADATA = {"__cached__", "__class__", "__file__", "__loader__", "__name__", "__package__", "__path__", "__spec__"}

_lock = threading.RLock()


def import_deferring(name: str, *packages: str) -> ModuleType:
    """The module `name`, imported without running the `__init__` of these packages where it can do without.

    What is taken from such a package by name (`from timm.layers import Mlp`) comes from the submodule from which its
    `__init__` would take it; for all else the `__init__` runs after all. If anything cannot be imported that way, the
    module is imported once more, plainly. Raises what the plain import raises.
    """
    with _lock:
        if name in sys.modules:
            return sys.modules[name]
        with _finder.deferring(packages) as all_present:
            try:
                module = importlib.import_module(name)
            except Exception:  # raised by the module itself or by deferring: the plain import will tell
                module = None
            if module and all_present():
                return module
        for loaded in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
            del sys.modules[loaded]
        return importlib.import_module(name)


class _Package(ModuleType):
    """A package whose `__init__` has not run. Asked for anything, it runs it and becomes a plain module."""

    def __getattribute__(self, attribute: str) -> Any:
        get = super().__getattribute__
        if attribute in METADATA:
            return get(attribute)
        if get("__name__") in _finder.open:
            if attribute in (origins := _origins(self)):
                submodule, original = origins[attribute]
                return getattr(importlib.import_module(submodule), original)
            if attribute in get("__dict__"):  # a submodule
                return get(attribute)
        return getattr(_finder.execute(get("__name__")), attribute)


def _origins(package: _Package) -> dict[str, tuple[str, str]]:
    """Name -> the submodule that the `__init__` takes it from, and its name there.

    A statement that may bind names in another way makes all the names before it uncertain, and they are left out.
    """
    origins: dict[str, tuple[str, str]] = {}
    loader = cast(_Loader, package.__loader__)
    for statement in ast.parse(loader.source(package.__name__)).body:
        match statement:
            case ast.ImportFrom(level=1, module=str(module), names=names) if names[0].name != "*":
                submodule = f"{package.__name__}.{module}"
                origins |= {alias.asname or alias.name: (submodule, alias.name) for alias in names}
            case ast.Expr(ast.Constant()) | ast.Assign(targets=[ast.Name("__all__")]):
                pass
            case _:
                origins.clear()
    return origins


class _Loader(Loader):
    """Creates the one module object of a package, and runs its `__init__` only when that is no longer put off."""

    def __init__(self, loader: Loader):
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _finder.packages.setdefault(spec.name, _Package(spec.name))

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        if name in _finder.open:
            return
        module.__class__ = ModuleType
        assert module.__spec__ is not None  # the import system has set it
        module.__spec__.loader = module.__loader__ = self.loader
        for child in [key for key, value in vars(module).items() if isinstance(value, _Package)]:
            delattr(module, child)  # or its `__init__`, finding it here, would not import it
        self.loader.exec_module(module)
        del _finder.packages[name]  # not before: after a failure the next import executes the same object again

    def source(self, name: str) -> str:
        """Of the `__init__`; empty where only bytecode is installed."""
        get_source = getattr(self.loader, "get_source", None)
        return (get_source(name) if get_source else None) or ""


class _Finder:
    """The first finder that the import system asks; knows the packages whose `__init__` has not run."""

    def __init__(self) -> None:
        self.open: set[str] = set()  # packages whose `__init__` is put off at present
        self.packages: dict[str, ModuleType] = {}  # packages whose `__init__` has not run yet
        self.asked: set[str] = set()  # submodules of the open packages that were imported

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.rpartition(".")[0] in self.open:
            self.asked.add(name)
        if name not in self.open and name not in self.packages:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec and spec.loader and spec.origin and spec.submodule_search_locations:
            spec.loader = _Loader(spec.loader)
            return spec
        return None

    @contextmanager
    def deferring(self, packages: tuple[str, ...]) -> Iterator[Callable[[], bool]]:
        """Put off the `__init__` of these packages; gives a function that says whether all their submodules imported.

        Where one did not, its importer may have gone on as if it were not installed.
        """
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)
        self.open, self.asked = {name for name in packages if name not in sys.modules}, set()
        try:
            yield lambda: self.asked <= sys.modules.keys()
        finally:
            self.open = set()
            for name in self.packages:
                self._forget(name)

    def execute(self, name: str) -> ModuleType:
        """Run the package's `__init__`; returns the package."""
        self.open.discard(name)
        self._forget(name)
        return importlib.import_module(name)

    def _forget(self, name: str) -> None:
        """Take the package out of sys.modules, so that its next import comes to this finder."""
        if isinstance(sys.modules.get(name), _Package):
            del sys.modules[name]


_finder = _Finder()
