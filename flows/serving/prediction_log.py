"""A share of the predictions as JSON lines, for whoever looks after the model; images are never kept."""

import json
import logging
import random
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flows.serving.follower import PredictionJob
    from mmrl_core.predict import Prediction

FILE_BYTES, OLDER_FILES = 10_000_000, 5  # of each replica


class PredictionLog:
    """Writes `file`, which rotates, with each prediction in it at the probability `share`."""

    def __init__(self, file: Path, share: float):
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file, self._share = file, share
        self._handler = RotatingFileHandler(file, maxBytes=FILE_BYTES, backupCount=OLDER_FILES, delay=True)

    def put(self, job: "PredictionJob", found: "Prediction") -> None:
        """A line: time, version, label, probability, confidence, whether it was among the trained classes, and there
        whether it was strange and the share that is expected to be."""
        if random.random() >= self._share:
            return
        if not self._file.exists():  # cleaned away
            self._handler.close()
        strange, expected = job.live.unusual(job, found) or (None, None)
        row = {
            "time": datetime.now(UTC).isoformat(),
            **job.live.identity,
            "label": found.label,
            "probability": found.probability,
            "confidence": found.confidence,
            "trained_classes": job.classes is job.live.trained,
            "strange": strange,
            "expected": expected,
        }
        self._handler.emit(logging.makeLogRecord({"msg": json.dumps(row)}))
