"""What is asked and answered, with PyTorch and without: an image in, a prediction out."""

from pathlib import Path
from typing import NamedTuple

from PIL.Image import Image

from mmrl_core.data.images import decode, to_rgb
from mmrl_core.errors import UserError

ImageInput = str | Path | bytes | bytearray | memoryview | Image  # a file, its bytes, or decoded


class Prediction(NamedTuple):
    """The most probable name, its probability, and every name's, or those of the most probable names, the most probable
    first; `confidence` is what abstain.py compares.

    Classes may share a name, as in CLIP's own ImageNet list: its probability is the sum over them.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    confidence: float


def open_image(image: ImageInput, name: str) -> Image:
    """The image in RGB. Raises UserError with its path, or with `name`, when it cannot be read."""
    if isinstance(image, str | Path):
        try:
            return decode(Path(image).read_bytes(), str(image))
        except OSError as error:
            raise UserError(f"cannot read the image {image} ({error.strerror}); check the path") from None
    if isinstance(image, bytes | bytearray | memoryview):
        return decode(bytes(image), name)
    return to_rgb(image, name)
