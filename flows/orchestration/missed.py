"""Runs of a schedule that nobody started when they were due, as when a worker was away: they are one run.

Those that start while one is working are cancelled by the server (`concurrency_limit` of the deployments); this is for
those that start after it.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import flows.orchestration.prefect_settings  # noqa: F401 - before Prefect, which reads them on import

# isort: split
from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.states import Completed, State

P = ParamSpec("P")
T = TypeVar("T")
SCHEDULED = "auto-scheduled"  # Prefect's tag of what a schedule started, not a person or an event
SKIPPED = "Skipped"


def once(work: Callable[P, T]) -> Callable[P, T]:
    """The body of a flow, which ends as `done_since` says where that is not None."""

    @wraps(work)
    def body(*args: P.args, **parameters: P.kwargs) -> T:
        return done_since() or work(*args, **parameters)

    return body


def done_since() -> "State[None] | None":
    """The state for this run to end in, where another run of its schedule has begun since this one was due, and has not
    failed; None where there is work, or where a person has started it again."""
    run = runtime.flow_run
    if SCHEDULED not in run.tags or run.run_count > 1:
        return None
    others = FlowRunFilter.model_validate(
        {
            "id": {"not_any_": [run.id]},
            "deployment_id": {"any_": [runtime.deployment.id]},
            "tags": {"all_": [SCHEDULED]},
            "state": {"type": {"any_": ["RUNNING", "COMPLETED"]}, "name": {"not_any_": [SKIPPED]}},
            "start_time": {"after_": run.scheduled_start_time},
        }
    )
    with get_client(sync_client=True) as client:
        done = client.read_flow_runs(flow_run_filter=others, limit=1)
    if not done:
        return None
    return Completed(name=SKIPPED, message=f"{done[0].name} began after this run was due, and did its work")
