"""Events that start deployments on a Prefect server: a champion that moved, predictions that drifted."""

import os
import sys

from mmrl_core.errors import UserError

MOVED, DRIFTED = "mmrl.champion.moved", "mmrl.predictions.drifted"


def emit(event: str, name: str) -> None:
    """Emit an event about a registered model, on the server that this process is connected to."""
    from prefect.events import emit_event

    emit_event(event, resource={"prefect.resource.id": f"mmrl.model.{name}"})


def announce(event: str, name: str, by_hand: str) -> None:
    """Emit an event where PREFECT_API_URL names a server. Where that does not answer, a warning names the command
    `by_hand` to run instead."""
    if not os.environ.get("PREFECT_API_URL"):
        return
    from flows.orchestration.prefect_server import running_server

    try:
        running_server()
        emit(event, name)
    except UserError as error:
        print(f"warning: {error}; here `{by_hand}` does by hand what would follow", file=sys.stderr)
