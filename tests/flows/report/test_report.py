"""The summary and the page, from results of which the answer is known."""

import csv
import json
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib
import pyarrow
import pyarrow.parquet
import pytest

from flows.project.paths import RunKey
from flows.report.material import _settings, gather
from flows.report.page import _differences
from flows.report.summary import _results_md, named_runs, read_rows, read_summary, summarize
from flows.report.tables import MORE, averages, error_ratio, interval, markdown, more_table, results_csv, title
from flows.settings.params import Params
from mmrl_core.data.catalog import open_source
from mmrl_core.errors import UserError
from tests.support.results import write_digits_pool, write_model, write_run, write_search

RUNS = [(RunKey("digits", "mmrl", 16, seed), None) for seed in (1, 2)]
MATRIX = {"datasets": ["digits"], "methods": ["mmrl"], "shots": [16], "seeds": [1, 2]}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_runs() -> list:
    write_run(RUNS[0][0], {"base": 4, "novel": 2})
    write_run(RUNS[1][0], {"base": 3, "novel": 2})
    return RUNS


def rewrite(path: Path, change) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.fixture
def runs(folder):
    return write_runs()


def test_rows_hold_means_gains_and_the_share_of_zero_shots_error(runs):
    zero_shot, row = read_rows(runs)
    assert (zero_shot["method"], row["method"], row["seeds"]) == ("zero_shot", "mmrl", [1, 2])
    assert row["accuracy"]["base"] == {"mean": 0.875, "std": pytest.approx(0.1768, abs=1e-4), "values": [1.0, 0.75]}
    assert row["harmonic_mean"] == pytest.approx(2 * 0.875 * 0.5 / 1.375)
    assert row["harmonic_mean_std"] == pytest.approx((2 / 3 - 0.6) / 2**0.5)
    assert row["error_ratio"] == pytest.approx({"base": 0.25, "novel": 1.0})
    assert row["gain"]["base"]["mean"] == pytest.approx(0.375)
    assert row["gain"]["harmonic_mean"]["mean"] == pytest.approx(row["harmonic_mean"] - zero_shot["harmonic_mean"])
    assert row["gain"]["novel"] == {"mean": 0, "low": 0, "high": 0}
    assert row["ece"] == pytest.approx({"base": 0.03, "novel": 0.03})
    assert zero_shot["ece"]["base"] == pytest.approx(0.11)


def test_a_protocol_of_one_part_has_no_harmonic_mean(folder):
    write_run(RUNS[0][0], {"all": 3})
    zero_shot, row = read_rows(RUNS[:1])
    assert row["accuracy"]["all"]["mean"] == 0.75 and "harmonic_mean" not in row and "harmonic_mean" not in row["gain"]
    assert markdown([zero_shot, row]).splitlines()[-1] == "| digits | 16 | MMRL | 75.0 | +25.0 [+0.0, +75.0] | 2.0 |"


def test_tables_show_the_gain_with_its_interval_and_both_calibrations(runs):
    rows = read_rows(runs)
    zero_shot, adapted = markdown(rows).splitlines()[2:]
    gain = rows[1]["gain"]["harmonic_mean"]
    interval = f"{100 * gain['mean']:+.1f} [{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]"
    assert interval in adapted and "[" not in zero_shot
    assert adapted.endswith("| 3.0 / 3.0 |") and "±" in adapted and "±" not in zero_shot


def test_an_average_is_over_datasets_and_its_harmonic_mean_is_that_of_the_averages(folder):
    other = [(RunKey("objects", "mmrl", 16, seed), None) for seed in (1, 2)]
    for (key, _), right in zip([*RUNS, *other], ((4, 2), (3, 2), (2, 4), (1, 4)), strict=True):
        write_run(key, dict(zip(("base", "novel"), right, strict=True)))
    rows = read_rows([*RUNS, *other])
    zero_shot, adapted = averages(rows)
    assert (zero_shot["method"], adapted["method"], adapted["datasets"]) == ("zero_shot", "mmrl", 2)
    base, novel = (0.875 + 0.375) / 2, (0.5 + 1.0) / 2
    assert adapted["accuracy"]["base"]["mean"] == base and adapted["accuracy"]["novel"]["mean"] == novel
    assert adapted["accuracy"]["base"]["values"] == [0.75, 0.5]  # a seed, over both
    assert adapted["harmonic_mean"] == pytest.approx(2 * base * novel / (base + novel))
    assert averages(rows[:2]) == []


