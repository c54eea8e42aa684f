"""The nightly run: every stale item of the DVC pipeline, then registration and promotion, as one Prefect flow."""

import atexit
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

CORES = os.cpu_count() or 1
for name, value in {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "PREFECT_HOME": str(Path(".mmrl/prefect").resolve()),
    "PREFECT_TASKS_RUNNER_THREAD_POOL_MAX_WORKERS": str(min(4, CORES)),  # how many items run side by side
}.items():
    os.environ.setdefault(name, value)

# Prefect makes its home when it is imported, but not the folders above it.
Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)

from prefect import flow, get_run_logger, task  # noqa: E402
from prefect.cache_policies import NO_CACHE  # noqa: E402
from prefect.client.schemas.schedules import CronSchedule  # noqa: E402
from prefect.context import refresh_global_settings_context  # noqa: E402
from prefect.deployments.runner import EntrypointType  # noqa: E402
from prefect.futures import PrefectFuture, as_completed  # noqa: E402
from prefect.logging.handlers import PrefectConsoleHandler  # noqa: E402
from prefect.settings import PREFECT_API_URL, get_current_settings  # noqa: E402
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
    def summary(self) -> str:
        created = [version for version in self.registered.values() if version.created]
        moved = [alias for alias in self.promoted.values() if alias.moved]
        if not (self.ran or created or moved):
            return "nothing to do"
        return (
            f"{len(self.ran)} stages ran, {self.up_to_date} were up to date; "
            f"{len(created)} adapters registered, {len(moved)} promoted"
        )


def run_adapt(params_path: str | Path = "params.yaml", datasets: list[str] | None = None) -> Adapted:
    """Run the flow here, on the server that PREFECT_API_URL names or else on one of its own; progress on stderr."""
    _require_pipeline_of(params_path)
    ensure_server()
    return adapt(str(params_path), datasets)


