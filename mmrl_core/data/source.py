"""What every dataset looks like to the rest: names, prompt templates, three lists of items, a way to their bytes."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mmrl_core.data.foreign import check_format, is_readable_heif
from mmrl_core.data.splits import Item
from mmrl_core.errors import UserError

if TYPE_CHECKING:
    from mmrl_core.data.known.reading import Known
    from mmrl_core.data.own.tars import Members

IMAGE_EXTENSIONS = {
    "apng", "avif", "bmp", "gif", "jfif", "jpe", "jpeg", "jpg", "pbm", "pgm", "png", "pnm", "ppm", "tif", "tiff",
    "webp",
}  # fmt: skip


def is_image_name(path: str) -> bool:
    """Whether the file extension, in either case, is that of an image that is read."""
    return extension_of(path) in IMAGE_EXTENSIONS or is_readable_heif(path)


def extension_of(path: str) -> str:
    """The extension of the file's name in lower case, without its dot, as `PurePosixPath.suffix` finds it."""
    stem, _, extension = path.rstrip("/").rpartition(".")
    return "" if not stem or stem.endswith("/") or "/" in extension else extension.lower()


def told_apart(class_names: Sequence[str]) -> list[str]:
    """The names as people are shown them, by label: one that several classes have comes with each one's label."""
    times = Counter(class_names)
    return [name if times[name] == 1 else f"{name} (label {label})" for label, name in enumerate(class_names)]


@dataclass(frozen=True)
class Source:
    """A dataset as it lies on disk or is made. Of several `templates` the zero-shot CLIP's best on validation is used;
    a benchmark dataset has the published one alone."""

    key: str
    templates: list[str]
    class_names: list[str]  # by label
    train: list[Item]
    val: list[Item]
    test: list[Item]
    reader: Callable[[Item], bytes]
    base: list[int] | None = None  # labels of the base classes where the dataset names them; None: the first half
    notes: list[str] = field(default_factory=list)  # what the user should know of the data, one line each
    known: "Known | None" = None  # its files, where some may be known from before to be whole images
    tars: "Members | None" = None  # where images stay in tar files, which the pool then lists

    def items(self, split: str) -> list[Item]:
        """The items of "train", "val" or "test"."""
        return {"train": self.train, "val": self.val, "test": self.test}[split]

    def read(self, item: Item) -> bytes:
        """The image file's bytes as they came. Raises UserError when the file cannot be read."""
        return self.reader(item)

    def image_extension(self, item: Item) -> str:
        """The lower-case file extension, without the dot. Raises UserError when it is no image's."""
        check_format(item.path, self.key)
        if not is_image_name(item.path):
            known = ", ".join(sorted(IMAGE_EXTENSIONS))
            raise UserError(f"{self.key}: {item.path} is no image file name; use one of the extensions {known}")
        return extension_of(item.path)
