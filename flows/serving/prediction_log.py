"""A share of the predictions as JSON lines, for whoever looks after the model; images are never kept."""

import json
import logging
import random
import sys
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flows.serving.follower import PredictionJob
    from mmrl_core.predict import Prediction

FILE_BYTES, OLDER_FILES = 10_000_000, 5  # of each replica


class PredictionLog:
    """Writes each prediction to `file`, which rotates, with the probability `share`."""

    def __init__(self, file: Path, share: float):
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file, self._share = file, share
        self._handler = _Handler(file, maxBytes=FILE_BYTES, backupCount=OLDER_FILES, delay=True)
        self._failed = False

    def put(self, job: "PredictionJob", prediction: "Prediction") -> None:
        """A line: time, version, label, probability, confidence, whether it was among the trained classes, and if so
        whether its confidence was below the threshold and the share of validation images whose is."""
        if random.random() >= self._share:
            return
        strange, expected = job.live.unusual(job, prediction) or (None, None)
        row = {
            "time": datetime.now(UTC).isoformat(),
            **job.live.identity,
            "label": prediction.label,
            "probability": prediction.probability,
            "confidence": prediction.confidence,
            "trained_classes": job.classes is job.live.trained,
            "strange": strange,
            "expected": expected,
        }
        self._write(json.dumps(row))

    def _write(self, line: str) -> None:
        """What cannot be written is said once, until it can be again: the answer is worth more than its line."""
        try:
            if not self._file.exists():  # cleaned away
                self._handler.close()
                self._file.parent.mkdir(parents=True, exist_ok=True)
            self._handler.emit(logging.makeLogRecord({"msg": line}))
            self._failed = False
        except OSError as error:
            if not self._failed:
                print(f"mmrl serve: predictions cannot be logged in {self._file} ({error.strerror}); make room there",
                      file=sys.stderr, flush=True)  # fmt: skip
            self._failed = True


class _Handler(RotatingFileHandler):
    """Raises what goes wrong; logging's own would write a traceback of each line."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise
