"""What the commands share: their options, and how a result is shown."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from flows.project.outputs import atomic_output, check_out_path
from flows.project.progress import progress
from flows.settings.template import DEFAULT_PARAMS
from mmrl_core.config import Method, did_you_mean
from mmrl_core.files import path_of
from mmrl_core.protocols import BASELINES

if TYPE_CHECKING:
    from flows.settings.params import Params

METHODS: tuple[str, ...] = get_args(Method)
LARGEST_SEED, MOST_SHOTS = 2**63 - 1, 100_000


def _one_of(known: Sequence[str]) -> dict[str, Any]:
    def parse(text: str) -> str:
        if text not in known:
            listed = ", ".join(map(repr, known))
            raise typer.BadParameter(f"{text!r} is not one of {listed}{did_you_mean(text, known)}")
        return text

    return {"parser": parse, "metavar": f"[{'|'.join(known)}]", "autocompletion": lambda: list(known)}


def _datasets(incomplete: str) -> list[str]:
    """For the shell's completion: the keys of all datasets that begin so, one's own among them where there are settings
    that can be read."""
    from mmrl_core.data.catalog import known_keys
    from mmrl_core.errors import UserError

    try:
        from flows.settings.params import load_params

        keys = known_keys(load_params(DEFAULT_PARAMS).data.own)
    except UserError:
        keys = known_keys()
    return [key for key in keys if key.startswith(incomplete)]


def finite(value: float | None) -> float | None:
    """The number of an option; a range of typer's lets NaN through."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no number that can be used here")
    return value


PATH: dict[str, Any] = {"parser": path_of, "metavar": "PATH"}  # of every option and argument that is a path
ParamsFile = Annotated[Path, typer.Option("--params", help="Settings file.", **PATH)]
Overrides = Annotated[list[str], typer.Option("--set", help="Override a setting: key.path=value. Repeatable.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Out = Annotated[Path | None, typer.Option("--out", help="Write here instead of the tracked path.", **PATH)]
Dataset = Annotated[str, typer.Option("--dataset", help="Dataset key.", autocompletion=_datasets)]
MethodOption = Annotated[Method, typer.Option("--method", help="Method.", **_one_of(METHODS))]
KIND = _one_of([*METHODS, *BASELINES])
KindOption = Annotated[str, typer.Option("--method", help="Method or baseline.", **KIND)]
ChampionOf = Annotated[
    str | None,
    typer.Option(
        "--dataset", help="Whose champion; by default that of the settings' only dataset.", autocompletion=_datasets
    ),
]
Shots = Annotated[int, typer.Option("--shots", min=1, max=MOST_SHOTS, help="Labelled images a class.")]
Seed = Annotated[
    int, typer.Option("--seed", min=0, max=LARGEST_SEED, help="Seed of sampling, initialisation and order.")
]


def show(result: dict[str, Any], as_json: bool, title: str) -> None:
    """One JSON object, or a short line for people, and one for each of the notes."""
    if as_json:
        print(json.dumps(result, default=str))
        return
    if "table" in result:
        print(result["table"])
    apart = ("table", "notes")
    values = ", ".join(f"{name} {_short(value)}" for name, value in result.items() if name not in apart and value != [])
    print(f"{title}: {values}" if values else title)
    for note in result.get("notes", []):
        print(f"{title}: {note}")


def show_each(results: dict[str, Any], as_json: bool, title: Callable[[Any], str]) -> None:
    """Results by dataset."""
    if as_json:
        print(json.dumps({name: result._asdict() for name, result in results.items()}))
        return
    for result in results.values():
        show(result._asdict(), False, title(result))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:200]


def run_stage(
    doing: str, params_file: Path, overrides: list[str], out: Path | None, tracked: Path, as_json: bool,
    stage: "Callable[[Params, Path], dict[str, Any]]", *, merge: bool = False,
) -> None:  # fmt: skip
    """Check the settings, run the stage with its output written atomically to `tracked`, or to `out`, and show what it
    returns. Progress calls it `doing`."""
    from flows.project.versions import require_installed
    from flows.settings.params import load_params

    check_out_path(out, changed=bool(overrides) or params_file != DEFAULT_PARAMS)
    params = load_params(params_file, overrides)
    require_installed()
    final = out or tracked
    with progress(doing), atomic_output(final, merge=merge and out is None) as path:
        result = stage(params, path)
    show(result, as_json, str(final))


def settings_of(model: str | None, params_file: Path, overrides: list[str]) -> "Params":
    """The settings; those that the package ships where an adapter is named and there is no project."""
    from flows.settings.params import load_params, params_or_shipped

    return (params_or_shipped if model else load_params)(params_file, overrides)


def text_table(header: list[str], rows: Iterable[list[str]]) -> str:
    """Columns as wide as their longest cell."""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
