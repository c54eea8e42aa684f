"""The version that answers, and how it follows the registry's alias."""

from pathlib import Path

import pytest

from flows.serving.follower import Follower, Live, PredictionJob, score
from flows.tracking import store as tracking
from mmrl_core.predict import Predictor
from tests.support import serving
from tests.support.serving import NAME, URI, make_adapter, picture


def test_a_batch_across_a_change_answers_each_image_by_its_own_version(predictor, tmp_path):
    other = Predictor.load(make_adapter(tmp_path, 1))
    lives = [Live(NAME, 1, predictor), Live(NAME, 2, other)]
    images = [picture(seed) for seed in range(6)]
    jobs = [
        PredictionJob(live, live.predictor.view(image, "it"), live.known(names) or live.new_classes(names))
        for image, live, names in zip(images, lives * 3, [None, None, ["cat", "dog"]] * 2, strict=True)
    ]
    for job, image, found in zip(jobs, images, score(jobs), strict=True):
        [alone] = job.live.predictor.predict([image], job.classes.names)
        assert found.probabilities == pytest.approx(alone.probabilities, abs=1e-5)


def test_features_of_other_classes_are_kept_while_there_is_room(predictor):
    live = Live(NAME, 1, predictor)
    assert live.known(["cat", "dog"]) is None and live.known(None) is live.trained
    first = live.new_classes(["cat", "dog"])
    assert live.known(["cat", "dog"]) is first
    for number in range(32):
        live.new_classes(["one", f"class {number}"])
    assert live.known(["cat", "dog"]) is None


def test_the_follower_keeps_what_it_has_until_the_new_version_is_whole(store, tmp_path):
    follower = Follower(URI, store, 3600)
    follower.look()
    first = follower.current
    assert (first.version, follower.problem, follower.loads) == (1, None, 1)
    tensors = tensors_of(2)
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-1])
    serving.promote(2)
    follower.look()
    assert follower.current is first and "version 2 of" in follower.problem and follower.failures == 1
    follower.look()
    assert follower.failures == follower.loads == 1, "a version that failed is not tried again at once"
    serving.promote(1)
    follower.look()
    assert follower.current is first and follower.problem is None
    tensors.write_bytes(whole)
    again = Follower(URI, store, 3600)
    serving.promote(2)
    again.look()
    assert (again.current.version, again.problem) == (2, None)


def test_a_version_whose_first_prediction_is_no_number_does_not_go_live(store, tmp_path):
    follower = Follower(URI, store, 3600)
    follower.look()
    first = follower.current
    serving.promote(serving.register(3, std=1e37))  # every weight is finite
    follower.look()
    assert follower.current is first and follower.failures == 1
    assert "answers with what is no number" in follower.problem


def test_a_number_that_is_used_again_for_another_adapter_is_another_version(store, tmp_path):
    follower = Follower(URI, store, 3600)
    follower.look()
    first = follower.current
    tracking.connect(store).delete_registered_model(NAME)
    assert serving.register(2) == first.version == 1
    serving.promote(1)
    follower.look()
    assert follower.current.version == 1 and follower.current.identity != first.identity
    assert follower.current.predictor.card["sha256"] == serving.predictor(1).card["sha256"]


def tensors_of(version: int) -> Path:
    """The file in the store that holds a version's tensors."""
    client = tracking.connect(tracking.absolute("sqlite:///mlflow.db"))
    source = client.get_model_version_download_uri(NAME, str(version))
    [tensors] = Path(source.removeprefix("file://")).rglob("adapter.safetensors")
    return tensors


def test_while_the_registry_cannot_be_asked_the_loaded_version_stays(store, tmp_path):
    follower = Follower(URI, store, 3600)
    follower.look()
    client = tracking.connect(store)
    client.delete_registered_model_alias(NAME, "champion")
    follower.look()
    assert follower.current.version == 1 and "no alias 'champion'" in follower.problem
    serving.promote(1)
    follower.look()
    assert follower.problem is None
