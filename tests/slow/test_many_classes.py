"""Twenty-one thousand classes go through evaluation, predictions, report and serving in bounded memory, in a process
of their own whose peak the kernel tells."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import pytest

from tests.support.workspace import ROOT, environment

pytestmark = [pytest.mark.slow, pytest.mark.endurance]  # CI has the report of 2,000: tests/flows/report

CLASSES, IMAGES = 21_000, 1_500
PEAK = 2 * 2**30  # bytes; a table of counts of all pairs of classes alone would take 3.5 GB


def test_they_are_evaluated_reported_and_served_in_bounded_memory(tmp_path):
    script = "from tests.slow.test_many_classes import work; work()"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment() | {"PYTHONPATH": str(ROOT)},
                          check=True, stdout=subprocess.PIPE, text=True)  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["peak"] < PEAK
    assert found["n"] == IMAGES and found["images_per_second"] > 0
    rows = pyarrow.parquet.read_table(tmp_path / "results/digits-to-digits/mmrl-1shot/seed1/predictions.parquet")
    assert rows.num_rows == IMAGES and set(map(len, rows["top_labels"].to_pylist())) == {5}
    assert (tmp_path / "reports/report.html").stat().st_size < 2**20
    answer = found["answer"]
    assert len(answer["probabilities"]) == 5 and answer["label"] == next(iter(answer["probabilities"]))
    assert sum(answer["probabilities"].values()) <= 1


def work() -> None:
    """In the folder that it is called in; prints what it found as JSON."""
    from fastapi.testclient import TestClient

    from flows.project import paths
    from flows.project.paths import RunKey
    from flows.report.summary import summarize
    from flows.settings.params import Params
    from flows.stages.evaluate import RunToEvaluate, metrics_of_each
    from flows.stages.scoring import Pace
    from mmrl_core.clip.backbone import load_backbone
    from mmrl_core.data.catalog import open_source
    from mmrl_core.data.shards import write_pool
    from mmrl_core.method.adapter import save_adapter
    from mmrl_core.predict import Predictor
    from mmrl_core.protocols import PROTOCOLS
    from tests.support.results import write_search
    from tests.support.serving import app_of, in_base64, picture
    from tests.support.small import small_adapter

    key, names = RunKey("digits", "mmrl", 1, 1), [f"thing {place}" for place in range(CLASSES)]
    settings = Params(datasets=["digits"], methods=["mmrl"], shots=[1], seeds=[1], data={"protocol": "few-shot"})
    backbone, source = load_backbone("tiny"), open_source("digits", "")
    found = [*source.train, *source.val, *source.test]
    labels = [place * 14 for place in range(IMAGES)]
    test = [one._replace(label=label, class_name=names[label]) for one, label in zip(found, labels, strict=False)]
    pool = paths.pool("digits")
    pool.mkdir(parents=True)
    write_pool(replace(source, class_names=names, train=[], val=[], test=test), pool)
    card = {"class_names": names, "template": "a {}.", "training": PROTOCOLS["few-shot"].training,
            "settings": {}, "sources": {}, "data": {"digest": ""}}  # fmt: skip
    key.model.mkdir(parents=True)
    save_adapter(key.model, small_adapter(backbone), backbone, card)
    key.results().mkdir(parents=True)
    pace = Pace()
    [metrics] = metrics_of_each(backbone, [RunToEvaluate(key, key.model, key.results())], settings, pace=pace).values()
    write_search(key, {"adapter.reg_weight": 0.5, "adapter.insertion_depth": 3}, 1)
    summarize(settings, Path("reports"))
    predictor = Predictor.load(key.model)
    predictor.use_onnxruntime()
    answer = TestClient(app_of(predictor)).post("/predict", json={"image": in_base64(picture(1))}).json()
    # ru_maxrss would begin with what the process held that started this one.
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    print(json.dumps({"peak": peak, "n": metrics["n"], "images_per_second": pace.images_per_second, "answer": answer}))
