"""`mmrl flow`: the whole pipeline."""

import json
from typing import Annotated

import typer

from flows import paths
from flows.cli.options import DEFAULT_PARAMS, AsJson, Overrides, ParamsFile
from mmrl_core.config import load_params
from mmrl_core.errors import UserError


def adapt(params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [], json_: AsJson = False):
    """Run every stage that is out of date, then register and promote; no server needed. --set edits the settings file,
    which is what the stages read."""
    if set_:
        from flows.edit import edit_params

        edit_params(params, set_)
    from flows import pipeline
    from mmrl_core.files import read_json
    from mmrl_core.report.tables import markdown

    adapted = pipeline.run_adapt(params)
    champions = {name: f"models:/{one.name} version {one.version}" for name, one in adapted.promoted.items()}
    if json_:
        print(json.dumps({"ran": adapted.ran, "up_to_date": adapted.up_to_date, "champions": champions}))
        return
    summary = read_json(paths.SUMMARY, made_by="mmrl summarize")
    print(markdown(summary["rows"] + summary["averages"]))
    print(f"champion: {', '.join(champions.values())}")
    print(f"report:   {paths.REPORT}")
    print(f"runs:     mlflow ui --backend-store-uri {load_params(params).tracking.uri}")


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
