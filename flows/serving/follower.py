"""The version that answers, and the thread that follows the registry's alias."""

import sys
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from flows.tracking.redaction import redacted
from mmrl_core.errors import UserError
from mmrl_core.evaluation.abstain import CONFIDENCE, is_below

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from torch import Tensor

    from flows.registry.versions import NamedVersion
    from mmrl_core.predict import Classes, Prediction, Predictor

KEPT_LISTS = 32  # of class names, with their features
RETRY_SECONDS = 60  # before a version that could not be loaded is tried again


class Live:
    """A loaded version of a registered model."""

    def __init__(self, name: str, version: int, predictor: "Predictor"):
        self.name, self.version, self.predictor = name, version, predictor
        self.trained = predictor.classes()
        usual = predictor.card.get("abstain")  # threshold, and the share it keeps
        self.abstain = usual if usual and usual.get("confidence") == CONFIDENCE else None
        self._others: OrderedDict[tuple[str, ...], Classes] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def identity(self) -> dict[str, str | int]:
        return self.registered._asdict()

    @property
    def registered(self) -> "NamedVersion":
        """What the registry calls it. After a restore the same number can be another adapter's."""
        from flows.registry.versions import NamedVersion

        return NamedVersion(self.name, self.version, self.predictor.card["sha256"])

    def known(self, class_names: list[str] | None) -> "Classes | None":
        """The classes with their features, where these are there: of the trained ones, the default, and of the
        KEPT_LISTS lists that were asked for last."""
        if class_names is None:
            return self.trained
        with self._lock:
            return self._keep(tuple(class_names), self._others.pop(tuple(class_names), None))

    def new_classes(self, class_names: list[str]) -> "Classes":
        """The classes with their features, computed, and kept. Raises UserError, of names too long for a prompt too:
        nobody would see a note."""
        if cut := self.predictor.cut_note(class_names):
            raise UserError(cut)
        classes = self.predictor.classes(class_names)
        with self._lock:
            self._keep(tuple(class_names), classes)
        return classes

    def _keep(self, key: tuple[str, ...], classes: "Classes | None") -> "Classes | None":
        if classes is not None:
            self._others[key] = classes
            if len(self._others) > KEPT_LISTS:
                self._others.popitem(last=False)
        return classes

    def unusual(self, job: "PredictionJob", prediction: "Prediction") -> tuple[bool, float] | None:
        """Whether the prediction's confidence is below the adapter's threshold, and the share of validation images
        whose is; None among other classes than the trained ones, and without a threshold."""
        if self.abstain is None or job.classes is not self.trained:
            return None
        return is_below(prediction.confidence, self.abstain["threshold"]), 1 - self.abstain["keep"]


class PredictionJob(NamedTuple):
    """One image, and the version that was live when it came: it is scored by that one, though the alias moves on."""

    live: Live
    view: "Tensor"  # (3, S, S)
    classes: "Classes"
    top_k: int | None = None  # names with their probabilities; None: all
    threshold: float | None = None  # of the confidence, where abstaining was asked for


def score(jobs: list[PredictionJob]) -> list["Prediction"]:
    """Predictions, each by its job's own version; one pass of the image tower a version."""
    predicted: dict[int, Prediction] = {}
    for live in {id(job.live): job.live for job in jobs}.values():
        rows = [row for row, job in enumerate(jobs) if job.live is live]
        own = [jobs[row] for row in rows]
        top_k = [job.top_k for job in own]
        predictions = live.predictor.score([job.view for job in own], [job.classes for job in own], top_k)
        predicted |= zip(rows, predictions, strict=True)
    return [predicted[row] for row in range(len(jobs))]


class Follower:
    """Holds the version that a models:/ URI names, and asks the registry every `poll_seconds` whether it names another.

    A new version is loaded beside the old one and takes its place in one assignment; where it cannot be loaded the old
    one stays and `problem` says why. `loads` and `failures` count since the start.
    """

    def __init__(self, uri: str, store: str, poll_seconds: float):
        self.uri = uri
        self.current: Live | None = None
        self.problem: str | None = "the model is being loaded"
        self.loads = self.failures = 0
        self._store, self._poll_seconds = store, poll_seconds
        self._client: MlflowClient | None = None
        self._failed: tuple[NamedVersion | None, float] = (None, 0.0)  # what could not be loaded; when to try again
        self.looked = threading.Event()  # once
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)

    def start(self) -> None:
        """Look at once and ever again, in the background."""
        self._thread.start()

    def _follow(self) -> None:
        while True:
            self.look()
            self.looked.set()
            time.sleep(self._poll_seconds)

    def look(self) -> None:
        """Ask the registry, and load what it names unless that is loaded."""
        try:
            named = self._resolve()
            if self.current is None or self.current.registered != named:
                self._load(named)
                return
            self.problem = None
        except Exception as error:
            self._client = None
            self._fail(f"{self.uri} cannot be followed: {_one_line(error)}")

    def _resolve(self) -> "NamedVersion":
        from flows.registry import versions
        from flows.tracking import store as tracking

        if self._client is None:
            self._client = tracking.connect(self._store, create=False)
        with tracking.store_errors(self._store):
            return versions.named(self._client, self.uri)

    def _load(self, named: "NamedVersion") -> None:
        failed, retry_at = self._failed
        if named == failed and time.monotonic() < retry_at:
            return
        try:
            self.current = load(named.name, named.version, self._store)
        except Exception as error:
            self._failed = named, time.monotonic() + RETRY_SECONDS
            self._fail(f"version {named.version} of {named.name} cannot be loaded: {_one_line(error)}")
            return
        self.problem, self._failed, self.loads = None, (None, 0.0), self.loads + 1

    def _fail(self, problem: str) -> None:
        self.problem, self.failures = problem, self.failures + 1
        print(f"mmrl serve: {problem}", file=sys.stderr, flush=True)


def load(name: str, version: int, store: str) -> Live:
    """A version, after a first prediction, which is the slowest one. Raises UserError, Damaged where that prediction
    is no numbers."""
    from flows.registry import versions
    from mmrl_core.training.process import settle_threads

    predictor = versions.load(f"models:/{name}/{version}", store)
    settle_threads(predictor.model.backbone)
    predictor.use_onnxruntime()
    predictor.check_answers()
    return Live(name, version, predictor)


def _one_line(error: Exception) -> str:
    return (
        str(error)
        if isinstance(error, UserError)
        else " ".join(redacted(f"{type(error).__name__}: {error}").split())[:300]
    )
