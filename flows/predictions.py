"""predictions.parquet: one row an image of a run's test sets. Read without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow
import pyarrow.parquet

from mmrl_core.errors import UserError
from mmrl_core.uncertainty import HALVES, Outcomes

if TYPE_CHECKING:
    from mmrl_core.evaluation import Scores

TOP_K = 5


def write_predictions(path: Path, scores: dict[str, Scores], manifest: dict) -> None:
    """One row an image; labels are the source's own."""
    rows = [row for half, part in scores.items() for row in _rows(half, part, manifest[half])]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def _rows(half: str, part: Scores, labels: list[int]):
    top = part.adapted.topk(min(TOP_K, len(labels)))
    zero = part.zero_shot.max(dim=-1)
    for i, item in enumerate(part.items):
        best = [labels[index] for index in top.indices[i].tolist()]
        yield {
            "item": item,
            "half": half,
            "label": labels[int(part.labels[i])],
            "prediction": best[0],
            "top_labels": best,
            "top_probabilities": top.values[i].tolist(),
            "zero_shot_prediction": labels[int(zero.indices[i])],
            "zero_shot_probability": float(zero.values[i]),
        }


def read_outcomes(path: Path) -> dict[str, Outcomes]:
    """Base and novel outcomes from a run's predictions.parquet. Raises UserError when that cannot be had."""
    columns = ["item", "half", "label", "prediction", "zero_shot_prediction"]
    try:
        rows = pyarrow.parquet.read_table(path, columns=columns).to_pandas()
    except (OSError, pyarrow.ArrowException) as error:
        problem = "is not there" if isinstance(error, FileNotFoundError) else "cannot be read"
        raise UserError(f"{path} {problem}; run `mmrl evaluate` again") from None
    if missing := [half for half in HALVES if not (rows["half"] == half).any()]:
        raise UserError(f"{path} has no {missing[0]} image; run `mmrl evaluate` again")
    return {half: _of_half(rows[rows["half"] == half]) for half in HALVES}


def _of_half(rows) -> Outcomes:
    truth = rows["label"].to_numpy()
    right = (rows[name].to_numpy() == truth for name in ("prediction", "zero_shot_prediction"))
    return Outcomes(rows["item"].tolist(), *right)
