"""The summary and the page, from results of which the answer is known."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from flows import paths
from flows.paths import RunKey
from flows.summary import read_rows, read_searches
from mmrl_core.config import Params
from mmrl_core.errors import UserError
from mmrl_core.files import write_json
from mmrl_core.report import error_ratio, markdown, page

HALF = {"n": 4, "ece": 0.05, "nll": 0.3}
TRIAL = {"log_likelihood": -0.5, "log_likelihood_se": 0.1, "harmonic_mean": 0.9, "harmonic_mean_se": 0.02}


def write_run(key: RunKey, base_right: int, novel_right: int) -> None:
    """Of 4 base and 4 novel images zero-shot gets the first 2 of each right; the novel ECE is 2% a seed."""
    folder = key.results()
    folder.mkdir(parents=True)
    rows = [
        {"item": f"{half}/{i}.png", "half": half, "label": 0, "prediction": int(i >= right),
         "zero_shot_prediction": int(i >= 2)}
        for half, right in (("base", base_right), ("novel", novel_right)) for i in range(4)
    ]  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "predictions.parquet")
    b, n = base_right / 4, novel_right / 4
    novel = {**HALF, "accuracy": n, "ece": 0.02 * key.seed}
    halves = {"base": {**HALF, "accuracy": b}, "novel": novel, "harmonic_mean": 2 * b * n / (b + n)}
    half = {**HALF, "accuracy": 0.5, "ece": 0.11}
    zero_shot = {"base": half, "novel": half, "harmonic_mean": 0.5}
    write_json(folder / "metrics.json", {**key._asdict(), **halves, "zero_shot": zero_shot})


@pytest.fixture
def keys(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keys = [RunKey("digits", "mmrl", 16, seed) for seed in (1, 2)]
    write_run(keys[0], 4, 2)
    write_run(keys[1], 3, 2)
    return keys


def write_search(published: dict, chosen: int) -> None:
    params = ({"adapter.reg_weight": 0.5}, {"adapter.reg_weight": 3.25})
    trials = [{**TRIAL, "params": one, "scores": [TRIAL] * count} for one, count in zip(params, (1, 2), strict=True)]
    path = paths.search("digits", "mmrl")
    path.parent.mkdir(parents=True)
    found = {"trials": trials, "chosen": chosen, "choice": params[chosen], "published": published, "template": "a {}."}
    write_json(path, found)


def test_rows_hold_means_gains_and_the_share_of_zero_shots_base_error(keys):
    zero_shot, row = read_rows(keys)
    assert (zero_shot["method"], row["method"], row["seeds"]) == ("zero_shot", "mmrl", [1, 2])
    assert row["base"] == {"mean": 0.875, "std": pytest.approx(0.1768, abs=1e-4)}
    assert row["harmonic_mean_std"] == pytest.approx((2 / 3 - 0.6) / 2**0.5)
    assert row["base_error_ratio"] == pytest.approx(0.25)
    assert row["gain"]["base"]["mean"] == pytest.approx(0.375)
    assert row["gain"]["harmonic_mean"]["mean"] == pytest.approx(row["harmonic_mean"] - zero_shot["harmonic_mean"])
    assert row["gain"]["novel"] == {"mean": 0, "low": 0, "high": 0}
    assert row["ece"] == pytest.approx({"base": 0.05, "novel": 0.03})
    assert zero_shot["ece"]["base"] == pytest.approx(0.11)


def test_tables_show_the_gain_with_its_interval_and_both_calibrations(keys):
    rows = read_rows(keys)
    zero_shot, adapted = markdown(rows).splitlines()[2:]
    gain = rows[1]["gain"]["harmonic_mean"]
    interval = f"{100 * gain['mean']:+.1f} [{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]"
    assert interval in adapted and interval in page(rows, [], [])
    assert adapted.endswith("| 5.0 / 3.0 |") and zero_shot.endswith("|  | 11.0 / 11.0 |")
    assert "What the search chose" not in page(rows, [], [])


def test_the_page_shows_the_choice_beside_the_published_setting_and_where_that_was_stopped(keys):
    write_search({"adapter.reg_weight": 0.5}, chosen=1)
    params = Params(datasets=["digits"], methods=["mmrl"], shots=[16], seeds=[1, 2])
    (found,) = read_searches(params)
    assert (found["choice"]["partitions"], found["published"]["partitions"], found["template"]) == (2, 1, "a {}.")
    shown = page(read_rows(keys), [found], ["a <note>"])
    assert "reg_weight 3.25" in shown and "-0.500 ± 0.100, stopped after 1" in shown and "90.0 ± 2.0" in shown
    assert "a &lt;note&gt;" in shown


def test_a_published_setting_outside_the_space_is_not_shown(keys):
    write_search({"adapter.reg_weight": 7}, chosen=1)
    params = Params(datasets=["digits"], methods=["mmrl"], shots=[16], seeds=[1, 2])
    (found,) = read_searches(params)
    assert found["published"] is None
    assert ">published<" not in page(read_rows(keys), [found], [])


def test_no_error_leaves_no_share():
    assert error_ratio(0.9, 1.0) is None


@pytest.mark.parametrize(("damage", "message"), [
    (lambda path: path.unlink(), "is not there; run `mmrl evaluate` again"),
    (lambda path: path.write_bytes(b"PAR1"), "cannot be read; run `mmrl evaluate` again"),
    (lambda path: pyarrow.parquet.write_table(pyarrow.table({"x": [1]}), path), "cannot be read"),
    (lambda path: pyarrow.parquet.write_table(pyarrow.parquet.read_table(path).slice(0, 4), path), "no novel image"),
])  # fmt: skip
def test_missing_or_foreign_predictions_are_named(keys, damage, message):
    path = keys[1].results() / "predictions.parquet"
    damage(path)
    with pytest.raises(UserError, match=message):
        read_rows(keys)


def test_reading_results_takes_no_torch(keys):
    import subprocess
    import sys

    code = "import flows.summary, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert json.dumps(read_rows(keys)) == json.dumps(read_rows(keys))
