"""Every protocol from its stages to the report, on embedded data."""

import itertools
import json
import shutil
from pathlib import Path

import pytest

from tests.support.workspace import ADAPTED, make_workspace, run, run_stages, write_params

pytestmark = pytest.mark.slow

QUICK = {"methods": ["mmrlpp"], "baselines": [], "seeds": [1], "shots": [2], "train": {"epochs": 1},
         "search": {"enabled": False}}  # fmt: skip
CROSS = {"data": {"protocol": "cross-dataset"}, "targets": ["letters"], "baselines": ["linear_probe"]}
SHIFTS = {"data": {"protocol": "domain-generalization"}, "targets": ["digits_inverted", "digits_outlines"],
          "baselines": ["linear_probe"]}  # fmt: skip
FEW_SHOT = {"data": {"protocol": "few-shot"}, "shots": [1, 2], "methods": ["mmrl", "mmrlpp"],
            "baselines": ["linear_probe", "tip_adapter"]}  # fmt: skip


def workspace(folder: Path, changes: dict) -> Path:
    return make_workspace(folder / "project", dvc=True, **QUICK | changes)


def protocol_of(settings: dict) -> str:
    return settings.get("data", {}).get("protocol", "base-to-novel")


def metrics_of(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("results/**/metrics.json"))]


def check(folder: Path, changes: dict) -> list[dict]:
    """Every run is measured on every data set of the protocol, and the summary has a row a target, method and number of
    shots; the metrics."""
    settings = QUICK | changes
    protocol = protocol_of(settings)
    targets, found = ["digits", *settings.get("targets", [])], metrics_of(folder)
    kinds = [*settings["methods"], *settings["baselines"]]
    assert len(found) == len(targets) * len(kinds) * len(settings["shots"])
    assert {one["target"] for one in found} == set(targets) and {one["protocol"] for one in found} == {protocol}
    parts = ["base", "novel"] if protocol in ("base-to-novel", "joint") else ["all"]
    for one in found:
        assert one["parts"] == parts and ("harmonic_mean" in one) is (len(parts) == 2)
        assert one["n"] == 1197 or one["target"] == "letters"
        assert bool(one["validation"]) is (one["target"] == "digits")
    check_summary(folder, settings, sorted(itertools.product(targets, settings["shots"], kinds)))
    return found


def check_summary(folder: Path, settings: dict, expected: list[tuple[str, int, str]]) -> None:
    protocol, summary = protocol_of(settings), json.loads((folder / "reports/summary.json").read_text())
    assert summary["protocol"] == protocol and summary["stale"] == []
    rows = [(row["target"], row["shots"], row["method"]) for row in summary["rows"]]
    assert sorted(row for row in rows if row[2] != "zero_shot" and not row[2].endswith("+probe")) == expected
    assert {row[:2] for row in rows if row[2] == "zero_shot"} == {row[:2] for row in expected}
    page = (folder / "reports/report.html").read_text()
    assert protocol in page and "http" not in page.replace("http://www.w3.org", "")


def check_dvc(folder: Path) -> None:
    """It is up to date but for what always looks at its source; plots and differences can be had."""
    status = json.loads(run(folder, "dvc", "status", "--json").stdout or "{}")
    assert {name.partition("@")[0] for name in status} <= {"fingerprint", "fingerprint_target"}
    run(folder, "git", "add", "-A")
    run(folder, "git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "one")
    assert "index.html" in run(folder, "dvc", "plots", "show").stdout
    run(folder, "dvc", "metrics", "diff", "HEAD")


def test_the_few_shot_protocol(tmp_path):
    folder = workspace(tmp_path, FEW_SHOT)
    run_stages(folder)
    run(folder, "dvc", "commit", "--force")
    check(folder, FEW_SHOT)
    check_dvc(folder)


def test_domain_generalisation_is_another_evaluation_of_the_cross_dataset_adapter(tmp_path):
    folder = workspace(tmp_path, CROSS)
    run_stages(folder)
    run(folder, "dvc", "commit", "--force")
    first = check(folder, CROSS)
    shutil.rmtree(folder / "results/digits-to-letters")  # no target of the other protocol
    write_params(folder, **QUICK | SHIFTS)
    assert "Running stage 'train@" not in run(folder, "dvc", "repro").stdout
    assert {one["adapter_sha256"] for one in check(folder, SHIFTS)} == {one["adapter_sha256"] for one in first}
    check_dvc(folder)


def test_joint_asks_more_of_the_same_adapter_than_base_to_novel(adapted, tmp_path):
    """Among all classes nothing is easier than among half of them."""
    folder = tmp_path / "project"
    shutil.copytree(adapted[0], folder, symlinks=True)
    [apart] = check(folder, ADAPTED)
    done = run(folder, "mmrl", "flow", "adapt", "--set", "data.protocol=joint")
    [joint] = check(folder, ADAPTED | {"data": {"protocol": "joint"}})
    assert "train@" not in done.stderr and "tune@" not in done.stderr  # nothing is trained or searched again
    assert joint["adapter_sha256"] == apart["adapter_sha256"]
    for part in ("base", "novel"):
        assert joint["zero_shot"][part]["accuracy"] <= apart["zero_shot"][part]["accuracy"]
        assert joint[part]["accuracy"] <= apart[part]["accuracy"] + 0.01
    check_dvc(folder)
