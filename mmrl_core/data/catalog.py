"""The datasets by key: two that every installation has, and the CoOp benchmark's folders."""

import hashlib
import importlib
from functools import partial
from pathlib import Path
from types import ModuleType

from mmrl_core.data import coop
from mmrl_core.data.source import Source
from mmrl_core.errors import UserError
from mmrl_core.files import canonical_json

EMBEDDED = ("digits", "objects")
ALIASES = {"flowers102": "oxford_flowers", "describable_textures": "dtd"}


def known_keys() -> list[str]:
    """The keys `open_source` takes, aliases left out."""
    return sorted([*EMBEDDED, *coop.LAYOUTS])


def canonical_key(key: str) -> str:
    """The key itself, or the one it is an alias of. Raises UserError when there is no such dataset."""
    key = ALIASES.get(key, key)
    if key not in known_keys():
        raise UserError(f"unknown dataset {key!r}; choose one of {', '.join(known_keys())}")
    return key


def open_source(key: str, root: str | Path) -> Source:
    """The dataset of that key below the data root (which the embedded ones do not use), every image known to be there.

    Raises UserError on an unknown key, a missing folder, split file or image, and on a split file that is malformed.
    """
    key = canonical_key(key)
    return _embedded(key).open_source() if key in EMBEDDED else _open_coop(key, root)


def fingerprint(key: str, root: str | Path) -> dict:
    """What tells one state of the raw data from another without reading an image: JSON, deterministic.

    Holds "dataset" and "digest"; for a folder also the split file's hash, the hash of one stat walk, and counts.
    """
    key = canonical_key(key)
    if key in EMBEDDED:
        return _embedded(key).fingerprint()
    facts = {"dataset": key, **coop.fingerprint(coop.LAYOUTS[key], root)}
    return {**facts, "digest": hashlib.sha256(canonical_json(facts)).hexdigest()}


def _embedded(key: str) -> ModuleType:
    """Imported when asked for: what draws pictures takes a while to import."""
    return importlib.import_module(f"mmrl_core.data.{key}")


def _open_coop(key: str, root: str | Path) -> Source:
    layout = coop.LAYOUTS[key]
    images, split_path = coop.locate(layout, root)
    splits = coop.read_splits(split_path)
    class_names = coop.class_names_by_label(splits, split_path)
    coop.check_images(images, split_path, splits)
    return Source(key, [layout.template], class_names, **splits, reader=partial(coop.read_image, images))
