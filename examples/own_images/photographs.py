"""Make a folder as somebody has it who has sorted pictures: one folder a class, and new ones that nobody has labelled.

    python examples/own_images/photographs.py [FOLDER]

The pictures are rendered ("striped red star", the embedded dataset `objects`): the bundled backbone, which is to learn
from them, knows no photographs. FOLDER is `photos` by default and must not be there yet.
"""

import sys
from pathlib import Path

from mmrl_core import open_source

CLASSES, LABELLED, NEW = 8, 40, 2  # of each class


def main(folder: Path) -> None:
    if folder.exists():
        raise SystemExit(f"{folder} is there already; name another folder")
    source = open_source("objects", "")
    for label, name in enumerate(source.class_names[:CLASSES]):
        of_class = [item for item in source.train if item.label == label][:LABELLED]
        for number, item in enumerate(of_class):
            write(folder / "labelled" / name / f"{number:03}.png", source.read(item))
        for number, item in enumerate([item for item in source.test if item.label == label][:NEW]):
            write(folder / "new" / f"{NEW * label + number:03}.png", source.read(item))
    print(
        f"{folder / 'labelled'}: {CLASSES} classes of {LABELLED} pictures; {folder / 'new'}: {CLASSES * NEW} to label"
    )


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("photos"))
