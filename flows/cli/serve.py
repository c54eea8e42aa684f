"""`mmrl serve`: predictions over HTTP."""

import json
import sys
from typing import Annotated

import typer

from flows.cli.options import DEFAULT_PARAMS, AsJson, ChampionOf, Overrides, ParamsFile, finite, settings_of
from flows.project.extras import require
from mmrl_core.errors import UserError


def serve(
    model: Annotated[str | None, typer.Option(help="models:/NAME@ALIAS; default: champion.")] = None,
    dataset: ChampionOf = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; default: serving.host.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0: any free one; default: serving.port.")] = None,
    params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [], json_: AsJson = False,
) -> None:  # fmt: skip
    """Answer questions over HTTP by the version that the alias names, until Ctrl-C."""
    require("serve", "ray", "fastapi", "uvicorn", "uvloop", "mlflow", "prometheus_client")
    from flows.registry.versions import model_of
    from flows.serving import launch

    where = {"host": host, "port": port}
    settings = settings_of(
        model, params, [*set_, *(f"serving.{name}={value}" for name, value in where.items() if value is not None)]
    )
    uri, out = model_of(settings, model, dataset), sys.stdout

    def started(address: str) -> None:
        if json_:
            line = json.dumps({"address": address, "model": uri})
        else:
            line = f"{uri} at {address} (page), {address}/docs (for programs); Ctrl-C ends it"
        print(line, file=out, flush=True)

    launch.run(settings, uri, started)


def drift(
    hours: Annotated[float, typer.Option(min=0, max=876_000, callback=finite, help="How far to look back.")] = 24,
    json_: AsJson = False,
) -> None:
    """Say whether images have become unlike those of validation, by what `serve` logged of them; exit 1 if so."""
    from flows.orchestration import events
    from flows.project.paths import PREDICTIONS
    from flows.serving.drift import drift as look

    checks = look(PREDICTIONS, hours)
    if not checks:
        raise UserError(
            f"{PREDICTIONS} has no predictions of the last {hours:g} hours among an adapter's trained classes; "
            "set serving.log_share above 0 where `mmrl serve` runs"
        )
    print(json.dumps([check._asdict() for check in checks]) if json_ else "\n".join(check.line for check in checks))
    for check in checks:
        if check.drifted:
            events.announce(events.DRIFTED, check.name, "mmrl flow adapt")
    if any(check.drifted for check in checks):
        raise typer.Exit(1)
