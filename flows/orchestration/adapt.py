"""The nightly run: every stale item of the DVC pipeline, then registration and promotion, as one Prefect flow."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import flows.orchestration.prefect_settings  # noqa: F401 - before Prefect, which reads them on import
from flows.orchestration.prefect_process import CORES, SIDE_BY_SIDE

# isort: split
from prefect import Task, flow, get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy, State, TaskRun
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import EntrypointType
from prefect.futures import PrefectFuture, as_completed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.orchestration import artifacts, dvc_graph, events, missed, worktree
from flows.orchestration.alone import alone, require_unchanged
from flows.orchestration.dvc_graph import Graph
from flows.orchestration.prefect_server import ensure_server, running_server
from flows.orchestration.up_to_date import Adapted
from flows.orchestration.workplace import changed_settings, own_place, week_seed
from flows.processes.lifeline import Lifeline
from flows.project.progress import MARKED, lines, say
from flows.scaffold.upgrade import move_lock
from flows.settings.params import Params, load_params
from flows.settings.resolve import photograph_notes
from flows.stages.ahead.turns import Turns
from flows.tracking.redaction import first_line
from flows.tracking.store import StoreFailed, store_uri
from mmrl_core.errors import UserError

if TYPE_CHECKING:
    from flows.registry.promotion import PromotionDecision
    from flows.registry.versions import RegisteredVersion


def run_adapt(params_path: str | Path = "params.yaml", datasets: list[str] | None = None, **options: object) -> Adapted:
    """Run the flow here, on the server that PREFECT_API_URL names or else on one of its own; progress on stderr.

    `options` are further parameters of `adapt`.
    """
    _require_pipeline_of(params_path)
    ensure_server()
    return adapt(str(params_path), datasets, **options)


def serve_adapt(
    cron: str, params_path: str | Path = "params.yaml", datasets: list[str] | None = None, **options: object
) -> None:
    """Give the running server the deployment `adapt/nightly` and run it on schedule until interrupted.

    `options` are further parameters of `adapt`. Raises UserError for a bad schedule, and where no server runs.
    """
    _require_pipeline_of(params_path)
    try:
        CronSchedule(cron=cron)
    except ValueError:
        raise UserError(f"--cron {cron!r} is no schedule; give five fields, such as '0 2 * * *'") from None
    if not running_server():
        raise UserError(
            "a schedule needs a server: start one with `prefect server start` and set PREFECT_API_URL to it"
        )
    one = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
    adapt.serve(
        name="nightly", cron=cron, global_limit=one, entrypoint_type=EntrypointType.MODULE_PATH,
        parameters={"params_path": str(params_path), "datasets": datasets, **options},
    )  # fmt: skip


@flow(task_runner=ThreadPoolTaskRunner(max_workers=int(os.environ[SIDE_BY_SIDE])))
@missed.once
def adapt(
    params_path: str = "params.yaml",
    datasets: list[str] | None = None,
    seeds: list[int] | None = None,
    overrides: list[str] = [],
    remote: str | None = None,
    in_worktree: bool = False,
    new_search: bool = False,
    stage_hours: float = 24,
) -> Adapted:
    """Bring every stage item up to date, then register and promote the candidate of each dataset (by default all).

    Args:
        params_path: the project's params.yaml.
        datasets: register and promote these alone; in a worktree, build nothing else either.
        seeds: the matrix list, in place of the one in params.yaml.
        overrides: settings as key.path=value. They and the seeds are in params.yaml from then on, unless the run fails.
        remote: a DVC remote to pull from at the start and push to at the end.
        in_worktree: work on what is committed, in a git worktree of this run's own, instead of in this folder.
        new_search: search with a seed of this week, so that each week's search draws anew.
        stage_hours: a stage item that takes longer is stopped.
    """
    seed = week_seed(runtime.flow_run.scheduled_start_time) if new_search else None
    changes = changed_settings(datasets if in_worktree else None, seeds, seed, overrides)
    name = runtime.flow_run.name
    place = own_place(params_path, changes, name, _warn) if in_worktree else alone(Path(params_path), changes)
    with place, Lifeline() as lifeline:
        params = load_params(params_path)
        ran = _build(params, lifeline, remote, stage_seconds(stage_hours))
        if in_worktree:
            record(f"adapt: {name}")
        chosen = params.datasets if datasets is None else datasets
        registered = {dataset: register(params, dataset) for dataset in chosen}
        promoted = {dataset: promote(params, dataset) for dataset in chosen}
        adapted = Adapted(
            [name for name in ran if ran[name]], sum(not did for did in ran.values()), registered, promoted
        )
        publish(params, adapted)
    say(adapted.summary)
    get_run_logger().info("\n".join([adapted.summary, *adapted.champions]))
    return adapted


def stage_seconds(stage_hours: float) -> float:
    """The limit of a stage item. Raises UserError for a number that is none."""
    if not 0 < stage_hours <= LONGEST_STAGE:
        raise UserError(f"stage_hours is {stage_hours:g}; give hours, more than 0 and at most {LONGEST_STAGE}")
    return stage_hours * 3600


def _is_retriable(task: Task, run: TaskRun, state: State) -> bool:
    """Neither a mistake of the user's nor what was stopped with the flow is tried again."""
    return not isinstance(state.data, UserError | Stopped)


