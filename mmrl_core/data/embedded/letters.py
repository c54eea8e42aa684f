"""Rendered capital letters, printed and worn: what an adapter trained on another dataset is tried on.

The backbone `tiny` was trained on renders of the same kind, so zero-shot knows them; what counts is how much of that
an adapter keeps.
"""

from string import ascii_uppercase

from mmrl_core.data.embedded import drawn
from mmrl_core.data.source import Source
from mmrl_core.renders import glyphs

KEY = "letters"
TEMPLATES = ["a photo of the letter {}."]
CLASS_NAMES = list(ascii_uppercase)
COUNTS = {"train": 20, "val": 10, "test": 40}  # a class
# Identity of the pictures: write any other text here when one of them would be drawn differently. This one is a digest
# of the code that drew them before the identity was written down, so that data prepared then stays up to date.
PICTURES = "86d1486f6d47cc95ab7de04dec6db1303ba2b8f285bdf8e7b584fd4a01b386f7"


def open_source(key: str = KEY) -> Source:
    """The dataset; an image is a function of its path and is drawn when it is read."""
    draw = drawn.reader(KEY, lambda rng, item: glyphs.photograph(rng, item.class_name))
    return Source(KEY, TEMPLATES, CLASS_NAMES, *drawn.splits(CLASS_NAMES, COUNTS), reader=draw)


def fingerprint(key: str = KEY) -> dict[str, str]:
    """What the pictures depend on: they are drawn alike wherever `PICTURES` is the same."""
    return {"dataset": KEY, "digest": PICTURES}
