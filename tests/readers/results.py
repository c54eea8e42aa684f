"""What stages write and others read: metrics, predictions, searches, outputs made ahead."""

import json
import shutil
from pathlib import Path

from flows.cli.trials_table import trials_of
from flows.project import paths
from flows.project.paths import RunKey
from flows.registry import versions
from flows.registry.descriptions import description
from flows.report.agreement import compare
from flows.report.kept import keep
from flows.report.material import gather
from flows.report.summary import named_runs, read_summary
from flows.report.tables import markdown, results_csv
from flows.settings.params import Params
from flows.stages.ahead.ready import ReadyOutput
from flows.stages.train import read_search
from flows.tuning import confirm
from flows.tuning import search as tuning
from flows.tuning.identity import Search, earlier, open_folder
from flows.tuning.ledger import Ledger, trial_key
from mmrl_core.files import write_json
from mmrl_core.method.adapter_card import CARD
from mmrl_core.search.comparison import compared
from tests.readers.damage import Reader, damaged_json, damaged_parquet, inside
from tests.readers.weights import ADAPTER
from tests.support.results import FACTS, SHA, results_of_two_datasets, write_model, write_run, write_search

PARAMS = Params(datasets=["digits"], methods=["mmrl"], shots=[16], seeds=[1, 2], search={"space": {}})
KEY, OTHER = RunKey("digits", "mmrl", 16, 1), RunKey("digits", "mmrl", 16, 2)


# Results, as the report, the registry and the stages read them.


def make_results() -> None:
    for key in (KEY, OTHER):
        as_zero_shot = {"base": 2, "novel": 2}  # no images are to be shown, and none are there
        write_run(key, as_zero_shot, without=as_zero_shot)
        write_model(key, [2.0, 1.0])
        metrics = json.loads((key.results() / "metrics.json").read_text())
        more = {
            "adapter_sha256": SHA,
            "protocol": "base-to-novel",
            "data_digest": SHA,
            "validation": {"base": {**FACTS, "accuracy": 0.5}},
        }
        write_json(key.results() / "metrics.json", metrics | more)
    write_search(KEY, {"adapter.reg_weight": 0.5, "adapter.insertion_depth": 3}, 1)


def read_results() -> None:
    """The figures of the report, without its pictures."""
    runs = named_runs(PARAMS)
    summary = read_summary(PARAMS, runs)
    markdown(summary["rows"] + summary["averages"])
    results_csv(summary["rows"])
    gather(PARAMS, runs)


MACHINE = {"processor": "x", "cores": 2, "capability": "AVX2", "gpu": None, "torch": "2", "date": "2026-01-01"}


def make_kept() -> None:
    write_json("kept.json", {**results_of_two_datasets(), "machine": MACHINE})
    write_json("summary.json", results_of_two_datasets())


def read_kept() -> None:
    """As the run in question and as what it is compared with."""
    for pair in (("kept.json", "summary.json"), ("summary.json", "kept.json")):
        compare(*map(Path, pair))
    markdown(keep(Path("kept.json"), Path("again.json"))["rows"])
    Path("again.json").unlink()


def read_searches() -> None:
    path = paths.search("digits", "mmrl")
    trials_of(path)
    read_search(KEY, ["a {}."])


def make_confirmable() -> None:
    make_results()
    path = paths.search("digits", "mmrl")
    search = json.loads(path.read_text())
    write_json(path, {**search, "seeds": [1], "shots": 16, "templates": {"a {}.": 0.5}, "pareto_front": [1]})


def make_registrable() -> None:
    """The adapter of a run, and what its evaluation says."""
    shutil.copytree(ADAPTER, KEY.model)
    sha256 = json.loads((ADAPTER / CARD).read_text())["sha256"]
    scores = {"base": {"accuracy": 0.5, "ece": 0.1}}
    write_json(KEY.results() / "metrics.json", {
        "adapter_sha256": sha256, "protocol": "base-to-novel", "preset": "published", "data_digest": SHA,
        "parts": ["base"], **scores, "harmonic_mean": 0.5, "validation": {"base": {"accuracy": 0.5, "nll": 1.0}},
        "zero_shot": scores, "gain": {"harmonic_mean": {"mean": 0.0, "low": 0.0, "high": 0.0}},
    })  # fmt: skip


def read_registrable() -> None:
    key = versions.candidate(PARAMS.model_copy(update={"seeds": [1]}), "digits")
    versions.facts(key, None)
    description(key, versions._metrics(key))


# A search's state.

