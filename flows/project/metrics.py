"""metrics.json: what an evaluation says of a run, read and checked."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from mmrl_core.errors import Damaged
from mmrl_core.files import read_json, wrong_entry

METRICS = "metrics.json"
# Of mmrl_core/evaluation/scores.py, which imports PyTorch.
ADAPTED, ZERO_SHOT, WITHOUT_PROBE = "adapted", "zero_shot", "without_probe"
EVALUATE = "mmrl evaluate"
Share = Annotated[float, Field(ge=0, le=1)]


class PartScores(TypedDict):
    """Of one part, such as base or novel."""

    accuracy: Share
    ece: NotRequired[Share]  # which the registry does without
    # Where temperatures were applied.
    ece_uncalibrated: NotRequired[Share]
    # Not in files of earlier versions, and where they are not defined.
    tested_classes: NotRequired[int]
    macro_f1: NotRequired[Share]
    balanced_accuracy: NotRequired[Share]
    top5_accuracy: NotRequired[Share]
    auroc: NotRequired[Share]


class ValidationScores(TypedDict):
    accuracy: Share
    nll: float


class Gain(TypedDict):
    """Over zero-shot, with its 95% interval."""

    mean: float
    low: float
    high: float


class MetricsFile(TypedDict):
    """What is read of the file. Each of `parts` is an entry of it as well, of PartScores."""

    seed: int
    target: str
    protocol: str
    preset: str
    beta: float
    template: str
    parts: list[str]
    zero_shot: dict[str, Any]  # by part, and the harmonic mean
    gain: dict[str, Gain]  # by part, and of the harmonic mean
    without_probe: NotRequired[dict[str, Any]]  # the same of an adapter with a probe, which is left out
    validation: dict[str, ValidationScores]  # by part
    harmonic_mean: Share
    class_names: dict[str, str]  # by label
    adapter_sha256: str
    data_digest: str


class _ByPart(TypedDict):
    scores: dict[str, PartScores]
    zero_shot: dict[str, PartScores]
    without_probe: dict[str, PartScores]


def read_metrics(folder: Path, keys: Iterable[str] = (), made_by: str = EVALUATE) -> dict[str, Any]:
    """The metrics.json of a run's results, which has `keys`. Raises as `read_json`, and Damaged where one of its parts
    has no scores."""
    path = folder / METRICS
    metrics = read_json(path, made_by=made_by, keys=keys, shape=MetricsFile)
    parts = metrics.get("parts", [])
    sections = {name: metrics.get(name) for name in ("zero_shot", "without_probe")}
    by_part = {
        "scores": {part: metrics.get(part) for part in parts},
        **{name: {} if one is None else {part: one.get(part) for part in parts} for name, one in sections.items()},
    }
    if problem := wrong_entry(by_part, _ByPart):
        raise Damaged(f"{path}: {problem}; run `{made_by}` again")
    return metrics
