"""`mmrl predict`: labels for files, folders and tables of images."""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.class_list import ClassFile, ClassNames, class_list, say_what_surprises
from flows.cli.options import DEFAULT_PARAMS, PATH, AsJson, ChampionOf, Overrides, ParamsFile, finite, settings_of, show
from flows.cli.predict import output
from flows.cli.predict.images import Tables, count_images, find_images, unread_notes
from flows.project.progress import ProgressReport, progress
from mmrl_core.errors import UserError
from mmrl_core.files import path_of

if TYPE_CHECKING:
    from flows.settings.params import Params
    from mmrl_core.light.answers import Prediction
    from mmrl_core.light.predictor import LightPredictor
    from mmrl_core.predict import Predictor

    Labeller = Predictor | LightPredictor


def predict(
    images: Annotated[
        list[Path], typer.Argument(help="Image files, folders of them, CSV or Parquet that name them.", **PATH)
    ],
    model: Annotated[str | None, typer.Option(help="Adapter folder or models:/NAME@ALIAS; default: champion.")] = None,
    dataset: ChampionOf = None,
    class_names: ClassNames = None,
    classes: ClassFile = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write a table: FILE.csv or FILE.parquet.", **PATH)] = None,
    all_: Annotated[bool, typer.Option("--all", help="A column of the table for every class's probability.")] = False,
    abstain: Annotated[bool, typer.Option("--abstain", help='Say "none of these" below a confidence.')] = False,
    threshold: Annotated[
        float | None,
        typer.Option(min=-1, max=1, callback=finite, help="Abstain below this confidence; default: the adapter's."),
    ] = None,
    skip_damaged: Annotated[bool, typer.Option("--skip-damaged", help="Go on where an image cannot be read.")] = False,
    column: Annotated[str | None, typer.Option("--column", help="What a table calls the paths.")] = None,
    root: Annotated[Path | None, typer.Option("--images", help="What a table's paths start at.", **PATH)] = None,
    params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [], json_: AsJson = False,
) -> None:  # fmt: skip
    """Label images, with probabilities."""
    _check_table_options(out, all_)
    class_names = class_list(class_names, classes)
    how = Tables(column, root, absent_ok=skip_damaged)
    total = count_images(images, how)  # what is wrong with a folder or table shows before the model is loaded
    for note in unread_notes(images):
        print(f"mmrl: {note}", file=sys.stderr)
    settings = cache(partial(settings_of, model, params, set_))
    predictor = _open(model, dataset, settings, partial(_load, class_names, total, settings))
    threshold = _threshold(predictor, abstain, threshold)
    say_what_surprises(predictor, class_names)
    columns = (class_names or predictor.class_names) if all_ else []
    with (
        _opened(out, json_, threshold is not None, columns) as put,
        progress("predict", total, unit="images") if out or json_ else nullcontext(_no_progress) as bar,
    ):
        found = find_images(images, how)
        top_k = None if out or json_ else output.TOP
        stream = partial(predictor.stream, class_names=class_names, skip_damaged=skip_damaged, top_k=top_k)
        counts = _label(stream, found, threshold, put, bar)
    _report(counts, out, json_, threshold is not None)


def _check_table_options(out: Path | None, all_: bool) -> None:
    if out:
        output.check_table(out)
    elif all_:
        raise UserError("--all adds columns to a table; give --out FILE.csv or FILE.parquet with it")


def _open(
    model: str | None, dataset: str | None, settings: "Callable[[], Params]", load: "Callable[[Path], Labeller]"
) -> "Labeller":
    """The adapter of a folder, which needs no settings, or the registry's."""
    if model and not dataset and not model.startswith("models:"):
        return load(path_of(model))
    from flows.registry import versions

    return versions.open_adapter(settings(), load, model, dataset)


def _load(class_names: list[str] | None, total: int, settings: "Callable[[], Params]", folder: Path) -> "Labeller":
    """The adapter in a folder: in NumPy where the images are few and nothing else needs PyTorch, which computes on the
    settings' device."""
    from mmrl_core.light.predictor import LightPredictor

    if light := LightPredictor.load(folder, class_names, images=total):
        return light
    from flows.project.resources import device_here, device_name
    from mmrl_core.predict import Predictor

    return Predictor.load(folder, device=device_here(device_name(settings())))


def _no_progress(done: int, total: int | None = None, note: str = "") -> None:
    """Where the labels are printed as they come: they are the progress, and a bar would draw over them."""


def _threshold(predictor: "Labeller", abstain: bool, threshold: float | None) -> float | None:
    """The confidence to abstain below; None: never."""
    from mmrl_core.evaluation.abstain import card_threshold

    return card_threshold(predictor.card) if abstain and threshold is None else threshold


def _opened(out: Path | None, json_: bool, abstained: bool, columns: list[str]) -> AbstractContextManager[output.Put]:
    if out:
        return output.table(out, abstained, columns)
    return output.json_object() if json_ else output.lines()


def _label(
    stream: "Callable[[Iterable[Path]], Iterator[Prediction | None]]", images: Iterable[Path], threshold: float | None,
    put: output.Put, bar: ProgressReport,
) -> Counter[str]:  # fmt: skip
    """Put every image's row; returns how many images there were, were unreadable, and got no label (`abstained`)."""
    paths, ahead = tee(images)
    counts = Counter(images=0, unreadable=0, abstained=0)
    for path, prediction in zip(paths, stream(ahead), strict=True):
        row = output.describe(path, prediction, threshold)
        put(row)
        counts.update(images=1, unreadable=prediction is None, abstained=bool(row.get("abstained")))
        bar(counts["images"])
    return counts


def _report(counts: Counter[str], out: Path | None, json_: bool, abstained: bool) -> None:
    if counts["unreadable"]:
        print(f"mmrl: {counts['unreadable']} of {counts['images']} images cannot be read", file=sys.stderr)
    if out:
        asked = {name: count for name, count in counts.items() if abstained or name != "abstained"}
        show(asked, json_, str(out))
