"""The `mmrl` command. Parses, locks, prints; the work is in stages.py, registry.py and pipeline.py."""

import json
import os
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from typer.exceptions import TyperException

from flows import paths
from flows.outputs import building, check_out
from flows.paths import RunKey
from mmrl_core.config import Method, Params, load_params
from mmrl_core.errors import UserError

app = typer.Typer(help="Adapt CLIP to your own few images, and keep it adapted.", add_completion=False,
                  no_args_is_help=True, pretty_exceptions_enable=False)  # fmt: skip
flow = typer.Typer(help="The whole pipeline as a Prefect flow.", no_args_is_help=True)
app.add_typer(flow, name="flow")

DEFAULT_PARAMS = Path("params.yaml")
INTERRUPTED = 130  # what typer makes of Ctrl-C
MethodName = StrEnum("MethodName", {name: name for name in get_args(Method)})

ParamsFile = Annotated[Path, typer.Option("--params", help="Settings file.")]
Overrides = Annotated[list[str], typer.Option("--set", help="Override a setting: key.path=value. Repeatable.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Out = Annotated[Path | None, typer.Option("--out", help="Write here instead of the tracked path.")]
Dataset = Annotated[str, typer.Option("--dataset", help="Dataset key.")]
MethodOption = Annotated[MethodName, typer.Option("--method", help="Method.")]
Shots = Annotated[int, typer.Option("--shots", min=1, help="Labelled images a class.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of sampling, initialisation and order.")]


def show(result: dict[str, Any], as_json: bool, title: str) -> None:
    """One JSON object, or a short line for people."""
    if as_json:
        print(json.dumps(result, default=str))
        return
    if "table" in result:
        print(result["table"])
    values = ", ".join(f"{name} {_short(value)}" for name, value in result.items() if name != "table" and value != [])
    print(f"{title}: {values}" if values else title)


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
    params_file: Path, overrides: list[str], out: Path | None, tracked: Path, as_json: bool,
    stage: Callable[[Params, Path], dict[str, Any]], *, merge: bool = False,
) -> None:  # fmt: skip
    """Check the settings, build the output aside and under a lock, put it in place, say what was done."""
    check_out(out, changed=bool(overrides) or params_file != DEFAULT_PARAMS)
    params = load_params(params_file, overrides)
    final = out or tracked
    with building(final, merge=merge and out is None) as path:
        result = stage(params, path)
    show(result, as_json, str(final))


@app.command()
def fingerprint(
    dataset: Dataset, params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [], out: Out = None, json_: AsJson = False
):
    """Digest the raw source of a dataset."""
    from flows import stages

    run_stage(params, set_, out, paths.source(dataset), json_, lambda p, path: stages.fingerprint(p, dataset, path))


@app.command()
def prepare(
    dataset: Dataset,
    shots: Annotated[int | None, typer.Option(min=1, help="With --seed: the few-shot set; without: the pool.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Sampling seed.")] = None,
    params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [], out: Out = None, json_: AsJson = False,
):  # fmt: skip
    """Write WebDataset shards: the val and test pool, or with --shots and --seed a few-shot set."""
    from flows import stages

    if (shots is None) != (seed is None):
        raise UserError("prepare needs --shots and --seed together, or neither for the val and test pool")
    if shots is None:
        run_stage(params, set_, out, paths.pool(dataset), json_, lambda p, path: stages.prepare_pool(p, dataset, path))
        return
    tracked = paths.few_shot(dataset, shots, seed)
    run_stage(params, set_, out, tracked, json_, lambda p, path: stages.prepare_few_shot(p, dataset, shots, seed, path))


@app.command()
def tune(
    dataset: Dataset, method: MethodOption, params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [],
    out: Out = None, json_: AsJson = False,
):  # fmt: skip
    """Search the open settings on validation data of the base classes."""
    from flows import stages

    tracked = paths.search(dataset, method.value)
    run_stage(params, set_, out, tracked, json_, lambda p, path: stages.tune(p, dataset, method.value, path))


@app.command()
def train(
    dataset: Dataset, method: MethodOption, shots: Shots, seed: Seed, params: ParamsFile = DEFAULT_PARAMS,
    set_: Overrides = [], out: Out = None, json_: AsJson = False,
):  # fmt: skip
    """Train one adapter."""
    from flows import stages

    key = RunKey(dataset, method.value, shots, seed)
    run_stage(params, set_, out, key.model, json_, lambda p, path: stages.train(p, key, path))


@app.command()
def evaluate(
    dataset: Dataset, method: MethodOption, shots: Shots, seed: Seed, params: ParamsFile = DEFAULT_PARAMS,
    set_: Overrides = [], out: Out = None, json_: AsJson = False,
):  # fmt: skip
    """Score one adapter, and zero-shot, on the test sets of the protocol."""
    from flows import stages

    key = RunKey(dataset, method.value, shots, seed)
    run_stage(params, set_, out, key.results(), json_, lambda p, path: stages.evaluate(p, key, path))


@app.command()
def summarize(params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [], out: Out = None, json_: AsJson = False):
    """Tables over all runs that the settings name."""
    from flows import stages

    run_stage(params, set_, out, paths.SUMMARY.parent, json_, stages.summarize, merge=True)


@app.command()
def register(
    dataset: Annotated[str | None, typer.Option(help="By default every dataset of the settings.")] = None,
    params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [], json_: AsJson = False,
):  # fmt: skip
    """Register the adapter that is best on validation, once per content hash."""
    from flows import registry

    settings = load_params(params, set_)
    names = [dataset] if dataset else settings.datasets
    results = {name: registry.register(settings, registry.candidate(settings, name)) for name in names}
    show_each(results, json_, lambda result: "registered" if result.created else "already registered")


@app.command()
def promote(
    dataset: Annotated[str | None, typer.Option(help="By default every dataset of the settings.")] = None,
    version: Annotated[int | None, typer.Option(min=1, help="By default the one that `register` chose last.")] = None,
    params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [], json_: AsJson = False,
):  # fmt: skip
    """Move the alias `champion`."""
    from flows import registry

    settings = load_params(params, set_)
    names = [dataset] if dataset else settings.datasets
    results = {name: registry.promote(settings, name, version) for name in names}
    show_each(results, json_, lambda result: "promoted" if result.moved else "already the champion")


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    model: Annotated[str | None, typer.Option(help="Adapter folder or models:/NAME@ALIAS; default: champion.")] = None,
    class_names: Annotated[list[str] | None, typer.Option("--class", help="Class to choose. Repeatable.")] = None,
    params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [], json_: AsJson = False,
):  # fmt: skip
    """Label images, with probabilities."""
    from flows import registry

    predictor = registry.open_predictor(load_params(params, set_), model)
    found = predictor.predict(images, class_names)
    if json_:
        print(json.dumps({str(path): one._asdict() for path, one in zip(images, found, strict=True)}))
        return
    for path, one in zip(images, found, strict=True):
        best = sorted(one.probabilities.items(), key=lambda pair: -pair[1])[:5]
        print(f"{path}: " + ", ".join(f"{name} {probability:.1%}" for name, probability in best))