def ensure_server() -> None:
    """The server that PREFECT_API_URL names, or else one of this process's own; Prefect's lines leave the console."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, PrefectConsoleHandler):
            handler.setLevel(logging.CRITICAL)
    if not _running_server():
        _start_server()


def serve_adapt(cron: str, params_path: str | Path = "params.yaml", datasets: list[str] | None = None) -> None:
    """Give the running server the deployment `adapt/nightly` and run it on schedule until interrupted."""
    _require_pipeline_of(params_path)
    try:
        CronSchedule(cron=cron)
    except ValueError:
        raise UserError(f"--cron {cron!r} is no schedule; give five fields, such as '0 2 * * *'") from None
    if not _running_server():
        raise UserError(
            "a schedule needs a server: start one with `prefect server start` and set PREFECT_API_URL to it"
        )
    parameters = {"params_path": str(params_path), "datasets": datasets}
    adapt.serve(name="nightly", cron=cron, parameters=parameters, limit=1, entrypoint_type=EntrypointType.MODULE_PATH)


@flow(task_runner=ThreadPoolTaskRunner())
def adapt(params_path: str = "params.yaml", datasets: list[str] | None = None) -> Adapted:
    """Bring every stage item up to date, then register and promote the candidate of each dataset (by default all)."""
    params = load_params(params_path)
    with Lifeline() as lifeline:
        ran = _run_stages(Path.cwd(), lifeline)
    chosen = params.datasets if datasets is None else datasets
    registered = {dataset: register(params, dataset) for dataset in chosen}
    promoted = {dataset: promote(params, dataset) for dataset in chosen}
    adapted = Adapted([name for name in ran if ran[name]], sum(not did for did in ran.values()), registered, promoted)
    _say(adapted.summary)
    get_run_logger().info(adapted.summary)
    return adapted


def _retriable(task, run, state) -> bool:
    return not isinstance(state.data, UserError)


@task(task_run_name="{name}", retries=1, retry_delay_seconds=2, retry_condition_fn=_retriable, cache_policy=NO_CACHE)
def run_stage(root: Path, name: str, lifeline: Lifeline, stale: bool) -> float | None:
    """Seconds that the item took; None when it was up to date."""
    start = time.monotonic()
    worked = stale and dvc_graph.run_stage(root, name, lifeline, get_run_logger().info, _environment())
    return time.monotonic() - start if worked else None


@task(task_run_name="register {dataset}", cache_policy=NO_CACHE)
def register(params: Params, dataset: str) -> NamedTuple:
    from flows import registry

    return registry.register(params, registry.candidate(params, dataset))


@task(task_run_name="promote {dataset}", cache_policy=NO_CACHE)
def promote(params: Params, dataset: str) -> NamedTuple:
    from flows import promotion

    return promotion.promote(params, dataset)


def _run_stages(root: Path, lifeline: Lifeline) -> dict[str, bool]:
    """Whether each item did work; the source checks, which always do, are not among them."""
    graph = dvc_graph.stage_graph(root)
    checks = dvc_graph.source_checks(root, graph)
    _run_items(root, {name: [] for name in checks}, set(checks), lifeline)
    stale = dvc_graph.stale_stages(root, graph, checks)
    rest = {name: [other for other in graph[name] if other not in checks] for name in graph if name not in checks}
    return _run_items(root, rest, stale, lifeline)


def _run_items(root: Path, graph: Graph, stale: set[str], lifeline: Lifeline) -> dict[str, bool]:
    """Run all that depends on no failed item, each as soon as its upstream is done; then raise the first failure.

    Items are submitted when they are ready: one that waited for its upstream would hold a thread of the task runner.
    """
    sorter, futures, running, failures = TopologicalSorter(graph), {}, {}, []
    sorter.prepare()
    while True:
        for name in sorter.get_ready():
            upstream = [futures[other] for other in graph[name]]
            futures[name] = run_stage.submit(root, name, lifeline, name in stale, wait_for=upstream)
            running[futures[name]] = name
        if not running:
            break
        future = next(as_completed(list(running)))
        name = running.pop(future)
        error = _report(name, future)
        failures.append(error) if error else sorter.done(name)
    if failures:
        raise failures[0]
    return {name: future.result() is not None for name, future in futures.items()}


def _report(name: str, future: PrefectFuture) -> Exception | None:
    """Print how the item ended, unless it was up to date; its error if it failed."""
    try:
        seconds = future.result()
    except Exception as error:
        _say(f"{name}  failed: {error}")
        return error
    if seconds is not None:
        _say(f"{name}  {seconds:.1f} s")


def _environment() -> dict[str, str]:
    """The stage commands' environment: `mmrl` beside this interpreter, and the cores shared out among the items."""
    workers = get_current_settings().tasks.runner.thread_pool_max_workers or CORES
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {"OMP_NUM_THREADS": str(max(1, CORES // workers)), **os.environ, "PATH": path}


def _start_server() -> None:
    """Give this process a Prefect server of its own. The one that Prefect itself would start outlives a killed flow.

    It outlasts the flow, since Prefect sends the last events and log lines when the process exits; its threads see the
    environment only.
    """
    url, log = f"http://127.0.0.1:{_free_port()}", Path(os.environ["PREFECT_HOME"]) / "server.log"
    lifeline, output = Lifeline(), log.open("w")
    argv = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", url.rpartition(":")[2]]
    process = lifeline.start(*argv, "--no-ui", "--no-scheduler", "--no-late-runs", stdout=output, stderr=output)
    atexit.register(_stop, process, lifeline)
    deadline = time.monotonic() + 120
    while not _answers(url + "/api"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the Prefect server did not start; its output is in {log}")
        time.sleep(0.1)
    os.environ["PREFECT_API_URL"] = url + "/api"
    refresh_global_settings_context()


def _stop(process: subprocess.Popen, lifeline: Lifeline) -> None:
    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=5)
    lifeline.close()


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/health", timeout=5).close()
    except OSError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _running_server() -> str | None:
    """What PREFECT_API_URL names, if anything."""
    url = PREFECT_API_URL.value()
    if url and not _answers(url):
        raise UserError(f"PREFECT_API_URL={url} does not answer; start that server, or unset it to run without one")
    return url


def _require_pipeline_of(params_path: str | Path) -> None:
    load_params(params_path)
    if Path(params_path).resolve() != Path("params.yaml").resolve():
        raise UserError(
            f"--params {params_path}: the DVC pipeline reads the params.yaml of the current directory; "
            "edit that file, or change to the directory of the one you mean"
        )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
