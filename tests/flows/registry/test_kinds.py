"""Adapters with a probe and baselines in the registry: what any version can, they can."""

import mlflow.pyfunc
import pandas as pd
import pytest

from flows.registry import versions
from mmrl_core.files import read_json
from mmrl_core.predict import Predictor
from tests.support.alter import alter_card
from tests.support.registry import kinds, promotions
from tests.support.registry.kinds import PROBED
from tests.support.registry.promotions import KEY, NAME, PARAMS, promote
from tests.support.serving import picture
from tests.support.workspace import write_params


def test_the_gate_compares_a_method_with_a_baseline_and_a_baseline_with_a_method(digits_project):
    promotions.crown("bad")
    assert kinds.register("linear_probe") == 2 and promote() == (2, "accepted")
    promotions.register("worse")
    assert promote() == (3, "refused")
    kinds.register(PROBED)
    assert promote()[1] in ("accepted", "inconclusive", "refused")  # nearly as right as the probe alone


@pytest.mark.parametrize("kind", [PROBED, "linear_probe", "tip_adapter"])
def test_a_version_of_every_kind_predicts_what_its_run_predicts(digits_project, kind, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{digits_project}/mlflow.db")
    number, images = kinds.register(kind), [picture(0), picture(1)]
    expected = Predictor.load(KEY.model).predict(images)
    assert versions.load(f"models:/{NAME}/{number}").predict(images) == expected
    model = mlflow.pyfunc.load_model(f"models:/{NAME}/{number}")
    rows = model.predict(pd.DataFrame({"image": images})).to_dict("records")
    assert [row["probabilities"] for row in rows] == [one.probabilities for one in expected]


def test_a_run_is_registered_by_its_name_whatever_the_others_are(digits_project, mmrl):
    write_params(digits_project)  # nine runs, of which one is there
    kinds.register("tip_adapter")
    run = ["--dataset", "digits", "--method", "mmrlpp", "--shots", "2", "--seed", "1"]
    assert mmrl("register", *run).startswith("already registered: ")
    assert "are missing" in mmrl("register", code=2)


def test_one_cache_of_images_that_is_weighed_in_two_ways_is_two_versions(digits_project):
    assert kinds.register("tip_adapter") == 1
    sha256 = read_json(KEY.model / "adapter.json", made_by="")["sha256"]
    alter_card(KEY.model, lambda card: card["head"].update(sharpness=7.0))
    assert versions.register(PARAMS, KEY) == (NAME, 2, sha256, True)
    assert versions.register(PARAMS, KEY) == (NAME, 2, sha256, False)
    assert kinds.register("tip_adapter") == 1
