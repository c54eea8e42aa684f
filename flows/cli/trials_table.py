"""The trials of a finished search as a table, from its file."""

from pathlib import Path
from typing import Any

from mmrl_core.errors import UserError
from mmrl_core.files import read_json

OBJECTIVES = {"log_likelihood": "log-likelihood", "harmonic_mean": "harmonic mean"}


def trials_of(path: Path) -> dict[str, Any]:
    """The trials, a table of them, best first, and a line that says what was chosen and how far it is ahead."""
    from flows.cli.options import text_table

    found = read_json(path, made_by="mmrl tune", keys=("trials", "search", "choice"))
    if not found["trials"]:
        raise UserError(f"{path} has no trials: nothing was searched; set search.enabled and search.space")
    objective, front = found["search"]["objective"], found.get("pareto_front", [])
    order = sorted(range(len(found["trials"])), key=lambda index: -_reached(found["trials"][index], objective))
    keys = list(found["trials"][0]["params"])
    header = ["trial", *(key.partition(".")[2] for key in keys), *OBJECTIVES.values(), "partitions", "parameters", ""]
    rows = [_row(found["trials"][index], index, keys, _mark(found, index, front)) for index in order]
    return {"table": text_table(header, rows), "trials": found["trials"], "chosen": _conclusion(found, objective)}


def _reached(trial: dict, objective: str) -> float:
    """Trials that got further come first."""
    return (len(trial["scores"]) * 1e6 + trial[objective]) if trial["scores"] else float("-inf")


def _row(trial: dict, index: int, keys: list[str], mark: str) -> list[str]:
    values = [f"{trial['params'][key]:.4g}" for key in keys]
    scores = [f"{trial[name]:.4f} ± {trial[f'{name}_se']:.4f}" if trial["scores"] else "-" for name in OBJECTIVES]
    count = f"{trial.get('trainable_parameters', 0):.0f}"
    return [str(index), *values, *scores, str(len(trial["scores"])), count, mark]


def _mark(found: dict, index: int, front: list[int]) -> str:
    trial = found["trials"][index]
    state = trial.get("failure") or ("" if trial["state"] == "complete" else trial["state"])
    marks = ["chosen"] if index == found["chosen"] else []
    return ", ".join([*marks, *(["Pareto front"] if index in front else []), *([state] if state else [])])


def _conclusion(found: dict, objective: str) -> str:
    values = ", ".join(f"{key} {value:.4g}" for key, value in found["choice"].items())
    ahead = [
        f"{one['difference']:.4f} ± {one['se']:.4f} ahead of {name.replace('_', '-')}"
        for name, one in found["ahead_of"].items() if one and one["trial"] != found["chosen"]
    ]  # fmt: skip
    return "; ".join([f"chosen by {OBJECTIVES[objective]}: {values}", *ahead])
