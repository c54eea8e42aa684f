"""The nightly run: every stale item of the DVC pipeline, then registration and promotion, as one Prefect flow."""

import contextlib
import logging
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

CORES = os.cpu_count() or 1
for name, value in {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_HOME": str(Path(".mmrl/prefect").resolve()),
    "PREFECT_TASKS_RUNNER_THREAD_POOL_MAX_WORKERS": str(min(4, CORES)),  # how many items run side by side
}.items():
    os.environ.setdefault(name, value)

from prefect import flow, get_run_logger, task  # noqa: E402
from prefect.cache_policies import NO_CACHE  # noqa: E402
from prefect.client.schemas.schedules import CronSchedule  # noqa: E402
from prefect.futures import as_completed  # noqa: E402
from prefect.logging.handlers import PrefectConsoleHandler  # noqa: E402
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings  # noqa: E402
from prefect.task_runners import ThreadPoolTaskRunner  # noqa: E402

from flows import dvc_graph  # noqa: E402
from flows.dvc_graph import Graph, Lifeline  # noqa: E402
from mmrl_core.config import Params, load_params  # noqa: E402
from mmrl_core.errors import UserError  # noqa: E402


class Adapted(NamedTuple):
    """`ran` holds the items that did work; source checks always run and are not among them."""

    ran: list[str]
    up_to_date: int
    registered: dict[str, NamedTuple]
    promoted: dict[str, NamedTuple]

    @property
    def nothing_to_do(self) -> bool:
        created = any(version.created for version in self.registered.values())
        return not (self.ran or created or any(alias.moved for alias in self.promoted.values()))


def run_adapt(params_path: str = "params.yaml", datasets: list[str] | None = None) -> Adapted:
    """Run the flow here, on the server that PREFECT_API_URL names or else on one of its own; progress on stderr."""
    load_params(params_path)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, PrefectConsoleHandler):
            handler.setLevel(logging.CRITICAL)
    with _server():
        return adapt(params_path, datasets)


def serve_adapt(cron: str) -> None:
    """Register the deployment `adapt/nightly` with the running server and run it on schedule until interrupted."""
    try:
        CronSchedule(cron=cron)
    except ValueError:
        raise UserError(f"--cron {cron!r} is no schedule; give five fields, such as '0 2 * * *'") from None
    if not PREFECT_API_URL.value():
        raise UserError("a schedule needs a server: start one with `prefect server start` and set PREFECT_API_URL to it")
    adapt.serve(name="nightly", cron=cron, limit=1)


@flow(task_runner=ThreadPoolTaskRunner())
def adapt(params_path: str = "params.yaml", datasets: list[str] | None = None) -> Adapted:
    """Bring every stage item up to date, then register and promote the candidate of each of `datasets`."""
    params = load_params(params_path)
    root = _pipeline_of(params_path)
    with Lifeline() as lifeline:
        did_work = _run_stages(root, lifeline)
    chosen = params.datasets if datasets is None else datasets
    registered = {dataset: register(params, dataset) for dataset in chosen}
    promoted = {dataset: promote(params, dataset) for dataset in chosen}
    ran = [name for name, worked in did_work.items() if worked]
    adapted = Adapted(ran, len(did_work) - len(ran), registered, promoted)
    _say("nothing to do" if adapted.nothing_to_do else f"{len(ran)} ran, {adapted.up_to_date} up to date")
    return adapted


def _not_the_users_fault(task, run, state) -> bool:
    return not isinstance(state.data, UserError) and not isinstance(_exception(state), UserError)


@task(task_run_name="{name}", retries=1, retry_delay_seconds=2, retry_condition_fn=_not_the_users_fault, cache_policy=NO_CACHE)
def run_stage(root: Path, name: str, lifeline: Lifeline, stale: bool) -> bool:
    return stale and dvc_graph.run_stage(root, name, lifeline, get_run_logger().info, _environment())


@task(task_run_name="register {dataset}", cache_policy=NO_CACHE)
def register(params: Params, dataset: str) -> NamedTuple:
    from flows import registry

    return registry.register(params, registry.candidate(params, dataset))


@task(task_run_name="promote {dataset}", cache_policy=NO_CACHE)
def promote(params: Params, dataset: str) -> NamedTuple:
    from flows import registry

    return registry.promote(params, dataset)
