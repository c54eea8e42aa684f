"""The page, from results of which the answer is known."""

import csv
import json
import re
import shutil
import warnings
from pathlib import Path

import matplotlib
import pyarrow
import pyarrow.parquet
import pytest

from flows.project.paths import RunKey
from flows.report.material import _settings, gather
from flows.report.summary import named_runs, summarize
from flows.settings.params import Params
from mmrl_core.data.catalog import open_source
from mmrl_core.errors import UserError
from tests.support.results import (
    MATRIX,
    RUNS,
    rewrite,
    write_digits_pool,
    write_model,
    write_run,
    write_runs,
    write_search,
)


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


def test_validation_curves_stand_beside_the_loss_also_where_early_epochs_have_none(whole):
    history = [{"loss": 2.0}, {"loss": 1.0, "val_nll": 0.5, "val_accuracy": 0.75}]
    rewrite(RUNS[0][0].model / "adapter.json", lambda card: card.update(history=history))
    summarize(whole, Path("reports"))
    page = Path("reports/report.html").read_text()
    assert ">validation: negative log-likelihood<" in page and ">validation: accuracy<" in page
    lines = Path("reports/learning_curves.csv").read_text().splitlines()
    assert lines[:3] == ["runs,method,seed,epoch,loss,val_nll,val_accuracy", '"digits, 16 shots",mmrl,1,1,2.0,,',
                         '"digits, 16 shots",mmrl,1,2,1.0,0.5,0.75']  # fmt: skip
