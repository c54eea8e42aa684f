"""A safetensors file whose tensors are known beforehand, checked before any of them is read. Imports no PyTorch."""

import hashlib
from pathlib import Path

from safetensors import SafetensorError, safe_open

from mmrl_core.errors import Damaged, UserError
from mmrl_core.method.shapes import Shapes

FLOAT32 = "F32"


def checked_bytes(path: Path, shapes: Shapes, sha256: str | None = None) -> bytes:
    """The content of a file of that sha256. Raises Damaged unless its tensors are those of `shapes`, in float32;
    UserError when the file cannot be read."""
    try:
        _check_header(path, shapes)
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); run `mmrl train` first") from None
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise Damaged(f"{path} does not match the sha256 in its card; it was altered, make it again")
    return content


def refuse_infinite(path: Path, name: str | None) -> None:
    """Damaged where the tensor of that name has a value that is no number or infinite."""
    if name:
        raise Damaged(f"tensor {name} of {path} has values that are no finite numbers; make it again")


def _check_header(path: Path, shapes: Shapes) -> None:
    """A header that passes also bounds the file's size: safetensors refuses one that does not cover all of it."""
    try:
        with safe_open(path, "np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, it is no dictionary
            header = {name: (one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()}
    except SafetensorError as error:
        raise Damaged(f"{path} is not a safetensors file ({error}); pickles are never read here") from None
    expected = {name: (FLOAT32, shape) for name, shape in shapes.items()}
    for name in sorted(expected.keys() | header.keys()):
        if header.get(name) != expected.get(name):
            raise Damaged(
                f"{path} has {_words(header.get(name))} as tensor {name} where card and backbone ask for "
                f"{_words(expected.get(name))}; make it again"
            )


def _words(entry: tuple[str, tuple[int, ...]] | None) -> str:
    return "nothing" if entry is None else f"{entry[0]} {entry[1]}"