def test_with_targets_the_average_leaves_the_source_out(folder):
    targets = ("letters", "objects")
    runs = [(RUNS[0][0], target) for target in (None, *targets)]
    for (key, target), right in zip(runs, (4, 3, 1), strict=True):
        write_run(key, {"all": right}, target)
    rows = read_rows(runs)
    assert [title(row) for row in rows[1::2]] == ["digits", "digits to letters", "digits to objects"]
    assert averages(rows)[1]["accuracy"]["all"]["mean"] == pytest.approx(0.5)


def test_published_figures_are_kept_apart_and_only_for_their_protocol(runs):
    write_search(RUNS[0][0], {}, 1)
    found = read_summary(Params(**MATRIX), runs)
    assert found["published"]["published"] is True and "not measured here" in found["published"]["source"]
    assert {row["method"] for row in found["rows"]} == {"zero_shot", "mmrl"}
    mmrl = next(row for row in found["published"]["rows"] if row["method"] == "MMRL")
    assert mmrl == {"method": "MMRL", "base": 85.68, "novel": 77.16, "harmonic_mean": 81.20}
    assert read_summary(Params(**MATRIX, data={"protocol": "joint"}), runs)["published"] is None


def test_a_csv_line_a_row_and_part(runs):
    lines = list(csv.DictReader(results_csv(read_rows(runs)).splitlines()))
    assert [(line["method"], line["part"]) for line in lines[3:]] == [
        ("mmrl", "base"), ("mmrl", "novel"), ("mmrl", "harmonic_mean")]  # fmt: skip
    assert float(lines[3]["mean"]) == 0.875 and float(lines[3]["gain"]) == pytest.approx(0.375) and not lines[0]["gain"]


def test_more_metrics_have_a_table_of_their_own_and_columns_of_the_csv(folder):
    for dataset, key in (("digits", RUNS[0][0]), ("objects", RunKey("objects", "mmrl", 16, 1))):
        write_run(key, {"base": 4, "novel": 2})
        if dataset == "objects":
            rewrite(key.results() / "metrics.json", lambda one: one["novel"].pop("top5_accuracy"))
    rows = read_rows([RUNS[0], (key, None)])
    rows += averages(rows)
    names, lines = more_table(rows)
    assert names[3:] == [f"{name} base / novel" for name in ("macro F1", "balanced accuracy", "top-5", "AUROC")]
    figures = ["40.0 / 40.0", "45.0 / 45.0", "95.0 / 95.0", "90.0 / 90.0"]
    few = [*figures[:2], "95.0 / –", figures[3]]
    assert [line[3:] for line in lines] == [figures, figures, figures, few, figures, few]
    found = list(csv.DictReader(results_csv(rows).splitlines()))
    assert (found[3]["macro_f1"], found[3]["auroc"], found[5]["auroc"]) == ("0.4", "0.9", "")


def test_results_of_an_earlier_version_are_read_without_more_metrics(runs):
    for key, _ in runs:
        rewrite(key.results() / "metrics.json", without_more)
    rows = read_rows(runs)
    assert more_table(rows)[1] == [] and rows[1]["auroc"] == {}
    assert list(csv.DictReader(results_csv(rows).splitlines()))[3]["auroc"] == ""


def without_more(metrics: dict) -> None:
    for scores in (metrics, metrics["zero_shot"]):
        for part in metrics["parts"]:
            for name in MORE:
                del scores[part][name]


def test_methods_are_compared_beneath_the_results_and_in_the_summary(runs):
    probe = [(key._replace(method="linear_probe"), None) for key, _ in runs]
    for (key, _), right in zip(probe, (2, 4), strict=True):
        write_run(key, {"base": right, "novel": 2})
    write_search(RUNS[0][0], {}, 1)
    assert read_summary(Params(**MATRIX), runs)["comparisons"] == []
    summary = read_summary(Params(**MATRIX), [*runs, *probe])
    against_mmrl, against_probe = summary["comparisons"]
    assert [against_probe[name] for name in ("method", "against", "seeds")] == ["mmrl", "linear_probe", [1, 2]]
    assert against_probe["difference"]["base"]["mean"] == pytest.approx(0.875 - 0.75)
    lines = [
        "| dataset | shots | method | base against linear probe [95%] | harmonic mean against MMRL [95%] |",
        "| --- | --- | --- | ---: | ---: |",
        f"| digits | 16 | linear probe |  | {interval(against_mmrl['difference']['harmonic_mean'])} |",
        f"| digits | 16 | MMRL | {interval(against_probe['difference']['base'])} |  |",
    ]
    assert _results_md(summary).endswith("\n\nPaired differences:\n\n" + "\n".join(lines) + "\n")
    assert "<h2>Methods against each other</h2>" in _differences(summary)


