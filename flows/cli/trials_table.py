"""The trials of a finished search as a table, from its file."""

from pathlib import Path
from typing import Any

from mmrl_core.errors import UserError
from mmrl_core.search.trial import Objective, SearchDocument, Trial, read_search_file

OBJECTIVES: dict[Objective, str] = {"log_likelihood": "log-likelihood", "harmonic_mean": "harmonic mean"}


def trials_of(path: Path, made_by: str = "mmrl tune") -> dict[str, Any]:
    """The trials, a table of them, best first, and a line that says what was chosen and how far it is ahead."""
    from flows.cli.options import text_table

    document = read_search_file(path, ("trials", "search", "choice"), made_by=made_by)
    trials, objective = document["trials"], document["search"]["objective"]
    if not trials:
        raise UserError(f"{path} has no trials: nothing was searched; set search.enabled and search.space")
    document = read_search_file(path, ("ahead_of",), made_by=made_by)  # which a search of nothing has not
    order = sorted(range(len(trials)), key=lambda index: -_reached(trials[index], objective))
    keys = list(trials[0]["params"])
    header = ["trial", *(key.partition(".")[2] for key in keys), *OBJECTIVES.values(), "partitions", "parameters", ""]
    rows = [_row(trials[index], index, keys, _mark(document, index)) for index in order]
    return {"table": text_table(header, rows), "trials": trials, "chosen": _conclusion(document, objective)}


def _reached(trial: Trial, objective: Objective) -> float:
    """Trials that got further come first."""
    return (len(trial["scores"]) * 1e6 + trial[objective]) if trial["scores"] else float("-inf")


def _row(trial: Trial, index: int, keys: list[str], mark: str) -> list[str]:
    values = [f"{trial['params'][key]:.4g}" for key in keys]
    numbers: dict[str, Any] = {**trial}
    scores = [f"{numbers[name]:.4f} ± {numbers[f'{name}_se']:.4f}" if trial["scores"] else "-" for name in OBJECTIVES]
    count = f"{trial.get('trainable_parameters', 0):.0f}"
    return [str(index), *values, *scores, str(len(trial["scores"])), count, mark]


def _mark(document: SearchDocument, index: int) -> str:
    trial = document["trials"][index]
    ended = trial.get("state", "complete")
    state = trial.get("failure") or ("" if ended == "complete" else ended)
    chosen = "chosen" if index == document["chosen"] else ""
    front = "Pareto front" if index in document.get("pareto_front", []) else ""
    return ", ".join(filter(None, [chosen, front, state]))


def _conclusion(document: SearchDocument, objective: Objective) -> str:
    values = ", ".join(f"{key} {value:.4g}" for key, value in document["choice"].items())
    ahead = [
        f"{lead['difference']:.4f} ± {lead['se']:.4f} ahead of {name.replace('_', '-')}"
        for name, lead in document["ahead_of"].items() if lead and lead["trial"] != document["chosen"]
    ]  # fmt: skip
    return "; ".join([f"chosen by {OBJECTIVES[objective]}: {values}", *ahead])
