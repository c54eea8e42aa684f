"""The flow `release`: bundle, check and release every champion that is not released yet; once, or whenever one moves.

A move is heard of by MLflow's webhook, and seen by looking every so often. What is done is in bundles.py.
"""

import contextlib
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import flows.orchestration.prefect_settings  # noqa: F401 - before Prefect, which reads them on import

# isort: split
from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from flows.orchestration import webhook
from flows.orchestration.prefect_server import ensure_server
from flows.registry.releases import ReleasedVersion, ReleaseFailed
from flows.registry.versions import registered_name
from flows.settings.params import Params, load_params
from mmrl_core.errors import UserError


@task(task_run_name="release {dataset}", cache_policy=NO_CACHE)
def release_champion(params: Params, dataset: str) -> ReleasedVersion:
    from flows.registry.releases import release as release_one

    found = release_one(params, dataset)
    if found.created:
        card = Path(found.folder, "README.md").read_text()
        create_markdown_artifact(card, key=f"release-{found.name}".lower().replace("_", "-"))
    return found


@flow
def release(params_path: str = "params.yaml", datasets: list[str] | None = None) -> list[ReleasedVersion]:
    """Release the champion of each dataset, by default of all. Raises the first failure when all were tried."""
    params = load_params(params_path)
    futures = [release_champion.submit(params, dataset) for dataset in datasets or params.datasets]
    return [future.result() for future in futures]


def run_release(params_path: str, datasets: list[str] | None) -> list[ReleasedVersion]:
    """The flow here, on the server that PREFECT_API_URL names or else on one of its own."""
    _check(params_path, datasets)
    ensure_server()
    return release(params_path, datasets)


def watch(params_path: str, datasets: list[str] | None, every: float) -> None:
    """Release what has become champion, looking every so many seconds, until interrupted."""
    _check(params_path, datasets)
    ensure_server()
    _repeat(params_path, datasets, looks(queue.Queue(), every))


def listen(params_path: str, datasets: list[str] | None, host: str, port: int, every: float) -> None:
    """Release whenever a verified webhook of MLflow says that a champion moved, until interrupted.

    A delivery can be lost, and a release can fail: it looks every so many seconds, too.
    """
    params = _check(params_path, datasets)
    secret = os.environ.get(webhook.SECRET)
    if not secret:
        raise UserError(f"{webhook.SECRET} is not set; set it to the secret that the webhook was created with")
    names = {registered_name(dataset, params.data.protocol) for dataset in datasets or params.datasets}
    moves: queue.Queue[None] = queue.Queue()

    def on_move(name: str, alias: str) -> None:
        if alias == params.registry.alias and name in names:
            moves.put(None)

    ensure_server()
    try:
        server = webhook.server(host, port, secret, on_move)
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port} ({error.strerror}); choose another --listen") from None
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        _say(f"listening on http://{host}:{server.server_address[1]}")
        _repeat(params_path, datasets, looks(moves, every))


def looks(moves: "queue.Queue[None]", every: float) -> Iterator[None]:
    """When to look: at once, then after every move, several that came meanwhile being one, or after so many seconds."""
    while True:
        yield
        with contextlib.suppress(queue.Empty):
            moves.get(timeout=every)
        while not moves.empty():
            moves.get_nowait()


def _repeat(params_path: str, datasets: list[str] | None, times: Iterable[None]) -> None:
    for _ in times:
        for line in _attempt(lambda: release(params_path, datasets)):
            _say(line)


def _attempt(run: Callable[[], list[ReleasedVersion]]) -> list[str]:
    """What came of it, for people; a failure ends this attempt, not the watch."""
    try:
        return [f"released {one.name} version {one.version}: {one.folder}" for one in run() if one.created]
    except (ReleaseFailed, UserError) as error:
        return [str(error)]


def _check(params_path: str, datasets: list[str] | None) -> Params:
    params = load_params(params_path)
    for dataset in datasets or []:
        if dataset not in params.datasets:
            raise UserError(f"dataset {dataset!r} is not in the settings; datasets is {params.datasets}")
    return params


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