@pytest.fixture(scope="module")
def digits_pool(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_digits_pool(open_source("digits", ""))
    return folder


@pytest.fixture
def whole(folder, digits_pool):
    shutil.copytree(digits_pool, folder, dirs_exist_ok=True)
    write_runs()
    write_search(RUNS[0][0], {"adapter.reg_weight": 0.5, "adapter.insertion_depth": 3}, 1)
    for key, _ in RUNS:
        write_model(key, [2.0, 1.0])
    (folder / "results/old-to-old/mmrl-1shot/seed9").mkdir(parents=True)
    return Params(**MATRIX)


def test_the_folder_of_reports_is_whole_and_the_same_every_time(whole):
    for name in ("one", "two"):
        summarize(whole, Path(name))
    names = sorted(path.name for path in Path("one").iterdir())
    assert names == ["confusion.csv", "few_shot_curve.csv", "learning_curves.csv", "report.html", "results.csv",
                     "results.md", "summary.json"]  # fmt: skip
    for name in names:
        assert (Path("one") / name).read_bytes() == (Path("two") / name).read_bytes()
    curves = list(csv.DictReader(Path("one/learning_curves.csv").read_text().splitlines()))
    assert len(curves) == 4 and curves[1] == {"runs": "digits, 16 shots", "method": "mmrl", "seed": "1", "epoch": "2",
                                              "loss": "1.0", "val_nll": "", "val_accuracy": ""}  # fmt: skip
    assert Path("one/few_shot_curve.csv").read_text() == "dataset,method,shots,mean,std\n"
    confused = list(csv.DictReader(Path("one/confusion.csv").read_text().splitlines()))
    assert [(one["actual"], one["predicted"]) for one in confused].count(("zero", "zero")) == 4 + 2 + 3 + 2


def test_the_page_shows_every_section_and_needs_no_network(whole):
    summarize(whole, Path("reports"))
    page = Path("reports/report.html").read_text()
    for words in ("Gains over zero-shot", "Learning curves", "What the search chose", "Class by class", "Published",
                  "Right with the adapter, wrong zero-shot", "Settings, versions, digests", "0123456789abcdef",
                  "params.yaml does not name it: results/old-to-old", "stopped after 1"):  # fmt: skip
        assert words in page
    assert "Few-shot curve" not in page and "Methods against each other" not in page
    addresses = set(re.findall(r"https?://[\w./]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names, not addresses
    loaded = re.findall(r"<(?:script|link|iframe)[^>]*|@import|src=\"(?!data:)", page)
    assert loaded == ['<script src="champion.js"'] and "`mmrl flow adapt` writes that" in page  # where it is not there
    assert page.count("<img") == 2 and page.count("data:image/png") >= 2  # the two base images that seed 1 won


def test_every_section_of_figures_names_its_files(whole):
    summarize(whole, Path("reports"))
    page = Path("reports/report.html").read_text()
    for part in page.split("<h2>")[1:]:
        assert re.search(r"From [^<]*(results|reports|models)/", part), part[:80]


def test_names_from_files_cannot_write_html(whole):
    path = RUNS[0][0].results() / "metrics.json"
    document = json.loads(path.read_text())
    document["class_names"]["0"] = "<b onload=x>"
    path.write_text(json.dumps(document))
    summarize(whole, Path("reports"))
    assert "<b onload" not in Path("reports/report.html").read_text()


def test_names_are_no_formulas_and_need_no_font_of_matplotlibs(whole):
    for key, _ in RUNS:
        rewrite(key.results() / "metrics.json", lambda one: one["class_names"].update({"0": r"$\nope$", "1": "猫 $5"}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summarize(whole, Path("reports"))
    page = Path("reports/report.html").read_text()
    assert page.count(r">$\nope$</text>") == page.count(">猫 $5</text>") + 1 == 3  # both axes, and the one gain


def test_classes_that_share_a_name_are_told_apart_by_their_labels(whole):
    for key, _ in RUNS:
        rewrite(key.results() / "metrics.json", lambda one: one["class_names"].update({"0": "missile", "1": "missile"}))
    summarize(whole, Path("reports"))
    confused = Path("reports/confusion.csv").read_text()
    assert "missile (label 0),missile (label 1)" in confused and ",missile\n" not in confused
    assert "missile (label 0); adapter: missile (label 0)" in Path("reports/report.html").read_text()


def test_the_users_settings_of_matplotlib_change_nothing(whole):
    summarize(whole, Path("one"))
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red"}):
        summarize(whole, Path("two"))
    assert Path("one/report.html").read_bytes() == Path("two/report.html").read_bytes()


def test_a_class_without_images_can_still_be_predicted(whole):
    summarize(whole, Path("reports"))
    assert len(Path("reports/confusion.csv").read_text().splitlines()) == 1 + 16  # 8 images, 2 seeds


def test_adapters_without_history_and_with_fewer_epochs(whole):
    rewrite(RUNS[0][0].model / "adapter.json", lambda card: card["history"].append({"loss": 0.5}))
    summarize(whole, Path("ragged"))
    assert len(Path("ragged/learning_curves.csv").read_text().splitlines()) == 1 + 3 + 2
    for key, _ in RUNS:
        rewrite(key.model / "adapter.json", lambda card: card.pop("history"))
    summarize(whole, Path("none"))
    assert "Learning curves" not in Path("none/report.html").read_text()


def test_images_that_are_gone_are_named(whole):
    shard = Path("data/digits/pool/test-base-000000.tar")
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(UserError, match="cannot read the shard data/digits/pool/test-base-000000.tar"):
        summarize(whole, Path("reports"))
    shard.write_bytes(content)
    for key, _ in RUNS:
        path = key.results() / "predictions.parquet"
        table = pyarrow.parquet.read_table(path)
        items = pyarrow.array([f"gone/{item}" for item in table["item"].to_pylist()])
        pyarrow.parquet.write_table(table.set_column(0, "item", items), path)
    with pytest.raises(UserError, match="data/digits/pool has no image gone/"):
        summarize(whole, Path("reports"))


def test_a_baseline_has_a_row_and_settings_with_what_was_chosen_and_no_exhibit(whole):
    keys = [RunKey("digits", "tip_adapter", 16, seed) for seed in (1, 2)]
    head = {"kind": "cache", "adapter_weight": 1.0, "head_weight": 2.0, "images": 4, "sharpness": 5.5, "rows": [16]}
    for key in keys:
        write_run(key, {"base": 3, "novel": 2})
        write_model(key, [])
        rewrite(key.model / "adapter.json", lambda card: (card.pop("history"), card.update(head=head)))
    scales = {"trained": 1.25, "other": 1.0, "images": 4}
    rewrite(keys[1].model / "adapter.json", lambda card: card.update(calibration=scales))
    summarize(Params(**MATRIX, baselines=["tip_adapter"]), Path("reports"))
    rows = json.loads(Path("reports/summary.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["zero_shot", "tip_adapter", "mmrl"]
    page = Path("reports/report.html").read_text()
    assert "<summary>digits, Tip-Adapter, 16 shots</summary>" in page and "<h3>digits, Tip-Adapter" not in page
    values = {name: (value, source) for name, value, source in _settings(keys, []).values}
    assert values["head sharpness"] == ("5.5, 5.5", "validation, by seed")
    assert values["calibration trained"] == ("none, 1.25", "validation, by seed")
    assert values["template"] == ("a {}.", "validation") and "head rows" not in values


def test_answers_class_by_class_are_those_with_the_probe(whole):
    path = RUNS[1][0].results() / "metrics.json"
    rewrite(path, lambda one: one.update(without_probe={part: one[part] for part in one["parts"]}))
    summarize(whole, Path("reports"))
    assert "<h3>digits, MMRL + probe, 16 shots</h3>" in Path("reports/report.html").read_text()


def test_settings_tell_what_a_target_was_met_with(whole):
    write_run(RUNS[0][0], {"all": 4}, "letters")
    rewrite(RUNS[0][0].results("letters") / "metrics.json", lambda one: one.update(beta=0.3))
    found = _settings([RUNS[0][0]], ["letters"])
    assert ("beta on letters", 0.3, "results/digits-to-letters/mmrl-16shot/seed1/metrics.json") in found.values


def test_several_shots_make_a_curve(folder, digits_pool):
    shutil.copytree(digits_pool, folder, dirs_exist_ok=True)
    keys = [RunKey("digits", "mmrl", shots, 1) for shots in (1, 4)]
    for key, right in zip(keys, (2, 3), strict=True):
        write_run(key, {"all": right})
        write_model(key, [1.0])
    write_search(keys[0], {}, 1)
    summarize(Params(**{**MATRIX, "shots": [1, 4], "seeds": [1]}, data={"protocol": "few-shot"}), Path("reports"))
    assert "Few-shot curve" in Path("reports/report.html").read_text()
    assert Path("reports/few_shot_curve.csv").read_text().splitlines()[-1] == "digits,mmrl,4,0.75,0.0"


def test_every_run_of_the_matrix_is_named_on_its_data_set_and_on_every_target():
    changes = {"targets": ["letters"], "data": {"protocol": "cross-dataset"}}
    found = named_runs(Params(**{**MATRIX, "seeds": [1]}, **changes))
    assert found == [(RUNS[0][0], None), (RUNS[0][0], "letters")]


def test_classes_are_of_the_part_that_their_images_are_in_base_ones_first(whole):
    for key, _ in RUNS:  # of the novel part's images one is of class 1, which stands before 2 of the base part
        path = key.results() / "predictions.parquet"
        rows = pyarrow.parquet.read_table(path).to_pylist()
        changed = [{**row, "label": 2 if row["part"] == "base" else 1, "prediction": 2} for row in rows]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(changed), path)
    [exhibit] = gather(whole, RUNS).exhibits
    assert (exhibit.classes, exhibit.kinds) == (["two", "one"], ["base", "novel"])
    assert exhibit.matrix.tolist() == [[8, 0], [8, 0]]
    assert {one.name: one.kind for one in exhibit.gains} == {"two": "base", "one": "novel"}


def test_rows_of_results_are_in_the_order_of_the_methods(folder):
    keys = [RunKey("digits", method, 16, 1) for method in ("tip_adapter", "mmrlpp", "linear_probe", "mmrl")]
    for key in keys:
        write_run(key, {"all": 3})
    assert [row["method"] for row in read_rows([(key, None) for key in keys])] == [
        "zero_shot", "linear_probe", "tip_adapter", "mmrl", "mmrlpp"]  # fmt: skip


def test_validation_curves_stand_beside_the_loss_also_where_early_epochs_have_none(whole):
    history = [{"loss": 2.0}, {"loss": 1.0, "val_nll": 0.5, "val_accuracy": 0.75}]
    rewrite(RUNS[0][0].model / "adapter.json", lambda card: card.update(history=history))
    summarize(whole, Path("reports"))
    page = Path("reports/report.html").read_text()
    assert ">validation: negative log-likelihood<" in page and ">validation: accuracy<" in page
    lines = Path("reports/learning_curves.csv").read_text().splitlines()
    assert lines[:3] == ["runs,method,seed,epoch,loss,val_nll,val_accuracy", '"digits, 16 shots",mmrl,1,1,2.0,,',
                         '"digits, 16 shots",mmrl,1,2,1.0,0.5,0.75']  # fmt: skip


def test_no_error_leaves_no_share():
    assert error_ratio(0.9, 1.0) is None


@pytest.mark.parametrize(("damage", "message"), [
    (lambda path: path.unlink(),
     "is not there; run `mmrl evaluate --dataset digits --method mmrl --shots 16 --seed 2` again"),
    (lambda path: path.write_bytes(b"PAR1"), "cannot be read; run `mmrl evaluate --dataset digits"),
    (lambda path: pyarrow.parquet.write_table(pyarrow.table({"x": [1]}), path), "cannot be read"),
    (lambda path: pyarrow.parquet.write_table(pyarrow.parquet.read_table(path).slice(0, 0), path), "has no image"),
])  # fmt: skip
def test_missing_or_foreign_predictions_are_named(runs, damage, message):
    damage(RUNS[1][0].results() / "predictions.parquet")
    with pytest.raises(UserError, match=message):
        read_rows(runs)


def test_reading_results_takes_no_torch(runs):
    code = "import flows.report.summary, flows.report.material, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert json.dumps(read_rows(runs)) == json.dumps(read_rows(runs))
