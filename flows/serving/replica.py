"""Several processes that answer, on Ray Serve: the deployment of replicas, and how the process in front asks them.

Requests are read and parsed in front, as without Ray; a replica gets images and options, and does the rest.
"""

import asyncio
import contextlib
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import HTTPException
from ray import serve
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from flows.serving.busy import busy
from flows.serving.follower import Follower
from flows.serving.http.departure import Departure
from flows.serving.image_urls import Fetcher
from flows.serving.metrics import Family, Metrics
from flows.serving.pipeline import Slots
from flows.serving.prediction_log import PredictionLog
from flows.serving.request import Body, Question, parse
from flows.serving.service import LOADING, Service, fetched, slots_of
from flows.settings.sections import ServingSection

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

UPDATE_SECONDS = 2  # between two times that a replica sends its metrics
UPSCALE_SECONDS = 5  # of too many requests before a replica is added; Ray Serve's 30 are long beside a start of 5
MANY = 100_000  # questions that Ray Serve may hold: Slots let far fewer in
STATE_SECONDS = 1  # for a replica to say what it serves
ATTEMPTS, PAUSE = 5, 0.2  # to find a replica that lives; seconds between two

Outcome = tuple[int, dict[str, Any], dict[str, str]]  # status, body, headers


class Replica:
    """Follows `uri` in the MLflow store; `aggregator` is the actor that adds up the metrics of all replicas, `folder`
    is where predictions are logged.

    It starts without a model too, and says so.
    """

    def __init__(self, settings: ServingSection, uri: str, store: str, aggregator: ActorHandle, folder: Path):
        self._name = serve.get_replica_context().replica_id.unique_id
        self._aggregator = aggregator
        log = PredictionLog(folder / f"{self._name}.jsonl", settings.log_share) if settings.log_share else None
        follower = Follower(uri, store, settings.poll_seconds)
        self._metrics = Metrics(follower)
        self._service = Service(settings, follower, self._metrics, log)
        follower.start()
        follower.looked.wait()
        threading.Thread(target=self._keep_updating, name="metrics", daemon=True).start()

    async def answer(self, question: Question) -> Outcome:
        """Where who asked has gone, Ray cancels the call."""
        return await _outcome(self._service.answer(question, Departure()))

    async def known(self) -> Outcome:
        return await _outcome(self._service.known())

    async def ready(self) -> dict[str, Any]:
        return await self._service.ready()

    def _keep_updating(self) -> None:
        while True:
            self._aggregator.update.remote(self._name, self._metrics.families())
            time.sleep(UPDATE_SECONDS)


async def _outcome(answer: Any) -> Outcome:
    try:
        return 200, await answer, {}
    except HTTPException as problem:
        return problem.status_code, {"error": problem.detail}, dict(problem.headers or {})


class Replicas:
    """The model of the application in front: asks one replica after the other until one answers."""

    def __init__(self, settings: ServingSection, handle: "DeploymentHandle"):
        self._settings, self._handle, self._fetcher = settings, handle, Fetcher(settings)
        self._slots = Slots(settings.replicas.max * slots_of(settings), settings.queue_seconds)

    async def answer(self, asked: Body, departure: Departure) -> dict[str, Any]:
        """As `Service.answer`."""
        question = await departure.unless(self._read(asked))
        async with self._slots.one(departure):
            return _settled(await departure.unless(self._ask("answer", question)))

    async def _read(self, asked: Body) -> Question:
        question = await asyncio.to_thread(parse, asked, self._settings)
        return await fetched(question, self._fetcher, self._settings)

    async def known(self) -> dict[str, Any]:
        """As `Service.known`."""
        try:
            async with asyncio.timeout(self._settings.queue_seconds):
                return _settled(await self._ask("known"))
        except TimeoutError:
            raise busy("no replica answers at present", LOADING) from None

    async def ready(self) -> dict[str, Any]:
        """What one of them says; it is not ready where none does within STATE_SECONDS."""
        try:
            async with asyncio.timeout(STATE_SECONDS):
                return await self._handle.ready.remote()
        except (RayError, RayServeException, TimeoutError) as error:
            return {"ready": False, "problem": f"no replica answers ({type(error).__name__})"}

    async def _ask(self, what: str, *arguments: object) -> Outcome:
        """A question that was with a replica as that died is asked again: the answer is the same."""
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(PAUSE * attempt)
            with contextlib.suppress(RayError, RayServeException):
                return await getattr(self._handle, what).remote(*arguments)
        raise busy("no replica answers at present", LOADING)


def _settled(outcome: Outcome) -> dict[str, Any]:
    status, body, headers = outcome
    if status != 200:
        raise HTTPException(status, body["error"], headers)
    return body


class Gathered:
    """The metrics of all processes, by the actor that adds them up."""

    def __init__(self, aggregator: ActorHandle):
        self._aggregator = aggregator

    async def __call__(self, families: list[Family]) -> list[Family]:
        try:
            async with asyncio.timeout(STATE_SECONDS / 2):
                return await self._aggregator.total.remote("front", families)
        except (RayError, TimeoutError):  # it is being restarted
            return families


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
        Replica,
        name="predict",
        ray_actor_options={"num_cpus": settings.cpus_per_replica},
        max_ongoing_requests=MANY,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=20,
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
        **number,
    )
    return deployment.bind(settings, *arguments)
