"""What evaluations found, in MLflow: metrics and descriptions of the runs of trainings, lines about champions."""

import pytest

from flows.project.paths import RunKey
from flows.registry.descriptions import description, in_words, is_due
from flows.registry.results import NOTE, figures, log_results
from flows.settings.params import load_params
from flows.tracking.store import connect, store_uri
from mmrl_core.files import read_json, write_json

METRICS = {
    "parts": ["base", "novel"], "protocol": "base-to-novel", "preset": "custom",
    "base": {"accuracy": 0.9, "n": 10, "ece": 0.1}, "novel": {"accuracy": 0.6, "n": 5}, "harmonic_mean": 0.72,
    "zero_shot": {"base": {"accuracy": 0.8}, "novel": {"accuracy": 0.6}, "harmonic_mean": 0.6857},
    "gain": {"harmonic_mean": {"mean": 0.034, "low": -0.01, "high": 0.08}},
    "validation": {"base": {"accuracy": 0.95, "nll": 0.2, "n": 7}},
}  # fmt: skip
ONE_PART = {"parts": ["all"], "all": {"accuracy": 0.5}, "gain": {"all": {"mean": 0.1, "low": 0.0, "high": 0.2}}}
KEY = RunKey("digits", "mmrlpp", 1, 3)


def test_figures_have_short_names_and_no_counts():
    assert figures(METRICS) == {
        "test/base_accuracy": 0.9, "test/base_ece": 0.1, "test/novel_accuracy": 0.6, "test/harmonic_mean": 0.72,
        "test/gain": 0.034, "test/gain_low": -0.01, "test/gain_high": 0.08,
        "validation/accuracy": 0.95, "validation/nll": 0.2,
    }  # fmt: skip
    assert figures(ONE_PART, "letters") == {
        "test/letters/accuracy": 0.5, "test/letters/gain": 0.1, "test/letters/gain_low": 0.0,
        "test/letters/gain_high": 0.2,
    }  # fmt: skip


def test_a_description_says_what_it_is_with_its_figures():
    assert description(KEY, METRICS).splitlines() == [
        "**MMRL++**, adapted to `digits` by 1 labelled image a class, seed 3; protocol base-to-novel, preset custom.",
        "",
        "| accuracy on test images, % | base | novel | harmonic mean |",
        "| --- | ---: | ---: | ---: |",
        "| this adapter | 90.0 | 60.0 | 72.0 |",
        "| zero-shot CLIP | 80.0 | 60.0 | 68.6 |",
        "",
        "Gain over zero-shot [95%]: +3.4 [-1.0, +8.0]",
    ]


def test_a_description_follows_its_figures_and_what_a_person_wrote_stays():
    text = description(KEY, METRICS)
    assert is_due(text, None) and is_due(text, "") and not is_due(text, text)
    assert is_due(text, text.replace("90.0", "89.5")) and not is_due(text, f"{text} Our favourite.")


def test_a_champion_is_told_by_its_tags():
    tags = {"method": "mmrl", "shots": "16", "seed": "2", "base_accuracy": "0.976", "harmonic_mean": "0.9766",
            "novel_accuracy": "0.977"}  # fmt: skip
    assert in_words(tags) == "MMRL, 16 shots, seed 2: base 97.6, novel 97.7, harmonic mean 97.7"
    assert in_words({"method": "new", "shots": "1", "seed": "2", "all_accuracy": "n/a"}) == (
        "new, 1 shot, seed 2: accuracy n/a"
    )


def runs() -> list:
    client = connect(store_uri(load_params()))
    return client.search_runs([client.get_experiment_by_name("digits").experiment_id], "tags.stage = 'train'")


def test_the_run_of_a_training_can_be_sorted_by_what_its_evaluation_found(project):
    params, [run] = load_params(), runs()  # which `mmrl summarize` wrote to
    key = RunKey("digits", "mmrl", 2, 1)
    file = key.results() / "metrics.json"
    metrics = read_json(file, made_by="mmrl evaluate")
    assert run.data.metrics.items() >= figures(metrics).items() and "test/harmonic_mean" in run.data.metrics
    assert run.data.tags[NOTE] == description(key, metrics)
    log_results(params)
    write_json(file, metrics | {"harmonic_mean": 0.5})
    log_results(params)
    client = connect(store_uri(params))
    values = {name: [one.value for one in client.get_metric_history(run.info.run_id, name)]
              for name in ("test/harmonic_mean", "test/base_accuracy")}  # fmt: skip
    assert values == {"test/harmonic_mean": [metrics["harmonic_mean"], 0.5],
                      "test/base_accuracy": [metrics["base"]["accuracy"]]}  # fmt: skip
    assert "| 50.0 |" in client.get_run(run.info.run_id).data.tags[NOTE]


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:///elsewhere.db"])
def test_a_store_that_is_away_fails_no_summary(project, monkeypatch, mmrl, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert "| digits |" in mmrl("summarize")
    warned = "warning: MLflow lacks results of runs for now, `mmrl summarize` sends them once it answers; "
    assert mmrl.error.startswith(warned) if uri.startswith("http") else mmrl.error == ""
    assert not (project / "elsewhere.db").exists()