def _store_failed(task: Task, run: TaskRun, state: State) -> bool:
    return isinstance(state.data, StoreFailed)


class Stopped(RuntimeError):
    """A task was stopped because the flow ended."""


@contextlib.contextmanager
def _stopping(lifeline: Lifeline) -> Iterator[None]:
    """Turn the failure of what was stopped into Stopped: a cancelled flow must not wait for retries."""
    try:
        yield
    except dvc_graph.StageFailed as error:
        if lifeline.closed:
            raise Stopped("the flow was stopped") from error
        raise


LONGEST_STAGE = 8760  # hours
RETRIED = {
    "retries": 2,  # after the default delays, from prefect_process.py
    "retry_condition_fn": _is_retriable,
    "cache_policy": NO_CACHE,
}
STORE_RETRIED = {  # a store may be down for a minute
    "retries": 2,
    "retry_delay_seconds": [10, 60],
    "retry_condition_fn": _store_failed,
    "cache_policy": NO_CACHE,
}


@task(task_run_name="{name}", **RETRIED)
def run_stage(
    root: Path, name: str, lifeline: Lifeline, stale: bool, params: Params, timeout: float | None = None
) -> float | None:
    """Seconds that the item took; None when it was up to date."""
    start, log = time.monotonic(), get_run_logger().info
    if stale:
        require_unchanged(root / "params.yaml", params)
    with _stopping(lifeline):
        worked = stale and dvc_graph.run_stage(
            root, name, lifeline, log, _environment(), timeout=timeout, show=lambda line: say(f"{name}  {line}")
        )
    return time.monotonic() - start if worked else None


@task(task_run_name="{direction}", **RETRIED)
def transfer(root: Path, direction: Literal["pull", "push"], remote: str, lifeline: Lifeline) -> None:
    with _stopping(lifeline):
        dvc_graph.transfer(root, direction, remote, lifeline, get_run_logger().info, _environment())


@task(task_run_name="record", cache_policy=NO_CACHE)
def record(message: str) -> None:
    commit = worktree.record(Path.cwd(), message)
    get_run_logger().info(f"{worktree.BRANCH} is at {commit}" if commit else "nothing is new, or git is read-only")


@task(task_run_name="register {dataset}", **STORE_RETRIED)
def register(params: Params, dataset: str) -> "RegisteredVersion":
    from flows.registry import versions

    return versions.register(params, versions.candidate(params, dataset))


@task(task_run_name="promote {dataset}", **STORE_RETRIED)
def promote(params: Params, dataset: str) -> "PromotionDecision":
    from flows.registry import promotion

    decision = promotion.promote(params, dataset)
    if decision.moved or decision.finished:
        events.emit(events.MOVED, decision.name)
    return decision


