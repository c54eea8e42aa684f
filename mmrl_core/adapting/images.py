"""One image, in whatever form a program has it: a path, encoded bytes, a PIL image, or an array of bytes."""

from pathlib import Path
from typing import Any, cast

import PIL.Image
from PIL.Image import Image

from mmrl_core.data.images import decode, to_rgb
from mmrl_core.errors import UserError

ENCODED = (bytes, bytearray, memoryview)
FORMS = "a path, encoded bytes, a PIL image or an array of bytes (height, width, 3)"


def is_one_image(value: object) -> bool:
    """Whether it is meant as one image, and not as several."""
    return isinstance(value, str | Path | Image | bytes | bytearray | memoryview) or getattr(value, "ndim", 0) in (2, 3)


def open_image(image: Any, name: str) -> Image:
    """The RGB image, upright and on white (`mmrl_core.data.images.decode`).

    Raises UserError that calls it `name`, or by its path, when it cannot be read, and for what is no image: tensors and
    arrays of floats have no agreed range.
    """
    if isinstance(image, str | Path):
        return decode(read_file(image), str(image))
    if isinstance(image, ENCODED):
        return decode(bytes(image), name)
    return to_rgb(image if isinstance(image, Image) else _of_array(image, name), name)


def read_file(path: str | Path) -> bytes:
    """The file's bytes. Raises UserError naming it when it cannot be read."""
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # a NUL character is the latter
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the image {path} ({reason}); check the path") from None


def _of_array(array: Any, name: str) -> Image:
    """Of an array (H, W), (H, W, 3) or (H, W, 4) of unsigned bytes."""
    kind, shape = type(array).__name__, tuple(getattr(array, "shape", ()))
    if type(array).__module__.split(".")[0] == "torch":
        raise UserError(
            f"image {name} is a tensor of torch, whose range and normalisation are not known; give PIL images (leave "
            "out the dataset's transform), or views by `adapter.transform` to `adapter.logits`"
        )
    if not hasattr(array, "dtype"):
        raise UserError(f"image {name} is of type {kind}; give {FORMS}")
    if array.dtype != "uint8" or not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))):
        raise UserError(
            f"image {name} is an array of {array.dtype} of shape {shape}; give bytes (uint8), (height, width, 3)"
        )
    return PIL.Image.fromarray(cast(Any, array))
