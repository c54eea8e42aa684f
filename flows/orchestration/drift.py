"""The flow `drift`: looks at the predictions that serving logged, and says so when images have changed."""

import flows.orchestration.prefect_server  # noqa: F401 - sets what Prefect reads on import

# isort: split
from prefect import flow, get_run_logger

from flows.orchestration import events
from flows.project.paths import PREDICTIONS
from flows.serving.drift import Drift
from flows.serving.drift import drift as look


@flow
def drift(hours: float = 24) -> list[Drift]:
    """One event for each model whose predictions of the last hours have drifted: the deployment `nightly` starts."""
    found = look(PREDICTIONS, hours)
    for one in found:
        get_run_logger().info(one.line)
        if one.drifted:
            events.emit(events.DRIFTED, one.name)
    return found
