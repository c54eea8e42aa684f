"""`mmrl embed`: features of files, folders and tables of images, a row an image."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.options import DEFAULT_PARAMS, PATH, AsJson, settings_of, show
from flows.cli.predict.images import Tables, count_images, find_images, unread_notes
from flows.project.outputs import atomic_output, check_out_path
from flows.project.progress import ProgressReport, progress
from mmrl_core.errors import UserError
from mmrl_core.files import path_of

if TYPE_CHECKING:
    import torch

    from flows.settings.params import Params
    from mmrl_core.adapting.embedding import Encoder, Row

KINDS = (".parquet", ".npz")
ROWS = 1024  # rows of a table that are written at once

Put = Callable[[str, "Row | None"], None]


def embed(
    images: Annotated[
        list[Path], typer.Argument(help="Image files, folders of them, CSV or Parquet that name them.", **PATH)
    ],
    out: Annotated[Path, typer.Option("--out", help="Write FILE.parquet or FILE.npz.", **PATH)],
    model: Annotated[
        str | None, typer.Option(help="Adapter folder or models:/NAME@ALIAS, for its features as well.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Model of open_clip; default: that of params.yaml where it is, else tiny.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="The backbone's weights: a tag of open_clip or a file.")] = None,
    skip_damaged: Annotated[bool, typer.Option("--skip-damaged", help="Go on where an image cannot be read.")] = False,
    column: Annotated[str | None, typer.Option("--column", help="What a table calls the paths.")] = None,
    root: Annotated[Path | None, typer.Option("--images", help="What a table's paths start at.", **PATH)] = None,
    params: Annotated[
        Path | None, typer.Option("--params", help="Settings file whose backbone, or registry, to take.", **PATH)
    ] = None,
    json_: AsJson = False,
) -> None:  # fmt: skip
    """Write features of images: the frozen CLIP's, with an adapter also its own."""
    _check(out, model, backbone, weights)
    how = Tables(column, root, absent_ok=skip_damaged)
    total = count_images(images, how)  # what is wrong with a folder or table shows before the model is loaded
    for note in unread_notes(images):
        print(f"mmrl: {note}", file=sys.stderr)
    encoder = _encoder(model, backbone, weights, params)
    with _opened(out, encoder, total) as put, progress("embed", total, unit="images") as bar:
        counts = _embed(encoder, find_images(images, how), skip_damaged, put, bar)
    if counts["unreadable"]:
        print(f"mmrl: {counts['unreadable']} of {counts['images']} images cannot be read", file=sys.stderr)
    if json_:
        show({**counts, **encoder.facts, "columns": list(encoder.names)}, json_, str(out))
    else:
        show({**counts, "backbone": encoder.backbone.name, "columns": " ".join(encoder.names)}, json_, str(out))


def _check(out: Path, model: str | None, backbone: str | None, weights: str | None) -> None:
    """Raise UserError for options of which one cannot be, or two cannot be together."""
    if out.suffix not in KINDS:
        raise UserError(f"--out {out} names no table of features; end it in {' or '.join(KINDS)}")
    check_out_path(out, changed=True)
    if model and (backbone or weights):
        raise UserError("--model brings its own backbone; leave --backbone and --weights, or --model")
    if weights and not backbone:
        raise UserError(f"--weights {weights} are of a backbone; name it by --backbone")


def _encoder(model: str | None, backbone: str | None, weights: str | None, params: Path | None) -> "Encoder":
    """Of an adapter, or of a backbone alone; on the settings' device, without settings on a GPU where there is one."""
    from mmrl_core.adapting.embedding import Encoder
    from mmrl_core.clip.backbone import load_backbone

    if not model:
        name, weights = (backbone, weights) if backbone else _backbone_of(params)
        return Encoder(load_backbone(name, weights, device=_device(params)))
    if model.startswith("models:"):
        from flows.registry import versions
        from flows.tracking.store import store_uri

        store = store_uri(settings_of(model, params or DEFAULT_PARAMS, []))
        predictor = versions.load(model, store, device=_device(params))
    else:
        from mmrl_core.predict import Predictor

        predictor = Predictor.load(path_of(model), device=_device(params))
    return Encoder.of(predictor)


def _backbone_of(params: Path | None) -> tuple[str, str | None]:
    """Name and weights: of the settings that are named, or that lie here; else the bundled one."""
    settings = _settings(params)
    return (settings.backbone.name, settings.backbone.weights) if settings else ("tiny", None)


def _device(params: Path | None) -> "torch.device":
    from flows.project.resources import device_here

    settings = _settings(params)
    return device_here(settings.device if settings else "auto")


def _settings(params: Path | None) -> "Params | None":
    """Those that are named, or that lie here."""
    if params is None and not DEFAULT_PARAMS.exists():
        return None
    from flows.settings.params import load_params

    return load_params(params or DEFAULT_PARAMS)


def _embed(
    encoder: "Encoder", images: Iterable[Path], skip_damaged: bool, put: Put, bar: ProgressReport
) -> Counter[str]:
    """Put every image's row; returns how many images there were, and were unreadable."""
    paths, ahead = tee(images)
    counts = Counter(images=0, unreadable=0)
    for path, row in zip(paths, encoder.stream(ahead, skip_damaged=skip_damaged), strict=True):
        put(os.fsencode(path).decode(errors="backslashreplace"), row)
        counts.update(images=1, unreadable=row is None)
        bar(counts["images"])
    return counts


def _opened(out: Path, encoder: "Encoder", total: int) -> AbstractContextManager[Put]:
    return _parquet(out, encoder) if out.suffix == ".parquet" else _npz(out, encoder, total)


@contextmanager
def _parquet(out: Path, encoder: "Encoder") -> Iterator[Put]:
    """Write a Parquet file, which appears when it is whole; features are lists of float32, null where an image cannot
    be read. The schema's metadata say what they are of."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    columns = {"path": pyarrow.string(), **dict.fromkeys(encoder.names, pyarrow.list_(pyarrow.float32()))}
    facts = {f"mmrl.{name}": str(value) for name, value in encoder.facts.items()}
    schema = pyarrow.schema(columns, metadata=facts)
    with atomic_output(out) as path, ParquetWriter(path, schema) as writer:
        rows: list[dict[str, Any]] = []

        def flush() -> None:
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))
            rows.clear()

        def put(name: str, row: "Row | None") -> None:
            rows.append({"path": name, **(row or dict.fromkeys(encoder.names))})
            if len(rows) == ROWS:
                flush()

        yield put
        flush()


@contextmanager
def _npz(out: Path, encoder: "Encoder", total: int) -> Iterator[Put]:
    """Write NumPy arrays: `path` (N,) and features (N, E) float32, NaN where an image cannot be read. All are in memory
    until the file is written."""
    import numpy as np

    names: list[str] = []
    arrays = {name: np.full((total, encoder.backbone.embed_dim), np.nan, np.float32) for name in encoder.names}

    def put(name: str, row: "Row | None") -> None:
        for key, value in (row or {}).items():
            arrays[key][len(names)] = value
        names.append(name)

    with atomic_output(out) as path:
        yield put
        facts = {f"mmrl.{name}": np.array(str(value)) for name, value in encoder.facts.items()}
        everything: dict[str, Any] = {"path": np.array(names), **arrays, **facts}
        np.savez(path, **everything)
