"""Images are read without a word on stderr: of the tags of a file of 50 kB Pillow and libtiff can write a megabyte.

What matters of it is an error, which the reader raises; the rest is about metadata that is not used here.
"""

import contextlib
import ctypes
import logging
import threading
import warnings
from collections.abc import Iterator
from typing import cast

from PIL import Image


class _Reader(threading.local):
    """The pattern of modules in a filter of warnings: it matches all in a thread that reads an image, else none.

    `warnings.catch_warnings` changes the filters of every thread: the end of one brings the words of another back.
    """

    reads = False

    def match(self, module: str) -> bool:
        return self.reads


_READER, _CHANGE = _Reader(), threading.Lock()
_FILTER = ("ignore", None, Warning, _READER, 0)  # so that no registry of warnings grows by what a file says, either


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Within it, warnings and Pillow's log lines of this thread are dropped; other threads' stay as they are."""
    if not warnings.filters or warnings.filters[0] is not _FILTER:
        _go_first(cast(list, warnings.filters))
    before, _READER.reads = _READER.reads, True
    try:
        yield
    finally:
        _READER.reads = before


def _go_first(filters: list) -> None:
    """At first, and after somebody has added a filter, which would decide before ours, or taken all away."""
    with _CHANGE:
        filters[:] = [_FILTER, *(known for known in filters if known is not _FILTER)]


def _silence_libtiff() -> None:
    """libtiff writes its errors to file descriptor 2, past Python; Pillow raises by what a call returns, without them.

    In a Pillow that was built in another way the functions may not be found: then libtiff keeps talking.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(Image.core.__file__)
        for setter in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
            setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
            setter(None)


_silence_libtiff()
logging.getLogger("PIL.TiffImagePlugin").addFilter(lambda _: not _READER.reads)
