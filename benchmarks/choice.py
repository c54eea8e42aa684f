"""Does a search's choice hold? The search of many seeds, and what each of its settings comes to on test images.

    python -m benchmarks.choice FOLDER [--datasets digits,objects] [--methods mmrl,mmrlpp] [--seeds 10]

Runs in a project folder whose data is prepared, with its params.yaml, in this process. FOLDER keeps what was measured:
started again, it goes on. For every search seed: the trials that could be chosen, and the choice; the choice where
every score is disturbed by up to 1e-5; of every such setting the test harmonic mean of three adapters, as `mmrl train`
and `mmrl evaluate` make them, and its gain over zero-shot with its 95% interval. `--again OTHER` compares choices with
those in another folder, such as that of a process with ATEN_CPU_CAPABILITY=default (`--searches` makes no test figure).

The choice holds where its gain's interval is above 0, if that of the setting with the best test figure is: of those
that saw every partition, and where the choice's is not above 0 of all trials.
"""

import argparse
import json
import random
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.race import BareSearch
from benchmarks.support.table import Column, Table, notes
from flows.project import paths
from flows.project.resources import backbone_for
from flows.settings.params import Params, load_params
from flows.settings.resolve import resolve
from flows.stages.evaluate import outcomes
from flows.tuning.ledger import trial_key
from flows.tuning.space import open_dimensions
from mmrl_core.data.sets import read_set
from mmrl_core.data.shards import read_manifest, stream_examples
from mmrl_core.evaluation.bootstrap import paired_gains
from mmrl_core.evaluation.scores import score_each
from mmrl_core.files import write_json
from mmrl_core.method.model import AdaptedCLIP
from mmrl_core.protocols import PROTOCOLS, labels_of
from mmrl_core.search.choice import choose
from mmrl_core.search.comparison import furthest
from mmrl_core.search.trial import Trial, TrialSettings
from mmrl_core.training.fit import Training, fit_together

DISTURBANCE = 1e-5
COLUMNS = [
    Column("dataset", "dataset", width=10), Column("method", "method", width=8), Column("seed", "seed", width=6),
    Column("could be chosen", "candidates", "d", 16), Column("chosen", "chosen", ".1%", 9),
    Column("gain", "gain", "+.1%", 8), Column("low", "low", "+.1%", 8),
    Column("best", "best", ".1%", 9), Column("its low", "best_low", "+.1%", 9),
    Column("holds", "holds", width=8), Column("same", "same", width=8),
]  # fmt: skip


class Study:
    """The searches of one dataset and method."""

    def __init__(self, params: Params, dataset: str, method: str, folder: Path):
        self.params, self.dataset, self.method, self.folder = params, dataset, method, folder
        self.tested_file = folder / f"{dataset}-{method}-tested.json"
        self.tested: dict[str, Any] = _read(self.tested_file)

    def searched(self, seed: int) -> dict[str, Any]:
        """The trials and choice of one search, and its choice when every score is disturbed."""
        path = self.folder / f"{self.dataset}-{self.method}-{seed}.json"
        if not path.exists():
            search = self.params.search.model_copy(update={"seed": seed})
            bare = BareSearch(self.params.model_copy(update={"search": search}), self.dataset, self.method)
            trials, _ = bare.trials(is_race=True)
            known = dict(bare.known)
            bare.known = {key: _disturbed(scores, f"{seed} {key}") for key, scores in known.items()}
            disturbed = bare.trials(is_race=True)[0]
            write_json(path, {"trials": _slim(trials), "disturbed": _slim(disturbed), "published": bare.published,
                              "template": bare.settled.template})  # fmt: skip
        return _read(path)

    def choice(self, searched: dict[str, Any], trials: str = "trials") -> Trial:
        """The choice by the present rule."""
        chosen = choose(
            searched[trials], self.params.search.objective, searched["published"], open_dimensions(self.params)
        )
        assert chosen is not None
        return chosen

    def test(self, settings: list[TrialSettings], template: str) -> None:
        """Test figures of settings that have none yet, each for every sampling seed."""
        missing = [one for one in settings if trial_key(one) not in self.tested]
        for start in range(0, len(missing), 4):
            some = missing[start : start + 4]
            for one, result in zip(some, self._tested(some, template), strict=True):
                self.tested[trial_key(one)] = {"params": one, **result}
            write_json(self.tested_file, self.tested)

    def _tested(self, settings: list[TrialSettings], template: str) -> list[dict[str, Any]]:
        params, backbone = self.params, backbone_for(self.params)
        protocol, seeds, shots = PROTOCOLS[params.data.protocol], params.seeds, max(params.shots)
        sets = {seed: read_set(paths.few_shot(self.dataset, shots, seed), "train", protocol.trains_on, template)
                for seed in seeds}  # fmt: skip
        trainings = []
        for one in settings:
            for seed in seeds:
                resolved = resolve(params, self.dataset, self.method, seed, backbone.depth, one)
                trainings.append(Training(resolved.adapter, resolved.train, sets[seed]))
        adapters = [fitted.adapter for fitted in fit_together(backbone, trainings)]
        pool = paths.pool(self.dataset)
        manifest, parts = read_manifest(pool), {}
        for test in protocol.tests:
            labels = labels_of(manifest, test.classes)
            names = [manifest["class_names"][label] for label in labels]
            examples = [example for half in test.images for example in stream_examples(pool, "test", half)]
            models = [AdaptedCLIP(backbone, adapter, names, template) for adapter in adapters]
            parts[test.part] = score_each(models, examples, labels, labels_of(manifest, protocol.trains_on))
        results = []
        for row in range(len(settings)):
            mine = range(row * len(seeds), (row + 1) * len(seeds))
            runs = [{part: outcomes(each[at]) for part, each in parts.items()} for at in mine]
            accuracies = {part: mean(float(run[part].adapted.mean()) for run in runs) for part in parts}
            results.append({"accuracies": accuracies, "gain": paired_gains(runs)})
        return results

    def row(self, seed: int) -> dict[str, Any]:
        searched = self.searched(seed)
        settings = [trial["params"] for trial in furthest(searched["trials"])]
        candidates = len(settings)
        self.test(settings, searched["template"])
        chosen = self._figures(self.choice(searched)["params"])
        if chosen["low"] <= 0:  # then the best of all trials is asked for, of those that were ended early too
            settings = [trial["params"] for trial in searched["trials"]]
            self.test(settings, searched["template"])
        best = max(map(self._figures, settings), key=_mean)
        holds = chosen["low"] > 0 or not best["low"] > 0
        return {
            "dataset": self.dataset, "method": self.method, "seed": str(seed), "candidates": candidates,
            "chosen": chosen["score"], "gain": chosen["mean"], "low": chosen["low"], "best": best["score"],
            "best_low": best["low"], "holds": "yes" if holds else "no",
            "same": "yes" if self._is_same(searched) else "no",
        }  # fmt: skip

    def _is_same(self, searched: dict[str, Any]) -> bool:
        chosen, disturbed = (self.choice(searched, name)["params"] for name in ("trials", "disturbed"))
        return trial_key(chosen) == trial_key(disturbed)

    def _figures(self, settings: TrialSettings) -> dict[str, float]:
        tested = self.tested[trial_key(settings)]
        accuracies = tested["accuracies"]
        name = "harmonic_mean" if "harmonic_mean" in tested["gain"] else next(iter(accuracies))
        base, novel = accuracies.get("base", 0), accuracies.get("novel", 0)
        score = 2 * base * novel / (base + novel) if name == "harmonic_mean" else accuracies[name]
        return {"score": score, **tested["gain"][name]}


