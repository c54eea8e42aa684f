"""The race of a search against the full search, over search seeds; and a search as a bare loop in one process.

    python -m benchmarks.race [--datasets digits,objects] [--methods mmrl,mmrlpp] [--seeds 10]

Runs in a project folder whose few-shot items are prepared, with its params.yaml; no cluster, no MLflow, no file. Both
searches of a seed meet the same partitions, and what both train is trained once. TPE learns from fewer partitions in a
race, so the settings tried differ. What is compared is the objective of the two choices over all partitions.
"""

import argparse
from collections.abc import Iterator
from statistics import mean
from typing import Any, NamedTuple

from benchmarks.support.table import Column, Table
from flows.settings.params import Params, load_params
from flows.tuning.data import search_data
from flows.tuning.ledger import trial_key
from flows.tuning.rounds import Rounds
from flows.tuning.searchers import searcher
from flows.tuning.space import first_points, open_dimensions, published_point
from flows.tuning.trainable import PartitionScores, Piece, one_report, settle
from mmrl_core.errors import UserError
from mmrl_core.search.choice import choose
from mmrl_core.search.comparison import looks, overall, standard_error, still_in
from mmrl_core.search.partitions import partitions
from mmrl_core.search.trial import Trial, TrialSettings

COLUMNS = [
    Column("dataset", "dataset", width=10),
    Column("method", "method", width=8),
    Column("seed", "seed", width=6),
    Column("partitions run", "share", ".0%", 15),
    Column("race", "race", ".4f", 9),
    Column("full", "full", ".4f", 9),
    Column("race - full", "difference", "+.4f", 12),
    Column("its error", "error", ".4f", 10),
    Column("same choice", "same", width=12),
]


class Ended(NamedTuple):
    """A search: the chosen trial, and how many partitions were run of those that there were."""

    chosen: dict[str, Any]
    ran: int
    of: int


class BareSearch:
    """The steps of `mmrl tune` in this process. What is scored once stays known."""

    def __init__(self, params: Params, dataset: str, method: str):
        data, templates = search_data(params, dataset)
        parts = partitions(data, params.search.partitions, params.search.seed)
        self.search, self.space = params.search, open_dimensions(params)
        self.settled, _ = settle(params, dataset, method, data, templates, parts)
        data = data._replace(template=self.settled.template)
        self.evaluate = PartitionScores(params, dataset, method, data, self.settled.parts)
        self.published = published_point(params, dataset, method, self.space, self.settled.depth)
        self.known: dict[tuple[str, int], dict] = {}

    def trials(self, is_race: bool) -> tuple[list[Trial], Trial]:
        """All trials in the order in which they began, and the chosen one."""
        trials = self._run(is_race)
        chosen = choose(trials, self.search.objective, self.published, self.space)
        assert chosen is not None
        return trials, chosen

    def run(self, is_race: bool) -> Ended:
        trials, chosen = self.trials(is_race)
        n = len(self.settled.parts)
        return Ended(dict(chosen), sum(len(trial["scores"]) for trial in trials), n * len(trials))

    def _run(self, is_race: bool) -> list[Trial]:
        n, seen = len(self.settled.parts), dict[str, int]()
        settings: dict[str, TrialSettings] = {}

        def trials() -> list[Trial]:
            return [self._trial(one, seen[key]) for key, one in settings.items()]

        def going(drawn: list[TrialSettings], look: int) -> list[list[TrialSettings]]:
            alike = [trial for trial in trials() if len(trial["scores"]) == look]
            return [[trial["params"] for trial in still_in(alike, self.search.objective)]]

        points = first_points(self.search, self.space, self.published, [])
        proposals = searcher(self.search, self.space, points, [])
        rounds = Rounds(proposals, self.search.trials, self.settled.batch, looks(n) if is_race else [n], n, going)
        for number in map(str, range(n * self.search.trials)):
            if (job := rounds.suggest(number)) == rounds.FINISHED:
                break
            keys = [trial_key(one) for one in job["settings"]]
            settings.update(zip(keys, job["settings"], strict=True))
            seen.update(dict.fromkeys(keys, job["partitions"]))
            self._score(job["settings"], job["partitions"])
            each = [one_report(self._trial(settings[key], seen[key])["scores"]) for key in keys]
            rounds.on_trial_complete(number, {**each[0], "each": each})
        return trials()

    def _score(self, settings: list[TrialSettings], n: int) -> None:
        """What is not known yet of the first n partitions."""
        pieces = [
            Piece(one, index) for one in settings for index in range(n) if (trial_key(one), index) not in self.known
        ]
        for place, found in self.evaluate(pieces) if pieces else []:
            if isinstance(found, UserError):
                raise found
            one, index = pieces[place]
            self.known[trial_key(one), index] = found

    def _trial(self, settings: TrialSettings, n: int) -> Trial:
        scores = [self.known[trial_key(settings), index] for index in range(n)]
        return {"params": settings, "scores": scores, **overall(scores)}


def compared(dataset: str, method: str, seeds: int) -> Iterator[dict]:
    """A row a search seed."""
    params = load_params()
    for seed in range(seeds):
        search = params.search.model_copy(update={"seed": seed})
        bare = BareSearch(params.model_copy(update={"search": search}), dataset, method)
        race, full = bare.run(is_race=True), bare.run(is_race=False)
        ours, theirs = ([one[search.objective] for one in ended.chosen["scores"]] for ended in (race, full))
        differences = [one - other for one, other in zip(ours, theirs, strict=True)]
        yield {"dataset": dataset, "method": method, "seed": str(seed), "share": race.ran / race.of, "race": mean(ours),
               "full": mean(theirs), "difference": mean(differences), "error": standard_error(differences),
               "same": "yes" if race.chosen["params"] == full.chosen["params"] else ""}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", default="digits,objects")
    parser.add_argument("--methods", default="mmrl,mmrlpp")
    parser.add_argument("--seeds", type=int, default=10, help="how many")
    options = parser.parse_args()
    table = Table("the race and the full search", COLUMNS)
    for dataset in options.datasets.split(","):
        for method in options.methods.split(","):
            rows = []
            for row in compared(dataset, method, options.seeds):
                table.add(row)
                rows.append(row)
            differences = [row["difference"] for row in rows]
            table.add({"dataset": dataset, "method": method, "seed": "all", "share": mean(row["share"] for row in rows),
                       "difference": mean(differences), "error": standard_error(differences)})  # fmt: skip


if __name__ == "__main__":
    main()