@task(cache_policy=NO_CACHE)
def publish(params: Params, adapted: Adapted) -> None:
    """Name the champions in the report and publish Prefect artifacts; a failure to do so is a warning and fails no
    run."""
    from flows.registry.standing import show_champions

    show_champions(params, _warn)
    try:
        artifacts.publish(params, adapted, _warn)
    except Exception as error:
        _warn(f"Prefect has no artifact `results` of this run: {first_line(error, store_uri(params))}")


def _build(params: Params, lifeline: Lifeline, remote: str | None, timeout: float) -> dict[str, bool]:
    """Run the stages between a pull and a push, by item whether it did work; what was done before a failure is pushed
    too."""
    move_lock()
    root = Path.cwd()
    if not remote:
        return _run_stages(root, params, lifeline, timeout)
    transfer(root, "pull", remote, lifeline)
    try:
        ran = _run_stages(root, params, lifeline, timeout)
    except Exception:  # not when the flow is stopped
        transfer(root, "push", remote, lifeline)
        raise
    transfer(root, "push", remote, lifeline)
    return ran


def _run_stages(root: Path, params: Params, lifeline: Lifeline, timeout: float) -> dict[str, bool]:
    """By item whether it did work; the source checks, which always do, are not among them."""
    graph = dvc_graph.stage_graph(root)
    checks = dvc_graph.source_checks(root, graph)
    _run_items(root, {name: [] for name in checks}, set(checks), params, lifeline, timeout)
    stale = dvc_graph.stale_stages(root, graph, checks)
    for note in photograph_notes(params) if stale else []:
        _warn(note)
    rest = {name: [other for other in graph[name] if other not in checks] for name in graph if name not in checks}
    with lines("adapt", len(stale) or None, what="item") as report:
        return _run_items(root, rest, stale, params, lifeline, timeout, report)


def _run_items(
    root: Path, graph: Graph, stale: set[str], params: Params, lifeline: Lifeline, timeout: float,
    report: Callable[[int], None] = lambda done: None,
) -> dict[str, bool]:  # fmt: skip
    """Run every item that depends on no failed one, each as soon as its upstream is done; then raise the first failure.

    Items are submitted when they are ready: one that waited for its upstream would hold a thread of the task runner.
    """
    futures: dict[str, PrefectFuture] = {}
    running: dict[PrefectFuture, str] = {}
    ready: list[str] = []
    failures: list[Exception] = []
    sorter, turns = TopologicalSorter(graph), Turns(params)
    sorter.prepare()
    while True:
        for name in ready + turns.begin(sorter.get_ready()):
            upstream = [futures[other] for other in graph[name]]
            futures[name] = run_stage.submit(root, name, lifeline, name in stale, params, timeout, wait_for=upstream)
            running[futures[name]] = name
        if not running:
            break
        future = next(as_completed(list(running)))
        name = running.pop(future)
        error = _say_end(name, future)
        failures.append(error) if error else sorter.done(name)
        ready = turns.end(name)
        report(sum(name in stale for name in futures.keys() - running.values()))
    if failures:
        raise failures[0]
    return {name: future.result() is not None for name, future in futures.items()}


def _say_end(name: str, future: PrefectFuture) -> Exception | None:
    """Print how the item ended, unless it was up to date; the error of one that failed."""
    try:
        seconds = future.result()
    except Exception as error:
        say(f"{name}  failed: {error}")
        return error
    if seconds is not None:
        say(f"{name}  {seconds:.1f} s")
    return None


def _environment() -> dict[str, str]:
    """The stage commands' environment: `mmrl` beside this interpreter on PATH, and the cores shared among the items."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    threads = str(max(1, CORES // int(os.environ[SIDE_BY_SIDE])))
    return {"OMP_NUM_THREADS": threads, **os.environ, "PATH": path, MARKED: "1"}


def _require_pipeline_of(params_path: str | Path) -> None:
    load_params(params_path)
    if Path(params_path).resolve() != Path("params.yaml").resolve():
        raise UserError(
            f"--params {params_path}: the DVC pipeline reads the params.yaml of the current directory; "
            "edit that file, or change to the directory of the one you mean"
        )


def _warn(line: str) -> None:
    say(f"warning: {line}")
    get_run_logger().warning(line)
