"""Prometheus metrics: each replica counts its own, and whichever is asked answers with the sums over all replicas."""

import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric

from flows.serving.follower import Follower, Live, PredictionJob

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from mmrl_core.predict import Prediction

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PATHS = ("/", "/docs", "/openapi.json", "/predict", "/classes", "/healthz", "/readyz", "/metrics")
SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
VERSION = ("name", "version", "adapter_sha256")
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)

# A family as plain values, to be sent between processes: name, help, kind, samples (name, labels, value).
Family = tuple[str, str, str, list[tuple[str, tuple[tuple[str, str], ...], float]]]


async def only_own(families: list[Family]) -> list[Family]:
    return families


class Metrics:
    """The measurements of one process, of its model where it has one; `gather` adds the families of all other processes
    to those that it is given."""

    def __init__(self, follower: Follower | None, gather: Callable[[list[Family]], Awaitable[list[Family]]] = only_own):
        self._registry = registry = CollectorRegistry()
        self._follower, self._gather = follower, gather
        self._requests = Counter("mmrl_requests", "Answered requests.", ["path", "status"], registry=registry)
        self._in_flight = Gauge("mmrl_requests_in_flight", "Requests that are being answered.", registry=registry)
        self._seconds = Histogram("mmrl_request_seconds", "From a request's head to its answer.", ["path"],
                                  buckets=SECONDS, registry=registry)  # fmt: skip
        self.batches = Histogram("mmrl_batch_images", "Images scored at once.", buckets=SIZES, registry=registry)
        self._model = Gauge("mmrl_model_replicas", "Replicas that serve a version.", VERSION, registry=registry)
        self._problem = Gauge("mmrl_model_problem_replicas", "Replicas that cannot follow the alias; /readyz says why.",
                              registry=registry)  # fmt: skip
        self._failures = Counter("mmrl_follow_failures", "Looks at the registry, or loads, that failed.",
                                 registry=registry)  # fmt: skip
        self._loads = Counter("mmrl_model_loads", "Versions that were loaded.", registry=registry)
        self._strange = Counter("mmrl_strange_predictions", "Among the trained classes, less confident than the "
                                "adapter's threshold.", VERSION, registry=registry)  # fmt: skip
        self._expected = Counter("mmrl_strange_predictions_expected", "As many as there would be of validation images.",
                                 VERSION, registry=registry)  # fmt: skip
        self._seen_loads = self._seen_failures = 0
        self._lock = threading.Lock()  # a replica sends its metrics from a thread of its own

    def refused(self, path: str) -> None:
        """Count a question that was refused before the application."""
        self._requests.labels(path, "503").inc()

    def predicted(self, job: PredictionJob, prediction: "Prediction") -> None:
        """Count what is unlike the images that the adapter's threshold was set on: a sign of drift."""
        if unusual := job.live.unusual(job, prediction):
            strange, expected = unusual
            labels = _labels(job.live)
            self._strange.labels(**labels).inc(strange)
            self._expected.labels(**labels).inc(expected)

    async def text(self) -> bytes:
        """All replicas' families in Prometheus' text format."""
        return generate_latest(_Families(await self._gather(self.families())))

    def families(self) -> list[Family]:
        """What this process has counted until now."""
        with self._lock:
            self._look_at_the_follower()
            return [
                (metric.name, metric.documentation, metric.type,
                 [(sample.name, tuple(sorted(sample.labels.items())), sample.value) for sample in metric.samples
                  if not sample.name.endswith("_created")])
                for metric in self._registry.collect()
            ]  # fmt: skip

    def _look_at_the_follower(self) -> None:
        if self._follower is None:
            return
        live, loads, failures = self._follower.current, self._follower.loads, self._follower.failures
        self._model.clear()
        if live:
            self._model.labels(**_labels(live)).set(1)
        self._problem.set(self._follower.problem is not None)
        self._loads.inc(loads - self._seen_loads)
        self._failures.inc(failures - self._seen_failures)
        self._seen_loads, self._seen_failures = loads, failures

    def middleware(self, app: "ASGIApp") -> "ASGIApp":
        """ASGI around the application: counts every answer, and the time till its last byte."""

        async def counted(scope: "Scope", receive: "Receive", send: "Send") -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            began, status = time.perf_counter(), "500"
            self._in_flight.inc()

            async def noting(message: "Message") -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = str(message["status"])
                await send(message)

            try:
                await app(scope, receive, noting)
            finally:
                self._in_flight.dec()
                path = scope["path"] if scope["path"] in PATHS else "other"
                self._requests.labels(path, status).inc()
                self._seconds.labels(path).observe(time.perf_counter() - began)

        return counted


def _labels(live: Live) -> dict[str, str]:
    """Of a version, which its adapter's sha256 tells from all others: after a restore a number is used again."""
    return {name: str(value) for name, value in live.identity.items()}


class MetricsAggregator:
    """A Ray actor that adds up the metrics of all replicas, by the last families that each has sent.

    A replica that has sent nothing for `silent_after` seconds counts as gone: its gauges no longer count, its counters
    and histograms do.
    """

    def __init__(self, silent_after: float):
        self._silent_after = silent_after
        self._latest: dict[str, tuple[float, list[Family]]] = {}  # by replica: when they came, and the families

    def update(self, replica: str, families: list[Family]) -> None:
        self._latest[replica] = time.monotonic(), families

    def total(self, replica: str, families: list[Family]) -> list[Family]:
        """As `update`; returns the sums over all replicas."""
        self.update(replica, families)
        now = time.monotonic()
        return added(
            family
            for sent_at, sent in self._latest.values()
            for family in sent
            if family[2] != "gauge" or now - sent_at < self._silent_after
        )


def added(families: Iterable[Family]) -> list[Family]:
    """Families of the same name as one, equal samples added up."""
    totals: dict[str, tuple[str, str, dict]] = {}
    for name, documentation, kind, samples in families:
        values = totals.setdefault(name, (documentation, kind, {}))[2]
        for sample, labels, value in samples:
            values[sample, labels] = values.get((sample, labels), 0) + value
    return [
        (name, documentation, kind, [(sample, labels, value) for (sample, labels), value in values.items()])
        for name, (documentation, kind, values) in totals.items()
    ]


class _Families:
    """What `generate_latest` collects from."""

    def __init__(self, families: list[Family]):
        self._families = families

    def collect(self) -> Iterable[Metric]:
        for name, documentation, kind, samples in self._families:
            metric = Metric(name, documentation, kind)
            for sample, labels, value in samples:
                metric.add_sample(sample, dict(labels), value)
            yield metric