POINT = {"adapter.reg_weight": 0.5}
SCORES = {"log_likelihood": -0.5, "harmonic_mean": 0.9, "losses": [1.0, 0.5]}
TRIALS = Path(f"trials/{trial_key(POINT)}.json")


def make_ledger() -> None:
    ledger = Ledger("trials")
    ledger.open(POINT)
    ledger.add(POINT, 0, SCORES, 1.0)
    ledger.add(POINT, 1, SCORES, 1.0)
    ledger.end(POINT, "complete")


def read_ledger() -> None:
    ledger = Ledger("trials")
    for record in ledger.all():
        compared(record)
    ledger.unfinished([POINT])


def search_in_folder() -> Search:
    return Search(PARAMS, "digits", "mmrl", {}, {"dataset": "digits", "method": "mmrl"}, Path("search"))


def make_done() -> None:
    trial = {**SCORES, "log_likelihood_se": 0.1, "harmonic_mean_se": 0.1, "params": POINT, "state": "complete",
             "scores": [SCORES]}  # fmt: skip
    del trial["losses"]
    write_json("search/done.json", {"search": PARAMS.search.model_dump(), "templates": {"a {}.": 0.5}, "choice": POINT,
                                    "template": "a {}.", "trials": [trial], "chosen": 0})  # fmt: skip


def read_done() -> None:
    done = tuning._done(search_in_folder())
    if done and done["trials"]:
        done["trials"][done["chosen"]]["log_likelihood"]


def read_points() -> None:
    for point in tuning._first_points(search_in_folder(), {}):
        trial_key(dict(point))


def make_facts() -> None:
    open_folder({"dataset": "digits", "method": "mmrl", "search": {"space": {"x": 1}}})
    shutil.copy(next(Path().glob(".mmrl/searches/*/*/*/search.json")), "facts.json")


def read_facts() -> None:
    [known] = Path().glob(".mmrl/searches/*/mmrl/*/search.json")
    shutil.copy("facts.json", known)
    facts = {"dataset": "digits", "method": "mmrl", "search": {"space": {"x": 2}}}
    folder, _ = open_folder(facts)
    earlier(facts)
    shutil.rmtree(folder)


READY = ReadyOutput(Path("models/x"), "identity")


def make_ready() -> None:
    Path("made").mkdir()
    Path("made/file").write_text("x")
    READY.keep(Path("made"), {"trainable": 1})
    shutil.copy(READY.folder / "ready.json", "ready.json")


def read_ready() -> None:
    READY.keep(Path("made"), {"trainable": 1})
    shutil.copy("ready.json", READY.folder / "ready.json")
    summary = READY.take(Path("out"))
    assert summary is None or dict(summary) == summary
    shutil.rmtree("out", ignore_errors=True)


METRICS = f"{KEY.results()}/metrics.json"
SEARCH = str(paths.search("digits", "mmrl"))

READERS = [
    Reader("metrics.json in the report", inside(make_results), METRICS, damaged_json, inside(read_results)),
    Reader("metrics.json to be registered", inside(make_registrable), METRICS, damaged_json, inside(read_registrable)),
    Reader(
        "adapter.json to be registered",
        inside(make_registrable),
        f"{KEY.model}/adapter.json",
        damaged_json,
        inside(read_registrable),
    ),
    Reader(
        "adapter.json in the report",
        inside(make_results),
        f"{KEY.model}/adapter.json",
        damaged_json,
        inside(read_results),
    ),
    Reader(
        "predictions.parquet",
        inside(make_results),
        f"{KEY.results()}/predictions.parquet",
        damaged_parquet,
        inside(read_results),
    ),
    Reader("a search in the report", inside(make_results), SEARCH, damaged_json, inside(read_results)),
    Reader("a search to train by", inside(make_results), SEARCH, damaged_json, inside(read_searches)),
    Reader(
        "a search to confirm",
        inside(make_confirmable),
        SEARCH,
        damaged_json,
        inside(lambda: confirm._read_search("digits", "mmrl", [3])),
    ),
    Reader("a trial of a search", inside(make_ledger), str(TRIALS), damaged_json, inside(read_ledger)),
    Reader("a search that is through", inside(make_done), "search/done.json", damaged_json, inside(read_done)),
    Reader(
        "first points of a search",
        inside(lambda: write_json("search/points.json", {"points": [POINT]})),
        "search/points.json",
        damaged_json,
        inside(read_points),
    ),
    Reader("facts of a search", inside(make_facts), "facts.json", damaged_json, inside(read_facts)),
    Reader("results to compare with", inside(make_kept), "kept.json", damaged_json, inside(read_kept)),
    Reader("an output made ahead", inside(make_ready), "ready.json", damaged_json, inside(read_ready)),
]
