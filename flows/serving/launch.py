"""`mmrl serve`: Ray Serve in the foreground, until Ctrl-C or SIGTERM."""

import contextlib
import hashlib
import http.client
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from flows.cluster.connection import Needs, connected, on_this_node
from flows.project.paths import PREDICTIONS
from flows.registry import versions
from flows.settings.params import Params
from flows.settings.sections import ServingSection
from flows.tracking import store as tracking
from flows.tracking.redaction import first_line
from mmrl_core.errors import UserError

if TYPE_CHECKING:
    from ray.actor import ActorHandle

KEY = "MMRL_API_KEY"
APPLICATION = "mmrl"
SILENT_SECONDS = 30  # after which a replica that sends no metrics counts as gone
WATCH_SECONDS, MISSED = 10, 6  # between two checks whether the application answers; how many may fail in a row
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def run(params: Params, uri: str, started: Callable[[str], None]) -> None:
    """Serve what `uri` names until a signal comes; `started` gets the address as soon as requests are answered.

    Raises UserError for a URI, store or port that cannot be used.
    """
    settings, store = _with_port(params.serving), tracking.store_uri(params)
    with tracking.store_errors(store):
        versions.resolve(tracking.connect(store, create=False), uri)
    key = _key_sha256(settings.host)
    os.environ.setdefault("RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "1")  # Ray's 10 delays every replica
    with _until_signalled() as listen, connected(params.cluster, _needs(settings)):
        listen()
        with _deployed(settings, uri, store, key):
            listen()
            started(f"http://{_bracketed(settings.host)}:{settings.port}")
            _watch(settings)


def _with_port(settings: ServingSection) -> ServingSection:
    """The settings with a port that is free now: Ray Serve would try for half a minute."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            where = f"{settings.host}:{settings.port}"
            raise UserError(f"cannot listen on {where} ({error.strerror}); choose another --host or --port") from None
        return settings.model_copy(update={"port": probe.getsockname()[1]})


def _key_sha256(host: str) -> str | None:
    """SHA-256 of the API key, which is all that the replicas get; None without a key."""
    key = os.environ.get(KEY)
    if not key and host not in LOOPBACK:
        print(f"warning: whoever reaches {host} can ask for predictions; set {KEY} to demand a key", file=sys.stderr)
    return hashlib.sha256(key.encode()).hexdigest() if key else None


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


def _needs(settings: ServingSection) -> Needs:
    return Needs(settings.cpus_per_replica, tasks=settings.replicas.min)


@contextlib.contextmanager
def _deployed(settings: ServingSection, uri: str, store: str, key_sha256: str | None) -> Iterator[None]:
    """Deploy the application for the block; then requests in flight are answered and it is deleted.

    Other applications on a joined cluster stay. Raises UserError when Ray Serve cannot deploy it at host and port.
    """
    from ray import serve

    from flows.serving.replica import application

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    aggregator, where = _aggregator(), {"host": settings.host, "port": settings.port}
    try:
        serve.start(proxy_location="EveryNode", http_options=where, logging_config={"log_level": "WARNING"})
        replicas = application(settings, uri, store, key_sha256, aggregator, PREDICTIONS.absolute())
        serve.run(replicas, name=APPLICATION, route_prefix="/")
        if not _answers(settings):  # a cluster's Serve keeps the address that it was started with
            named = f"{settings.host}:{settings.port}"
            raise UserError(f"Ray Serve runs on this cluster already and not at {named}; say its --host and --port")
        yield
    except (RuntimeError, TimeoutError) as error:
        raise UserError(f"Ray Serve cannot serve the model: {first_line(error, store)}") from error
    finally:
        with contextlib.suppress(Exception):  # the cluster may be gone already
            serve.delete(APPLICATION)


def _aggregator() -> "ActorHandle":
    """The actor that adds up the metrics of all replicas. It ends with this process, so one that is there already is
    another process's: UserError."""
    from flows.serving.metrics import MetricsAggregator

    try:
        return on_this_node(MetricsAggregator).options(name="tally", namespace=APPLICATION).remote(SILENT_SECONDS)
    except ValueError:
        raise UserError("another `mmrl serve` runs on this cluster; end it first") from None


def _watch(settings: ServingSection) -> None:
    """Raises ConnectionError once nothing has answered for a minute; a supervisor is to start the process again."""
    missed = 0
    while missed < MISSED:
        time.sleep(WATCH_SECONDS)
        missed = 0 if _answers(settings) else missed + 1
    raise ConnectionError(
        f"nothing answers at {settings.host}:{settings.port} any more; the Ray cluster is gone or stuck"
    )


def _answers(settings: ServingSection) -> bool:
    """Whether /healthz is answered, if only with 503 because too many requests wait."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    connection = http.client.HTTPConnection(host, settings.port, timeout=30)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status in (200, 503)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
