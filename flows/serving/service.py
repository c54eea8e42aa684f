"""From a question to its answer: decoding and scoring in threads, with the version that is live when it comes."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from fastapi import HTTPException

from flows.serving.follower import Follower, Live, PredictionJob, score
from flows.serving.metrics import Metrics
from flows.serving.prediction_log import PredictionLog
from flows.serving.request import PredictRequest
from flows.settings.sections import ServingSection
from mmrl_core.errors import UserError
from mmrl_core.evaluation.abstain import card_threshold

if TYPE_CHECKING:
    from mmrl_core.predict import Prediction

DECODERS = 2  # threads; each holds one image at full size


class Service:
    """Answers questions by the follower's version.

    `score_one` takes a job to its prediction, usually by way of a batch; `score_batch` is what scores one.
    """

    def __init__(
        self, settings: ServingSection, follower: Follower, metrics: Metrics, key_sha256: str | None = None,
        log: PredictionLog | None = None,
    ):  # fmt: skip
        self.settings, self.follower, self.metrics, self.key_sha256 = settings, follower, metrics, key_sha256
        self._log = log
        self.in_flight = 0  # questions that are being answered
        self._decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="decoder")
        self._scorer = ThreadPoolExecutor(1, thread_name_prefix="scorer")
        self.score_one: Callable[[PredictionJob], Awaitable[Prediction]] = self._score_alone

    async def answer(self, asked: PredictRequest) -> dict[str, Any]:
        """Label, probabilities and the version they are from. Raises HTTPException: 422 for what is in the question,
        503 while no version is loaded."""
        live = self.follower.current
        if live is None:
            raise HTTPException(503, f"no model is loaded: {self.follower.problem}", {"Retry-After": "5"})
        self.in_flight += 1
        try:
            return await self._answer(live, asked)
        finally:
            self.in_flight -= 1

    async def _answer(self, live: Live, asked: PredictRequest) -> dict[str, Any]:
        options = asked.options
        try:
            threshold = _threshold(options, live.predictor.card)
            job = await self._in(self._decoders, _prepare, live, asked)
        except UserError as error:
            raise HTTPException(422, str(error)) from None
        prediction = await self.score_one(job)
        self._note(job, prediction)
        return _described(prediction, options.top_k, threshold) | {"model": live.identity}

    def _note(self, job: PredictionJob, prediction: "Prediction") -> None:
        self.metrics.predicted(job, prediction)
        if self._log:
            self._log.put(job, prediction)

    async def score_batch(self, jobs: list[PredictionJob]) -> "list[Prediction]":
        self.metrics.batches.observe(len(jobs))
        return await self._in(self._scorer, score, jobs)

    async def _score_alone(self, job: PredictionJob) -> "Prediction":
        return (await self.score_batch([job]))[0]

    async def _in(self, threads: ThreadPoolExecutor, function: Callable, *arguments):
        return await asyncio.get_running_loop().run_in_executor(threads, function, *arguments)


def _prepare(live: Live, asked: PredictRequest) -> PredictionJob:
    view = live.predictor.view(asked.image, "upload")
    return PredictionJob(live, view, live.classes(asked.options.class_names))


def _threshold(options, card: dict) -> float | None:
    """The confidence to abstain below; None: it was not asked."""
    if options.threshold is not None:
        return options.threshold
    return card_threshold(card) if options.abstain else None


def _described(found: "Prediction", top_k: int, threshold: float | None) -> dict[str, Any]:
    best = sorted(found.probabilities.items(), key=lambda pair: -pair[1])[:top_k]
    row = {"label": found.label, "probability": found.probability, "probabilities": dict(best),
           "confidence": found.confidence}  # fmt: skip
    return row if threshold is None else row | {"abstained": found.confidence < threshold}
