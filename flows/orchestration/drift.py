"""The flow `drift`: whether the images that serving was sent have drifted, from the predictions that it logged."""

import flows.orchestration.prefect_settings  # noqa: F401 - before Prefect, which reads them on import

# isort: split
from prefect import flow, get_run_logger

from flows.orchestration import events, missed
from flows.project.paths import PREDICTIONS
from flows.serving.drift import Drift
from flows.serving.drift import drift as measure_drift


@flow
@missed.once
def drift(hours: float = 24) -> list[Drift]:
    """The drift of every model over the last hours. For each that has drifted an event is emitted, which starts the
    deployment `nightly`."""
    drifts = measure_drift(PREDICTIONS, hours)
    for model in drifts:
        get_run_logger().info(model.line)
        if model.drifted:
            events.emit(events.DRIFTED, model.name)
    return drifts
