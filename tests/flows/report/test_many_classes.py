"""The report of a data set with thousands of classes: what was taken for what, and nothing of all pairs of classes."""

import re
import tracemalloc
from dataclasses import replace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from flows.project.predictions import ANSWERS
from flows.report.material import gather
from flows.report.page import _exhibits
from flows.settings.params import Params
from mmrl_core.data.catalog import open_source
from tests.support.results import MATRIX, RUNS, rewrite, write_digits_pool, write_model, write_run, write_search

CLASSES = 2000
[RUN, *_] = RUNS


@pytest.fixture
def params(folder) -> Params:
    """A run of so many classes with an image each. Every fifth image is taken for the class after its own, and so is
    zero-shot's every other; 500 images of class 7 are taken for class 3."""
    source = open_source("digits", "")
    source = replace(source, train=source.train[:20], test=source.test[:20])
    write_digits_pool(source)
    write_run(RUN[0], {"all": 4})
    write_model(RUN[0], [2.0, 1.0])
    write_search(RUN[0], {"adapter.reg_weight": 0.5, "adapter.insertion_depth": 3}, 1)
    names = {str(label): f"class number {label}" for label in range(CLASSES)}
    rewrite(RUN[0].results() / "metrics.json", lambda one: one.update(class_names=names))
    labels = np.concatenate([np.arange(CLASSES), np.full(500, 7)])
    after = (labels + 1) % CLASSES
    predicted = np.where(labels % 5, labels, after)
    predicted[CLASSES:] = 3
    items = [source.test[at % 20].path for at in range(len(labels))]
    columns = {"item": items, "part": ["all"] * len(labels), "label": labels, "prediction": predicted,
               "without_probe_prediction": predicted,
               "zero_shot_prediction": np.where(labels % 2, labels, after)}  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.table(columns, schema=ANSWERS), RUN[0].results() / "predictions.parquet")
    return Params(**{**MATRIX, "seeds": [1]}, data={"protocol": "few-shot"})


def test_it_shows_what_was_taken_for_what_and_holds_nothing_of_classes_times_classes(params):
    tracemalloc.start()
    try:
        material = gather(params, [RUN])
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    [exhibit] = material.exhibits
    assert most < CLASSES**2  # bytes: no table of all pairs, whatever its type
    assert exhibit.counts.sum() == CLASSES + 500 and len(exhibit.pairs) == CLASSES + 1
    assert len(exhibit.gains) == len(exhibit.classes) == CLASSES
    shown = _exhibits([exhibit])
    rows = re.findall(r'<tr><td class="text">([^<]+)</td><td class="text">([^<]+)</td><td>(\d+)</td></tr>', shown)
    assert len(rows) == 20 and rows[0] == ("class number 7", "class number 3", "500")
    assert rows[1] == ("class number 0", "class number 1", "1")
    assert len(set(re.findall(r"class number \d+", shown))) < 100 and len(shown) < 200_000