@app.command("import")
def import_(
    checkpoint: Annotated[Path, typer.Argument(help="A .pth.tar of the authors' code.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the adapter.")],
    class_names: Annotated[list[str], typer.Option("--class", help="Classes in training order. Repeatable.")],
    template: Annotated[str, typer.Option(help="Prompt template.")] = "a photo of a {}.",
    params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [], json_: AsJson = False,
):  # fmt: skip
    """Turn a checkpoint of the authors' code into an adapter."""
    from flows import stages

    check_out(out, changed=True)
    settings = load_params(params, set_)
    with building(out) as path:
        result = stages.import_published(settings, checkpoint, class_names, template, path)
    show(result, json_, str(out))


@app.command()
def pretrain(
    out: Annotated[Path, typer.Option("--out", help="Folder for tiny.safetensors and tiny.json.")],
    steps: Annotated[int | None, typer.Option(min=1, help="By default what the shipped weights took.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    json_: AsJson = False,
):
    """Train the bundled backbone `tiny` from scratch on rendered glyphs and objects."""
    from flows.progress import progress
    from mmrl_core.pretrain import pretrain as run

    with progress("pretrain", steps) as bar:
        card = run(out, seed=seed, report=lambda step, total, loss: bar(step, total, note=f"loss {loss:.3f}"),
                   **({"steps": steps} if steps else {}))  # fmt: skip
    show({"sha256": card["sha256"], **card["figures"]}, json_, str(out))


@flow.command()
def adapt(params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [], json_: AsJson = False):
    """Run every stage that is out of date, then register and promote; no server needed."""
    refuse_overrides(set_)
    from flows import pipeline
    from mmrl_core.files import read_json
    from mmrl_core.report import markdown

    adapted = pipeline.run_adapt(params)
    champions = {name: f"models:/{one.name} version {one.version}" for name, one in adapted.promoted.items()}
    if json_:
        print(json.dumps({"ran": adapted.ran, "up_to_date": adapted.up_to_date, "champions": champions}))
        return
    print(markdown(read_json(paths.SUMMARY, made_by="mmrl summarize")["rows"]))
    print(f"champion: {', '.join(champions.values())}")
    print(f"report:   {paths.REPORT}")
    print(f"runs:     mlflow ui --backend-store-uri {load_params(params).tracking.uri}")


@flow.command()
def serve(
    cron: Annotated[str, typer.Option(help='When to run `adapt`, e.g. "0 2 * * *".')],
    params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [],
):  # fmt: skip
    """Run `adapt` on a schedule; needs PREFECT_API_URL to name a running server."""
    refuse_overrides(set_)
    from flows import pipeline

    pipeline.serve_adapt(cron, params)


def refuse_overrides(overrides: list[str]) -> None:
    """A flow's stages are DVC's, which read params.yaml and nothing else."""
    if overrides:
        raise UserError(f"--set {overrides[0]} does not reach the stages of a flow; write it into params.yaml")


def main() -> None:
    """Exit 0 done, 2 the user's input is at fault (one line on stderr), 1 anything else."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads stall a shared machine
    try:
        if code := app(standalone_mode=False):
            _fail("interrupted", 1) if code == INTERRUPTED else sys.exit(code)
        sys.exit(0)
    except UserError as error:
        _fail(str(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", 1)
    except TyperException as error:
        _fail(" ".join(error.format_message().split()) or "name one of the commands above", 2)


def _fail(message: str, code: int) -> None:
    print(f"mmrl: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
