"""`mmrl serve`: Ray Serve in the foreground, until Ctrl-C or SIGTERM."""

import contextlib
import hashlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator

from flows import registry, tracking
from flows.cluster import Needs, connected, on_this_node
from flows.paths import STATE
from mmrl_core.config import Params
from mmrl_core.errors import UserError
from mmrl_core.sections import ServingSection

KEY = "MMRL_API_KEY"
PREDICTIONS = STATE / "predictions"
APPLICATION = "mmrl"
SILENT_SECONDS = 30  # after which a replica that tells nothing counts as gone
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def run(params: Params, uri: str, started: Callable[[str], None]) -> None:
    """Serve what `uri` names until a signal comes; `started` is told the address once questions are answered.

    Raises UserError for a URI, store or port that cannot be used.
    """
    settings, store = _with_port(params.serving), tracking.store_uri(params)
    with tracking.store_errors(store):
        registry.resolve(tracking.connect(store, create=False), uri)
    key = _key_sha256(settings.host)
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 is for training beside other work
    with _until_signalled() as listen, connected(params.cluster, _needs(settings)):
        listen()
        try:
            _deploy(settings, uri, store, key)
            listen()
            started(f"http://{_bracketed(settings.host)}:{settings.port}")
            threading.Event().wait()
        finally:
            _take_down()


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
    """Of the API key; only this travels to the replicas."""
    key = os.environ.get(KEY)
    if not key and host not in LOOPBACK:
        print(f"warning: whoever reaches {host} can ask for predictions; set {KEY} to demand a key", file=sys.stderr)
    return hashlib.sha256(key.encode()).hexdigest() if key else None


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@contextlib.contextmanager
def _until_signalled() -> Iterator[Callable[[], None]]:
    """SIGINT and SIGTERM end the block in good order, wherever it is; a second one is ignored: what ends, ends.

    Gives the function that sets the handlers, for Ray sets its own, which abort the process.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(*_) -> None:
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
    """No Exception, so that nothing on the way takes it for a failure."""


def _needs(settings: ServingSection) -> Needs:
    return Needs(settings.cpus_per_replica, tasks=settings.replicas.min)


def _deploy(settings: ServingSection, uri: str, store: str, key_sha256: str | None) -> None:
    from ray import serve

    from flows.serving.metrics import Tally
    from flows.serving.replica import application

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    tally = on_this_node(Tally).remote(SILENT_SECONDS)
    http = {"host": settings.host, "port": settings.port}
    serve.start(proxy_location="EveryNode", http_options=http, logging_config={"log_level": "WARNING"})
    try:
        replicas = application(settings, uri, store, key_sha256, tally, PREDICTIONS.absolute())
        serve.run(replicas, name=APPLICATION, route_prefix="/")
    except (RuntimeError, TimeoutError) as error:
        raise UserError(f"Ray Serve cannot start the replicas: {tracking.first_line(error)}") from error


def _take_down() -> None:
    """Let requests in flight end. What others serve on a joined cluster stays."""
    from ray import serve

    with contextlib.suppress(Exception):  # the cluster may be gone already
        serve.delete(APPLICATION)
