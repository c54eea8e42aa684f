"""Every protocol from `dvc repro` to the report, on embedded data; and a folder of photographs to predictions."""

import csv
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.photographs import needs_photographs
from tests.workspace import make_workspace, run

pytestmark = pytest.mark.slow

QUICK = {"methods": ["mmrlpp"], "seeds": [1, 2], "shots": [2], "train": {"epochs": 1}, "search": {"enabled": False}}
CASES = {
    "base-to-novel": {},
    "joint": {},
    "few-shot": {"shots": [1, 2]},
    "cross-dataset": {"targets": ["letters"]},
    "domain-generalization": {"targets": ["digits_inverted", "digits_outlines"]},
}


@pytest.fixture(scope="module", params=CASES)
def project(request, tmp_path_factory):
    changes = {**QUICK, **CASES[request.param], "data": {"protocol": request.param}}
    folder = make_workspace(tmp_path_factory.mktemp("protocol"), dvc=True, **changes)
    run(folder, "dvc", "repro")
    return folder, request.param, changes


def metrics_of(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("results/*/*/*/metrics.json"))]


def test_every_run_is_measured_on_every_data_set_of_the_protocol(project):
    folder, protocol, changes = project
    found = metrics_of(folder)
    targets = ["digits", *changes.get("targets", [])]
    assert len(found) == len(targets) * len(changes["shots"]) * len(changes["seeds"])
    assert {one["target"] for one in found} == set(targets) and {one["protocol"] for one in found} == {protocol}
    parts = ["base", "novel"] if protocol in ("base-to-novel", "joint") else ["all"]
    for one in found:
        assert one["parts"] == parts and ("harmonic_mean" in one) is (len(parts) == 2)
        assert one["n"] == 1197 or one["target"] == "letters"
        assert bool(one["validation"]) is (one["target"] == "digits")


def test_the_summary_has_a_row_a_target_and_number_of_shots(project):
    folder, protocol, changes = project
    summary = json.loads((folder / "reports/summary.json").read_text())
    expected = {(t, s) for t in ["digits", *changes.get("targets", [])] for s in changes["shots"]}
    assert summary["protocol"] == protocol and summary["stale"] == []
    assert {(row["target"], row["shots"]) for row in summary["rows"]} == expected
    assert {row["method"] for row in summary["rows"]} == {"zero_shot", "mmrlpp"}
    page = (folder / "reports/report.html").read_text()
    assert protocol in page and "http" not in page.replace("http://www.w3.org", "")


def test_it_is_up_to_date_afterwards(project):
    folder, *_ = project
    assert json.loads(run(folder, "dvc", "status", "--json").stdout or "{}").keys() <= {
        f"{stage}@{name}" for stage in ("fingerprint", "fingerprint_target")
        for name in ("digits", "letters", "digits_inverted", "digits_outlines")
    }  # fmt: skip


def test_dvc_shows_plots_and_compares_metrics(project):
    folder, *_ = project
    run(folder, "git", "add", "-A")
    run(folder, "git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "one")
    run(folder, "dvc", "plots", "show", "--json")
    page = run(folder, "dvc", "plots", "show").stdout
    assert "index.html" in page
    run(folder, "dvc", "metrics", "diff", "HEAD")


def test_joint_asks_more_of_the_same_adapter_than_base_to_novel(tmp_path):
    """Among all classes nothing is easier than among half of them."""
    folder = make_workspace(tmp_path / "both", dvc=True, **{**QUICK, "seeds": [1]})
    run(folder, "dvc", "repro")
    (apart,) = metrics_of(folder)
    done = run(folder, "mmrl", "flow", "adapt", "--set", "data.protocol=joint")
    (joint,) = metrics_of(folder)
    assert joint["protocol"] == "joint" and "train@" not in done.stderr  # nothing is trained or searched again
    assert joint["adapter_sha256"] == apart["adapter_sha256"]
    for part in ("base", "novel"):
        assert joint["zero_shot"][part]["accuracy"] <= apart["zero_shot"][part]["accuracy"]
        assert joint[part]["accuracy"] <= apart[part]["accuracy"] + 0.01


@needs_photographs
def test_a_folder_of_photographs_becomes_predictions_in_three_commands(tmp_path):
    photographs = Path(os.environ["MMRL_TEST_DATA"]) / "caltech-101" / "101_ObjectCategories"
    for name in ("sunflower", "stop_sign", "yin_yang"):
        shutil.copytree(photographs / name, tmp_path / "pictures" / name)
    folder = make_workspace(tmp_path / "project", dvc=True, **{**QUICK, "seeds": [1]})
    own = ["--set", "datasets=[mine]", "--set", f"data.own.mine.images={tmp_path / 'pictures'}"]
    checked = json.loads(run(folder, "mmrl", "check", *own, "--dataset", "mine", "--json").stdout)
    assert checked["datasets"][0]["state"] == "complete"
    run(folder, "mmrl", "flow", "adapt", *own, "--set", "data.protocol=few-shot")
    run(folder, "mmrl", "predict", str(tmp_path / "pictures"), "--out", "labels.csv")
    with (folder / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(list(one.iterdir())) for one in (tmp_path / "pictures").iterdir())
    assert {row["label"] for row in rows} <= {"sunflower", "stop_sign", "yin_yang"}