def _mean(figures: dict[str, float]) -> float:
    return figures["mean"]


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _slim(trials: list[Trial]) -> list[dict[str, Any]]:
    """Without the losses of every epoch."""
    return [{**trial, "scores": [{name: value for name, value in one.items() if name != "losses"}
                                 for one in trial["scores"]]} for trial in trials]  # fmt: skip


def _disturbed(scores: dict[str, Any], key: str) -> dict[str, Any]:
    """Each number of one partition's scores by up to DISTURBANCE more or less."""
    draw = random.Random(key)
    return {name: value + draw.uniform(-DISTURBANCE, DISTURBANCE) if isinstance(value, float) else value
            for name, value in scores.items()}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--datasets", default="digits,objects")
    parser.add_argument("--methods", default="mmrl,mmrlpp")
    parser.add_argument("--seeds", type=int, default=10, help="how many")
    parser.add_argument("--searches", action="store_true", help="search alone")
    parser.add_argument("--again", type=Path, help="another folder of the same searches")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    pairs = [(dataset, method) for dataset in options.datasets.split(",") for method in options.methods.split(",")]
    studies = [Study(load_params(), *pair, options.folder) for pair in pairs]
    if options.searches:
        for seed in range(options.seeds):
            for study in studies:
                study.searched(seed)
        return
    if options.again:
        compare(studies, options)
        return
    table = Table("the choice of every search on test images", COLUMNS)
    for study in studies:
        table.extend(study.row(seed) for seed in range(options.seeds))
    notes("best: by test images, of the settings that could be chosen; where low is not above 0, of all trials.",
          "same: the choice is the same with every score disturbed.")  # fmt: skip
    held = sum(row["holds"] == "yes" for row in table.rows)
    same = sum(row["same"] == "yes" for row in table.rows)
    notes(f"{held} of {len(table.rows)} choices hold, {same} are the same when every score is disturbed by 1e-5.")


def compare(studies: list[Study], options: argparse.Namespace) -> None:
    """How many choices are the same in both folders."""
    found = []
    for study in studies:
        other = Study(study.params, study.dataset, study.method, options.again)
        for seed in range(options.seeds):
            if (other.folder / f"{study.dataset}-{study.method}-{seed}.json").exists():
                mine, theirs = (trial_key(one.choice(one.searched(seed))["params"]) for one in (study, other))
                found.append(mine == theirs)
                print(f"{study.dataset} {study.method} {seed}: {'the same choice' if mine == theirs else 'another'}")
    print(f"{sum(found)} of {len(found)} choices are the same")


if __name__ == "__main__":
    main()
