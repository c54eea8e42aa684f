"""The flow `release`: bundle, check and release every champion that is not released yet; once, or whenever one moves.

That one has moved is known from MLflow's webhook, and from looking at intervals. What a release does is in
flows/registry/releases.py.
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
from flows.orchestration.artifacts import artifact_key
from flows.orchestration.prefect_server import ensure_server
from flows.registry.releases import ReleasedVersion
from flows.registry.versions import registered_name
from flows.settings.params import Params, load_params
from flows.tracking.redaction import first_line
from mmrl_core.errors import Failed, UserError


@task(task_run_name="release {dataset}", cache_policy=NO_CACHE)
def release_champion(params: Params, dataset: str) -> ReleasedVersion:
    from flows.registry.releases import release as release_one

    released = release_one(params, dataset)
    if released.created:
        _publish(released)
    return released


def _publish(released: ReleasedVersion) -> None:
    """Publish the card as an artifact; a failure to do so is a warning: the release is done."""
    try:
        card = Path(released.folder, "README.md").read_text()
        create_markdown_artifact(card, key=artifact_key(f"release-{released.name}"))
    except Exception as error:
        _say(f"warning: no artifact of the release of {released.name}: {first_line(error)}")


@flow
def release(params_path: str = "params.yaml", datasets: list[str] | None = None) -> list[ReleasedVersion]:
    """Release the champion of each dataset, by default of all. Raises the first failure after all were tried."""
    params = load_params(params_path)
    futures = [release_champion.submit(params, dataset) for dataset in datasets or params.datasets]
    return [future.result() for future in futures]


def run_release(params_path: str, datasets: list[str] | None) -> list[ReleasedVersion]:
    """Run the flow here, on the server that PREFECT_API_URL names or else on one of its own."""
    _check(params_path, datasets)
    ensure_server()
    return release(params_path, datasets)


def watch(params_path: str, datasets: list[str] | None, every: float) -> None:
    """Release new champions, looking for them every so many seconds, until interrupted."""
    _check(params_path, datasets)
    ensure_server()
    _release_at(wake_ups(queue.Queue(), every), params_path, datasets)


def listen(params_path: str, datasets: list[str] | None, host: str, port: int, every: float) -> None:
    """Release whenever a verified webhook of MLflow says that a champion moved, until interrupted.

    A delivery can be lost and a release can fail, so it also looks every so many seconds.
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
        server = webhook.Listener((host, port), secret, on_move)
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port} ({error.strerror}); choose another --listen") from None
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        _say(f"listening on http://{host}:{server.server_address[1]}")
        _release_at(wake_ups(moves, every), params_path, datasets)


def wake_ups(moves: "queue.Queue[None]", every: float) -> Iterator[None]:
    """Yields when it is time to release: at once, then after each move, or after `every` seconds without one.

    Moves that came during a release count as one.
    """
    while True:
        yield
        with contextlib.suppress(queue.Empty):
            moves.get(timeout=every)
        while not moves.empty():
            moves.get_nowait()


def _release_at(times: Iterable[None], params_path: str, datasets: list[str] | None) -> None:
    for _ in times:
        for line in _attempt(lambda: release(params_path, datasets)):
            _say(line)


def _attempt(run: Callable[[], list[ReleasedVersion]]) -> list[str]:
    """Lines for people on what was released, or why it failed: whatever it is, it ends this attempt, not the watch."""
    try:
        return [f"released {model.name} version {model.version}: {model.folder}" for model in run() if model.created]
    except Exception as error:
        return [str(error) if isinstance(error, (Failed, UserError)) else first_line(error)]


def _check(params_path: str, datasets: list[str] | None) -> Params:
    params = load_params(params_path)
    for dataset in datasets or []:
        if dataset not in params.datasets:
            raise UserError(f"dataset {dataset!r} is not in the settings; datasets is {params.datasets}")
    return params


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
