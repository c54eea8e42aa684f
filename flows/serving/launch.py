"""`mmrl serve` in the foreground until Ctrl-C or SIGTERM: one process, or one in front of replicas on Ray Serve."""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from flows.cluster.connection import Needs, connected, on_this_node
from flows.project.paths import PREDICTIONS
from flows.registry import versions
from flows.serving.app import PREDICT, Model, create_app
from flows.serving.follower import Follower
from flows.serving.http import doors
from flows.serving.http.protocol import Room
from flows.serving.http.server import HttpServer
from flows.serving.metrics import Metrics
from flows.serving.pipeline import WAITING
from flows.serving.prediction_log import PredictionLog
from flows.serving.service import Service
from flows.settings.params import Params
from flows.settings.sections import ServingSection
from flows.tracking import store as tracking
from flows.tracking.redaction import first_line
from mmrl_core.errors import UserError

if TYPE_CHECKING:
    from ray.actor import ActorHandle

APPLICATION = "mmrl"
SILENT_SECONDS = 30  # after which a replica that sends no metrics counts as gone
WATCH_SECONDS, MISSED = 10, 6  # between two checks whether Ray's controller answers; how many may fail in a row
BACKLOG = 4096  # connections that the system holds until they are accepted

Serve = Callable[[Model, Metrics, Callable[[], object]], None]


def run(params: Params, uri: str, started: Callable[[str], None]) -> None:
    """Serve what `uri` names until a signal comes; `started` gets the address as soon as requests are answered.

    Raises UserError for a URI, store, port or key that cannot be used.
    """
    settings, key = params.serving, doors.key_sha256()
    with _listening(settings) as listener, _until_signalled() as listen:
        store = tracking.store_uri(params)
        with tracking.store_errors(store):
            versions.resolve(tracking.connect(store, create=False), uri)
        port = listener.getsockname()[1]
        local = doors.is_loopback(settings.host)
        if not key and not local:
            print(f"warning: whoever reaches {settings.host} can ask for predictions; set {doors.KEY} to demand a key",
                  file=sys.stderr)  # fmt: skip

        def serve(model: Model, metrics: Metrics, ready: Callable[[], object]) -> None:
            def answering() -> None:
                ready()
                started(f"http://{_bracketed(settings.host)}:{port}")

            listen()
            app = create_app(settings, model, metrics, key, loopback=local and not key)
            room = Room(PREDICT, WAITING, partial(metrics.refused, PREDICT))
            HttpServer(app, listener, settings.request_seconds, room, answering).answer()

        if settings.replicas.max == 1 and params.cluster.address == "local":
            _serve_here(settings, uri, store, serve)
        else:
            _serve_by_replicas(params, uri, store, serve, listen)


def _serve_here(settings: ServingSection, uri: str, store: str, serve: Serve) -> None:
    """By a model in this process."""
    log = PredictionLog(PREDICTIONS.absolute() / "0.jsonl", settings.log_share) if settings.log_share else None
    follower = Follower(uri, store, settings.poll_seconds)
    metrics = Metrics(follower)
    follower.start()
    serve(Service(settings, follower, metrics, log), metrics, follower.looked.wait)


@contextlib.contextmanager
def _listening(settings: ServingSection) -> Iterator[socket.socket]:
    """A socket that is listened on, for the block. Connections wait until the server accepts them."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
            listener.listen(BACKLOG)
        except OSError as error:
            where = f"{settings.host}:{settings.port}"
            raise UserError(f"cannot listen on {where} ({error.strerror}); choose another --host or --port") from None
        yield listener


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@contextlib.contextmanager
def _until_signalled() -> Iterator[Callable[[], None]]:
    """SIGINT or SIGTERM ends the block: it raises there, so that all that the block has opened is closed.

    A further signal is ignored, since closing is under way. Gives the function that sets these handlers; it must be
    called again after anything that starts Ray, whose own handlers abort the process. The handlers from before the
    block come back after it.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(*_: object) -> None:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        raise _Signalled

    def listen() -> None:
        for number in before:
            signal.signal(number, stop)

    listen()
    try:
        yield listen
    except _Signalled:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Signalled(BaseException):
    """Not an Exception, so that no `except Exception` in the block catches it."""


def _serve_by_replicas(params: Params, uri: str, store: str, serve: Serve, listen: Callable[[], None]) -> None:
    with connected(params.cluster, _needs(params.serving)):
        listen()
        with _deployed(params.serving, uri, store) as (model, metrics):
            serve(model, metrics, lambda: None)


def _needs(settings: ServingSection) -> Needs:
    return Needs(settings.cpus_per_replica, tasks=settings.replicas.min)


@contextlib.contextmanager
def _deployed(settings: ServingSection, uri: str, store: str) -> Iterator[tuple[Model, Metrics]]:
    """Deploy the replicas for the block; gives the model that asks them. Other applications on a joined cluster stay.

    Raises UserError when Ray Serve cannot deploy them, ConnectionError when the cluster goes away meanwhile.
    """
    from ray import serve

    from flows.serving.replica import Gathered, Replicas, application

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    aggregator = _aggregator()
    lost = threading.Event()
    try:
        serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})
        replicas = application(settings, uri, store, aggregator, PREDICTIONS.absolute())
        handle = serve.run(replicas, name=APPLICATION, route_prefix=None)
        threading.Thread(target=_watch, args=(lost,), name="watch", daemon=True).start()
        yield Replicas(settings, handle), Metrics(None, Gathered(aggregator))
    except (RuntimeError, TimeoutError) as error:
        raise UserError(f"Ray Serve cannot serve the model: {first_line(error, store)}") from error
    finally:
        with contextlib.suppress(Exception):  # the cluster may be gone already
            serve.delete(APPLICATION)
    if lost.is_set():
        raise ConnectionError("the Ray cluster does not answer any more; it is gone or stuck")


def _aggregator() -> "ActorHandle":
    """The actor that adds up the metrics of all replicas. It ends with this process, so one that is there already is
    another process's: UserError."""
    from flows.serving.metrics import MetricsAggregator

    try:
        return on_this_node(MetricsAggregator).options(name="tally", namespace=APPLICATION).remote(SILENT_SECONDS)
    except ValueError:
        raise UserError("another `mmrl serve` runs on this cluster; end it first") from None


def _watch(lost: threading.Event) -> None:
    """End the serving once Ray's controller, which no question reaches, has not answered for a minute; a supervisor is
    to start the process again."""
    missed = 0
    while missed < MISSED:
        time.sleep(WATCH_SECONDS)
        missed = 0 if _controller_answers() else missed + 1
    lost.set()
    os.kill(os.getpid(), signal.SIGTERM)


def _controller_answers() -> bool:
    from ray import serve

    answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(Exception):  # whatever Ray raises where its cluster is gone
            serve.status()
            answered.set()

    threading.Thread(target=ask, name="status", daemon=True).start()  # which may never return
    return answered.wait(3 * WATCH_SECONDS)
