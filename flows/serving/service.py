"""From a question to its answer by the version that is live when the question comes, in this process."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import HTTPException

from flows.serving.busy import busy
from flows.serving.class_lists import ClassLists
from flows.serving.follower import Follower, Live, PredictionJob, score
from flows.serving.http.departure import Departure
from flows.serving.image_urls import Fetcher
from flows.serving.metrics import Metrics
from flows.serving.pipeline import DECODERS, Pipeline, Slots
from flows.serving.prediction_log import PredictionLog
from flows.serving.request import Body, Options, Question, UrlQuestion, check_image, parse
from flows.settings.sections import ServingSection
from mmrl_core.errors import UserError
from mmrl_core.evaluation.abstain import CONFIDENCE, card_threshold, is_below
from mmrl_core.method.adapter_card import AdapterCard

if TYPE_CHECKING:
    from mmrl_core.predict import Classes, Prediction

LOADING = 5  # seconds after which to ask again while no model is loaded
T = TypeVar("T")


class Service:
    """Answers questions by the follower's version."""

    def __init__(
        self, settings: ServingSection, follower: Follower, metrics: Metrics, log: PredictionLog | None = None
    ):
        self._settings, self._follower, self._metrics, self._log = settings, follower, metrics, log
        self._slots = Slots(slots_of(settings), settings.queue_seconds)
        self._pipeline = Pipeline(self._score, settings.batch_size, settings.batch_wait_ms / 1000)
        self._lists, self._fetcher = ClassLists(), Fetcher(settings)

    async def answer(self, asked: Body | Question, departure: Departure) -> dict[str, Any]:
        """Label, probabilities and the version they are from.

        Raises HTTPException: 4xx for a mistake in the question, 503 while no version is loaded, and where the model is
        not free in time; Left, once who asked has gone.
        """
        live = self._live()
        try:
            found = await self._through(partial(_begun, live, asked, self._settings), departure)
            if not isinstance(found, Question):
                return found
            question, classes = await departure.unless(self._completed(live, found))
            return await self._through(partial(_prepared, live, question, classes), departure)
        except UserError as error:
            raise HTTPException(422, str(error)) from None

    async def _through(self, prepare: Callable[[], PredictionJob | T], departure: Departure) -> "dict[str, Any] | T":
        async with self._slots.one(departure):
            return await self._pipeline.run(prepare)

    async def _completed(self, live: Live, asked: Question) -> "tuple[Question, Classes]":
        """With what it names: its image by a URL, and other classes than the trained ones."""
        question = await fetched(asked, self._fetcher, self._settings)
        names = question.options.class_names
        return question, await self._lists.of(live, names) if names else live.trained

    async def known(self) -> dict[str, Any]:
        """The trained classes, and the version that knows them. Raises HTTPException, 503, while none is loaded."""
        live = self._live()
        names = list(dict.fromkeys(live.trained.names))
        return {"class_names": names, "abstain": _abstain(live), "model": live.identity}

    async def ready(self) -> dict[str, Any]:
        """Whether a version is loaded; a problem beside it says why a newer one is not."""
        live, problem = self._follower.current, self._follower.problem
        state = {"ready": live is not None, "model": live and live.identity, "problem": problem}
        return {name: value for name, value in state.items() if value is not None}

    def _live(self) -> Live:
        if self._follower.current is None:
            raise busy(f"no model is loaded: {self._follower.problem}", LOADING)
        return self._follower.current

    def _score(self, jobs: list[PredictionJob]) -> list[dict[str, Any]]:
        """Answers in order; in the scorer's thread."""
        self._metrics.batches.observe(len(jobs))
        answers = []
        for job, prediction in zip(jobs, score(jobs), strict=True):
            self._metrics.predicted(job, prediction)
            if self._log:
                self._log.put(job, prediction)
            answers.append(_described(job, prediction))
        return answers


def _abstain(live: Live) -> dict[str, float] | None:
    """Threshold and share of the adapter's card, where it has those of the confidence that is compared."""
    card = live.predictor.card.get("abstain")
    if not card or card["confidence"] != CONFIDENCE:
        return None
    return {"threshold": card["threshold"], "keep": card["keep"]}


def slots_of(settings: ServingSection) -> int:
    """Questions that are worked on at a time."""
    return max(2 * DECODERS, 2 * settings.batch_size)


async def fetched(asked: Question, fetcher: Fetcher, limits: ServingSection) -> Question:
    """With its image where it names that by a URL."""
    if not isinstance(asked.options, UrlQuestion) or asked.image:
        return asked
    image = await fetcher.image(asked.options.url)
    await asyncio.to_thread(check_image, image, limits)
    return Question(image, asked.options)


def _begun(live: Live, asked: Body | Question, limits: ServingSection) -> PredictionJob | Question:
    """The job of a question, or the question where it names what is not there yet; in a decoder's thread."""
    question = parse(asked, limits) if isinstance(asked, Body) else asked
    classes = live.known(question.options.class_names)
    if classes is None or not question.image:
        return question
    return _prepared(live, question, classes)


def _prepared(live: Live, question: Question, classes: "Classes") -> PredictionJob:
    options = question.options
    threshold = _threshold(options, live.predictor.card)
    return PredictionJob(live, live.predictor.view(question.image, "upload"), classes, options.top_k, threshold)


def _threshold(options: Options, card: AdapterCard) -> float | None:
    """The confidence below which to abstain; None where abstaining was not asked for."""
    if options.threshold is not None:
        return options.threshold
    return card_threshold(card) if options.abstain else None


def _described(job: PredictionJob, prediction: "Prediction") -> dict[str, Any]:
    answer = prediction._asdict()
    if job.threshold is not None:
        answer["abstained"] = is_below(prediction.confidence, job.threshold)
    return answer | {"model": job.live.identity}
