"""`mmrl flow`: the whole pipeline."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import DEFAULT_PARAMS, AsJson, Overrides, ParamsFile
from flows.project import paths
from flows.project.progress import lines
from flows.settings.params import load_params
from mmrl_core.errors import UserError
from mmrl_core.parsing import whole_number

if TYPE_CHECKING:
    from flows.orchestration.up_to_date import Adapted

Remote = Annotated[str | None, typer.Option("--remote", help="DVC remote to pull from first and push to at the end.")]


def adapt(
    params: ParamsFile = DEFAULT_PARAMS, remote: Remote = None, set_: Overrides = [], json_: AsJson = False
) -> None:  # fmt: skip
    """Run every stage that is out of date, then register and promote; no server needed. --set edits the settings file,
    which is what the stages read."""
    if set_:
        from flows.settings.edit import edit_params

        edit_params(params, set_)
    from flows.report.tables import markdown
    from flows.tracking.redaction import printable
    from flows.tracking.store import store_uri
    from mmrl_core.files import read_json

    with lines("adapt"):  # Prefect and its server take a while
        adapted = _adapted(params, remote)
    champions = {name: promoted.live for name, promoted in adapted.promoted.items()}
    if json_:
        decisions = {name: {"verdict": promoted.verdict, "reasons": promoted.reasons}
                     for name, promoted in adapted.promoted.items()}  # fmt: skip
        done = {"ran": adapted.ran, "up_to_date": adapted.up_to_date, "champions": champions, "decisions": decisions}
        print(json.dumps(done))
        return
    summary = read_json(paths.SUMMARY, made_by="mmrl summarize")
    print(markdown(summary["rows"] + summary["averages"]))
    print(f"champion: {', '.join(champions.values())}")
    for promoted in adapted.promoted.values():
        print(f"decision: {promoted.decided}")
    print(f"report:   {paths.REPORT}")
    print(f"runs:     mlflow ui --backend-store-uri {printable(store_uri(load_params(params)))}")


def _adapted(params: Path, remote: str | None) -> "Adapted":
    from flows.orchestration.prefect_process import begin_server, is_set_up_otherwise
    from flows.orchestration.up_to_date import up_to_date

    if not remote and (adapted := up_to_date(params)):
        return adapted
    load_params(params)
    if not is_set_up_otherwise():
        begin_server()  # which starts while Prefect is imported here
    from flows.orchestration import adapt as pipeline

    return pipeline.run_adapt(params, remote=remote)


def serve(
    cron: Annotated[str, typer.Option(help='When to run `adapt`, e.g. "0 2 * * *".')],
    worktree: Annotated[bool, typer.Option("--worktree", help="Run what is committed, in a git worktree.")] = False,
    params: ParamsFile = DEFAULT_PARAMS, remote: Remote = None, set_: Overrides = [],
) -> None:  # fmt: skip
    """Run `adapt` on a schedule; needs PREFECT_API_URL to name a running server."""
    refuse_overrides(set_)
    from flows.orchestration import adapt as pipeline

    pipeline.serve_adapt(cron, params, in_worktree=worktree, remote=remote)


def release(
    dataset: Annotated[list[str] | None, typer.Option(help="By default every dataset. Repeatable.")] = None,
    watch: Annotated[float | None, typer.Option(min=1, help="Look every so many seconds; --listen: 300.")] = None,
    listen: Annotated[str | None, typer.Option(help="HOST:PORT, for MLflow's webhook.")] = None,
    params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [], json_: AsJson = False,
) -> None:  # fmt: skip
    """Bundle the champions that are not released yet, check them, and point the alias `released` at them."""
    refuse_overrides(set_)
    from flows.orchestration import release as flow

    if listen:
        host, colon, port = listen.rpartition(":")
        number = whole_number(port)
        if not colon or number is None or number >= 2**16:
            raise UserError(f"--listen {listen} is not of the form HOST:PORT, such as 127.0.0.1:8090")
        flow.listen(str(params), dataset, host, number, watch or 300)
        return
    if watch:
        flow.watch(str(params), dataset, watch)
        return
    released = flow.run_release(str(params), dataset)
    if json_:
        print(json.dumps([version._asdict() for version in released]))
        return
    for version in released:
        state = "released" if version.created else "released before"
        print(f"{version.name} version {version.version}: {version.folder} ({state})")


def refuse_overrides(overrides: list[str]) -> None:
    """A flow's stages are DVC's, which read params.yaml and nothing else."""
    if overrides:
        raise UserError(f"--set {overrides[0]} does not reach the stages of a flow; write it into params.yaml")
