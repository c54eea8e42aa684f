"""The datasets by key: those that every installation has, the CoOp benchmark's folders, and the user's own."""

import hashlib
import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mmrl_core.config import did_you_mean
from mmrl_core.data.benchmark import aircraft, coop, imagenet
from mmrl_core.data.known.files import Reader
from mmrl_core.data.own import dataset as own_data
from mmrl_core.data.own.settings import OwnSection
from mmrl_core.data.source import Source
from mmrl_core.errors import UserError
from mmrl_core.files import canonical_json

if TYPE_CHECKING:
    from mmrl_core.data.known.store import Store

# Modules with open_source(key) and fingerprint(key), by the keys that they make.
EMBEDDED = {
    "digits": "digits",
    "digits_inverted": "digits_shifted",
    "digits_noisy": "digits_shifted",
    "digits_rotated": "digits_shifted",
    "digits_outlines": "digits_shifted",
    "letters": "letters",
    "objects": "objects",
    "signboards": "signboards",
}
# Modules with open_source, fingerprint, needs, template and read, each of (key, root).
BENCHMARK: dict[str, ModuleType] = {
    "imagenet": imagenet,
    **dict.fromkeys(coop.LAYOUTS, coop),
    "fgvc_aircraft": aircraft,
    **dict.fromkeys(imagenet.VARIANTS, imagenet),
}
ALIASES = {"flowers102": "oxford_flowers", "describable_textures": "dtd"}


Own = dict[str, OwnSection]  # the user's datasets by key: data.own of params.yaml


def known_keys(own: Own | None = None) -> list[str]:
    """The keys `open_source` takes, aliases left out."""
    return sorted([*EMBEDDED, *BENCHMARK, *(own or {})])


def canonical_key(key: str, own: Own | None = None) -> str:
    """The key itself, or the one it is an alias of. Raises UserError when there is no such dataset."""
    if taken := {*EMBEDDED, *BENCHMARK, *ALIASES} & set(own or {}):
        raise UserError(f"data.own names {min(taken)!r}, which is a dataset already; choose another name")
    key = ALIASES.get(key, key)
    if key not in known_keys(own):
        all_known = f"; choose one of {', '.join(known_keys(own))}, or name your own under data.own"
        raise UserError(f"unknown dataset {key!r}{did_you_mean(key, known_keys(own)) or all_known}")
    return key


def open_source(
    key: str, root: str | Path, own: Own | None = None, *, known: str | Path | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Source:  # fmt: skip
    """The dataset of that key below the data root (which the embedded ones do not use), every image known to be there.

    In the folder `known` is kept what was found out of files: of one's own data a digest each. What is there of a file
    of the same size, time of change and inode is not found out again. Calls `report(done, total)` after every image of
    one's own data.

    Raises UserError on an unknown key, a missing folder, split file or image, and on a split file that is malformed.
    """
    key = canonical_key(key, own)
    if own and key in own:
        return own_data.open_source(key, own[key], store_in(known), report)
    if key in EMBEDDED:
        return _embedded(key).open_source(key)
    return with_known(BENCHMARK[key].open_source(key, root), known)


def store_in(folder: str | Path | None) -> "Store | None":
    """What is known of files, in that folder."""
    from mmrl_core.data.known.store import Store

    return Store(folder) if folder else None


def with_known(source: Source, folder: str | Path | None) -> Source:
    """The source, whose images are not decoded where they were before."""
    from mmrl_core.data.known.reading import Known

    reader = source.reader
    return replace(source, known=Known(reader, store_in(folder))) if folder and isinstance(reader, Reader) else source


def fingerprint(key: str, root: str | Path, own: Own | None = None) -> dict[str, Any]:
    """What tells one state of the raw data from another without reading an image: JSON, deterministic.

    Holds "dataset" and "digest"; for a folder also the split file's hash, the hash of one stat walk, and counts.
    """
    key = canonical_key(key, own)
    if own and key in own:
        return own_data.fingerprint(key, own[key])
    if key in EMBEDDED:
        return _embedded(key).fingerprint(key)
    facts = {"dataset": key, **BENCHMARK[key].fingerprint(key, root)}
    return {**facts, "digest": hashlib.sha256(canonical_json(facts)).hexdigest()}


def photograph_note(key: str, backbone: str) -> str | None:
    """A line where a dataset may hold photographs and the backbone is the bundled one, which knows none."""
    if key in EMBEDDED or backbone != "tiny":
        return None
    return (
        "the backbone tiny was trained on rendered letters, digits and shapes and knows no photographs; for those let "
        "params.yaml say `backbone: {name: ViT-B-16, weights: openai}`, or a file of weights in place of openai"
    )


def _embedded(key: str) -> ModuleType:
    """Imported when asked for: what draws pictures takes a while to import."""
    return importlib.import_module(f"mmrl_core.data.embedded.{EMBEDDED[key]}")
