"""From a request to its answer: decoding and scoring in threads, by the version that is live when the request comes."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

from fastapi import HTTPException

from flows.serving.follower import Follower, Live, PredictionJob, score
from flows.serving.metrics import Metrics
from flows.serving.prediction_log import PredictionLog
from flows.serving.request import Options, PredictRequest
from flows.settings.sections import ServingSection
from mmrl_core.errors import UserError
from mmrl_core.evaluation.abstain import card_threshold, is_below
from mmrl_core.method.adapter_card import AdapterCard

if TYPE_CHECKING:
    from mmrl_core.predict import Prediction

DECODERS = 2  # threads; each holds one image at full size
T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


class Service:
    """Answers requests by the follower's version.

    `score_one` returns a job's prediction: by default alone, on Ray Serve in a batch with others, by `score_batch`.
    """

    def __init__(
        self, settings: ServingSection, follower: Follower, metrics: Metrics, key_sha256: str | None = None,
        log: PredictionLog | None = None, score_one: "Callable[[PredictionJob], Awaitable[Prediction]] | None" = None,
    ):  # fmt: skip
        self.settings, self.follower, self.metrics, self.key_sha256 = settings, follower, metrics, key_sha256
        self._log, self._score_one = log, score_one or self._score_alone
        self.in_flight = 0  # requests that are being answered
        self._decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="decoder")
        self._scorer = ThreadPoolExecutor(1, thread_name_prefix="scorer")

    async def answer(self, asked: PredictRequest) -> dict[str, Any]:
        """Label, probabilities and the version they are from. Raises HTTPException: 422 for a mistake in the request,
        503 while no version is loaded."""
        live = self._live()
        self.in_flight += 1
        try:
            return await self._answer(live, asked)
        finally:
            self.in_flight -= 1

    def known(self) -> dict[str, Any]:
        """The trained classes, and the version that knows them. Raises HTTPException, 503, while none is loaded."""
        live = self._live()
        return {"class_names": list(dict.fromkeys(live.trained.names)), "model": live.identity}

    def _live(self) -> Live:
        if self.follower.current is None:
            raise HTTPException(503, f"no model is loaded: {self.follower.problem}", {"Retry-After": "5"})
        return self.follower.current

    async def _answer(self, live: Live, asked: PredictRequest) -> dict[str, Any]:
        options = asked.options
        try:
            threshold = _threshold(options, live.predictor.card)
            job = await self._in(self._decoders, _prepare, live, asked)
        except UserError as error:
            raise HTTPException(422, str(error)) from None
        prediction = await self._score_one(job)
        self._note(job, prediction)
        return _described(prediction, options.top_k, threshold) | {"model": live.identity}

    def _note(self, job: PredictionJob, prediction: "Prediction") -> None:
        self.metrics.predicted(job, prediction)
        if self._log:
            self._log.put(job, prediction)

    async def score_batch(self, jobs: list[PredictionJob]) -> "list[Prediction]":
        """Predictions in order; only one batch is scored at a time."""
        self.metrics.batches.observe(len(jobs))
        return await self._in(self._scorer, score, jobs)

    async def _score_alone(self, job: PredictionJob) -> "Prediction":
        return (await self.score_batch([job]))[0]

    async def _in(self, threads: ThreadPoolExecutor, function: Callable[[*Arguments], T], *arguments: *Arguments) -> T:
        return await asyncio.get_running_loop().run_in_executor(threads, function, *arguments)


def _prepare(live: Live, asked: PredictRequest) -> PredictionJob:
    view = live.predictor.view(asked.image, "upload")
    return PredictionJob(live, view, live.classes(asked.options.class_names))


def _threshold(options: Options, card: AdapterCard) -> float | None:
    """The confidence below which to abstain; None where abstaining was not asked for."""
    if options.threshold is not None:
        return options.threshold
    return card_threshold(card) if options.abstain else None


def _described(prediction: "Prediction", top_k: int, threshold: float | None) -> dict[str, Any]:
    best = sorted(prediction.probabilities.items(), key=lambda pair: -pair[1])[:top_k]
    row = {"label": prediction.label, "probability": prediction.probability, "probabilities": dict(best),
           "confidence": prediction.confidence}  # fmt: skip
    return row if threshold is None else row | {"abstained": is_below(prediction.confidence, threshold)}
