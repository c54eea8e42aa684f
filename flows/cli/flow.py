"""`mmrl flow`: the whole pipeline."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import DEFAULT_PARAMS, AsJson, Overrides, ParamsFile, finite
from flows.project import paths
from flows.project.progress import lines
from flows.project.versions import require_installed
from flows.settings import addresses
from flows.settings.params import load_params
from flows.settings.resolve import photograph_notes
from mmrl_core.config import short
from mmrl_core.errors import UserError

if TYPE_CHECKING:
    from flows.orchestration.up_to_date import Adapted

Remote = Annotated[str | None, typer.Option("--remote", help="DVC remote to pull from first and push to at the end.")]


def adapt(
    params: ParamsFile = DEFAULT_PARAMS, remote: Remote = None, set_: Overrides = [], json_: AsJson = False
) -> None:  # fmt: skip
    """Run every stage that is out of date, then register and promote; no server needed. --set edits the settings file,
    which is what the stages read; it is put back where the run fails."""
    from flows.report.tables import markdown
    from flows.tracking.redaction import printable
    from flows.tracking.store import store_uri
    from mmrl_core.files import read_json

    with lines("adapt"):  # Prefect and its server take a while
        adapted = _adapted(params, remote, set_)
    champions = {name: promoted.live for name, promoted in adapted.promoted.items()}
    settings = load_params(params)
    notes = photograph_notes(settings)
    if json_:
        decisions = {name: {"verdict": promoted.verdict, "reasons": promoted.reasons}
                     for name, promoted in adapted.promoted.items()}  # fmt: skip
        done = {"ran": adapted.ran, "up_to_date": adapted.up_to_date, "champions": champions, "decisions": decisions}
        print(json.dumps({**done, "notes": notes}))
        return
    summary = read_json(paths.SUMMARY, made_by="mmrl summarize")
    print(markdown(summary["rows"] + summary["averages"]))
    for promoted in adapted.promoted.values():
        print(f"decision: {promoted.decided}")
    print(*adapted.champions, sep="\n")
    print(f"report: {paths.REPORT}")
    print(f"runs: mlflow ui --backend-store-uri {printable(store_uri(settings))}")
    for note in notes:
        print(f"note: {note}")
    if any(champions.values()):
        of = " --dataset NAME" if len(champions) > 1 else ""
        print(f"next: mmrl predict IMAGES{of}, mmrl serve{of}")


def _adapted(params: Path, remote: str | None, overrides: list[str]) -> "Adapted":
    from flows.orchestration.alone import put_back_left
    from flows.orchestration.prefect_process import begin_server, is_set_up_otherwise
    from flows.orchestration.up_to_date import up_to_date

    put_back_left()
    require_installed()
    changes = load_params(params, overrides) != load_params(params)
    if not remote and not changes and (adapted := up_to_date(params)):
        return adapted
    if not is_set_up_otherwise():
        begin_server()  # which starts while Prefect is imported here
    from flows.orchestration import adapt as pipeline

    return pipeline.run_adapt(params, remote=remote, overrides=overrides)


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
    watch: Annotated[
        float | None,
        typer.Option(min=1, max=604_800, callback=finite, help="Look every so many seconds; --listen: 300."),
    ] = None,
    listen: Annotated[str | None, typer.Option(help="HOST:PORT, for MLflow's webhook.")] = None,
    params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [], json_: AsJson = False,
) -> None:  # fmt: skip
    """Bundle the champions that are not released yet, check them, and point the alias `released` at them."""
    refuse_overrides(set_)
    place = _listening_at(listen) if listen else None
    from flows.orchestration import release as flow

    if place:
        flow.listen(str(params), dataset, *place, watch or 300)
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


def _listening_at(listen: str) -> tuple[str, int]:
    host, colon, port = listen.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535 or not addresses.is_host(host):
        raise UserError(f"--listen {short(listen)} is not of the form HOST:PORT, such as 127.0.0.1:8090")
    return host, int(port)


def refuse_overrides(overrides: list[str]) -> None:
    """A flow's stages are DVC's, which read params.yaml and nothing else."""
    if overrides:
        raise UserError(f"--set {overrides[0]} does not reach the stages of a flow; write it into params.yaml")
