"""Few-shot adaptation of CLIP with MMRL and MMRL++: all of the library's public names, under the command's name.

`adapter = mmrl.adapt("photos")`, `adapter.predict("new.jpg")`, `adapter.save("adapter")`. docs/library.md shows the
rest. The names are those of `mmrl_core.__all__`, and each loads what it needs when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

import mmrl_core

if TYPE_CHECKING:
    from mmrl_core import *  # noqa: F403

    __version__: str
else:
    __all__ = mmrl_core.__all__


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in mmrl_core.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(mmrl_core, name)


def _version() -> str:
    """Of the installed package."""
    from importlib.metadata import version

    return version("mmrl-ops")


def __dir__() -> list[str]:
    return sorted({*globals(), *mmrl_core.__all__})
