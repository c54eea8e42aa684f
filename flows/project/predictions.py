"""predictions.parquet: one row per image of a run's test sets. Read without torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow
import pyarrow.parquet

from flows.project.metrics import WITHOUT_PROBE
from mmrl_core.errors import UserError
from mmrl_core.evaluation.bootstrap import Outcomes

if TYPE_CHECKING:
    from pandas import DataFrame

    from mmrl_core.evaluation.scores import Scores

TOP_K = 5
LABELS = ("label", "prediction", "without_probe_prediction", "zero_shot_prediction")
ANSWERS = pyarrow.schema(
    [("item", pyarrow.string()), ("part", pyarrow.string()), *((name, pyarrow.int64()) for name in LABELS)]
)


def write_predictions(path: Path, scores: dict[str, Scores]) -> None:
    """Write one row per image and part of the protocol (such as base and novel); labels are the source's own."""
    rows = [row for part, of_part in scores.items() for row in _rows(part, of_part)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def _rows(part: str, scores: Scores) -> Iterator[dict[str, Any]]:
    labels = scores.classes
    top = scores.adapted.topk(min(TOP_K, len(labels)))
    zero = scores.zero_shot.max(dim=-1)
    without = scores.variants.get(WITHOUT_PROBE, scores.adapted).argmax(-1)
    for i, item in enumerate(scores.items):
        best = [labels[index] for index in top.indices[i].tolist()]
        yield {
            "item": item,
            "part": part,
            "label": labels[int(scores.labels[i])],
            "prediction": best[0],
            "top_labels": best,
            "top_probabilities": top.values[i].tolist(),
            "without_probe_prediction": labels[int(without[i])],
            "zero_shot_prediction": labels[int(zero.indices[i])],
            "zero_shot_probability": float(zero.values[i]),
        }


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
