"""A replica on Ray Serve: the application, its service, and the batches between them."""

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI
from ray import serve
from ray.actor import ActorHandle
from ray.exceptions import RayError

from flows.serving.app import create_app
from flows.serving.follower import Follower, PredictionJob
from flows.serving.metrics import Family, Metrics
from flows.serving.prediction_log import PredictionLog
from flows.serving.service import Service
from flows.settings.sections import ServingSection

if TYPE_CHECKING:
    from mmrl_core.predict import Prediction

UPDATE_SECONDS = 2  # between two times that a replica sends its metrics
QUEUED = 1000  # requests that wait for a replica at a proxy; more are answered 503
UPSCALE_SECONDS = 5  # of too many requests before a replica is added; Ray Serve's 30 are long beside a start of 5


class Replica:
    """Follows `uri` in the MLflow store; `aggregator` is the actor that adds up the metrics of all replicas, `folder`
    is where predictions are logged.

    It starts without a model too, and says in /readyz why it has none.
    """

    def __init__(
        self, settings: ServingSection, uri: str, store: str, key_sha256: str | None, aggregator: ActorHandle,
        folder: Path,
    ):  # fmt: skip
        self._name = serve.get_replica_context().replica_id.unique_id
        self._aggregator, self._wait = aggregator, settings.batch_wait_ms / 1000
        self._score.set_max_batch_size(settings.batch_size)
        log = PredictionLog(folder / f"{self._name}.jsonl", settings.log_share) if settings.log_share else None
        follower = Follower(uri, store, settings.poll_seconds)
        self._metrics = Metrics(follower, self._of_all_replicas)
        self._service = Service(settings, follower, self._metrics, key_sha256, log, self._score_with_others)
        follower.start()
        threading.Thread(target=self._keep_updating, name="metrics", daemon=True).start()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self._service)

    async def _score_with_others(self, job: PredictionJob) -> "Prediction":
        """Waiting for a fuller batch pays only while others are on their way."""
        self._score.set_batch_wait_timeout_s(self._wait if self._service.in_flight > 1 else 0)
        return await self._score(job)

    @serve.batch
    async def _score(self, jobs: list[PredictionJob]) -> "list[Prediction]":
        return await self._service.score_batch(jobs)

    async def _of_all_replicas(self, families: list[Family]) -> list[Family]:
        try:
            return await self._aggregator.total.remote(self._name, families)
        except RayError:  # it is being restarted
            return families

    def _keep_updating(self) -> None:
        while True:
            time.sleep(UPDATE_SECONDS)
            self._aggregator.update.remote(self._name, self._metrics.families())


def application(settings: ServingSection, *arguments: object) -> serve.Application:
    """The Ray Serve application: as many replicas as the settings say, each with these arguments of `Replica`."""
    least, most = settings.replicas.min, settings.replicas.max
    number = (
        {"num_replicas": least}
        if least == most
        else {"autoscaling_config": {"min_replicas": least, "max_replicas": most,
                                     "target_ongoing_requests": settings.batch_size,
                                     "upscale_delay_s": UPSCALE_SECONDS}}
    )  # fmt: skip
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name="predict",
        ray_actor_options={"num_cpus": settings.cpus_per_replica},
        max_ongoing_requests=max(64, 4 * settings.batch_size),
        max_queued_requests=QUEUED,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=20,
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
        **number,
    )
    return deployment.bind(settings, *arguments)
