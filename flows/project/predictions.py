"""predictions.parquet: one row per image of a run's test sets. Read without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow
import pyarrow.parquet

from flows.project.metrics import ADAPTED, WITHOUT_PROBE, ZERO_SHOT
from mmrl_core.errors import UserError
from mmrl_core.evaluation.bootstrap import Outcomes

if TYPE_CHECKING:
    from pandas import DataFrame

    from mmrl_core.evaluation.figures import Figures

LABELS = ("label", "prediction", "without_probe_prediction", "zero_shot_prediction")
ANSWERS = pyarrow.schema(
    [("item", pyarrow.string()), ("part", pyarrow.string()), *((name, pyarrow.int64()) for name in LABELS)]
)


def write_predictions(path: Path, figures: dict[str, Figures]) -> None:
    """Write one row per image and part of the protocol (such as base and novel); labels are the source's own."""
    tables = [_table(part, of_part) for part, of_part in figures.items()]
    pyarrow.parquet.write_table(pyarrow.concat_tables(tables), path)


def _table(part: str, figures: Figures) -> pyarrow.Table:
    labels, count = np.array(figures.classes), len(figures.items)
    ours, zero = figures.answers[ADAPTED], figures.answers[ZERO_SHOT]
    without = figures.answers.get(WITHOUT_PROBE, ours)
    return pyarrow.table({
        "item": pyarrow.array(figures.items, pyarrow.string()),
        "part": pyarrow.array(np.full(count, part, dtype=object), pyarrow.string()),
        "label": labels[figures.labels.numpy()],
        "prediction": labels[ours.top[:, 0].numpy()],
        "top_labels": _lists(labels[ours.top.numpy()]),
        "top_probabilities": _lists(ours.top_values.double().numpy()),
        "without_probe_prediction": labels[without.best.numpy()],
        "zero_shot_prediction": labels[zero.best.numpy()],
        "zero_shot_probability": zero.confidence.double().numpy(),
    })  # fmt: skip


def _lists(values: np.ndarray) -> pyarrow.ListArray:
    """(n, k) -> n lists."""
    count, size = values.shape
    offsets = pyarrow.array(np.arange(0, (count + 1) * size, size, dtype=np.int32))
    return pyarrow.ListArray.from_arrays(offsets, pyarrow.array(values.ravel()))


def read_outcomes(path: Path, made_by: str = "mmrl evaluate", prediction: str = "prediction") -> dict[str, Outcomes]:
    """Each part's outcomes from a run's predictions.parquet, `prediction` being the adapter's column. Raises as
    `read_answers`, and UserError without an image."""
    rows = read_answers(path, made_by)
    if rows.empty:
        raise UserError(f"{path} has no image; run `{made_by}` again")
    return {str(part): _of_part(group, prediction) for part, group in rows.groupby("part", sort=False)}


def read_answers(path: Path, made_by: str = "mmrl evaluate") -> DataFrame:
    """The columns of ANSWERS, a row an image. Raises UserError where the file is missing, or is not what
    `write_predictions` writes."""
    try:
        rows = pyarrow.parquet.read_table(path, columns=ANSWERS.names)
    except (OSError, pyarrow.ArrowException) as error:
        problem = "is not there" if isinstance(error, FileNotFoundError) else "cannot be read"
        raise UserError(f"{path} {problem}; run `{made_by}` again") from None
    if not rows.schema.equals(ANSWERS) or any(column.null_count for column in rows.columns):
        raise UserError(f"{path} has columns of another type, or lacks values; run `{made_by}` again")
    return rows.to_pandas()


def _of_part(rows: DataFrame, prediction: str) -> Outcomes:
    truth = rows["label"].to_numpy()
    right = (rows[name].to_numpy() == truth for name in (prediction, "zero_shot_prediction"))
    return Outcomes(rows["item"].tolist(), *right)
