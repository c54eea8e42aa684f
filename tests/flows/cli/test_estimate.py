"""`mmrl estimate`: what a training costs, of settings alone."""

import json

import pytest


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Without settings those that the package ships are meant."""
    monkeypatch.chdir(tmp_path)


def estimate(mmrl, *options: str, name: str = "ViT-B-16") -> dict:
    return json.loads(mmrl("estimate", "--json", "--set", f"backbone.name={name}", *options))


def test_the_settings_decide_what_is_estimated(mmrl):
    values = ("train.batch_size=8", "train.epochs=5", "train.precision=float32", "adapter.insertion_depth=6")
    options = [word for value in values for word in ("--set", value)]
    said = estimate(mmrl, *options, "--method", "mmrlpp", "--shots", "4", "--classes", "10")
    assert (said["batch"], said["method"], said["parameters"]["trainable"]) == (8, "mmrlpp", 813_312)
    assert said["features"]["views"] == 4 * 10 * 5 and said["features"]["view_bytes"] == 197 * 768 * 4 + 512 * 4
    assert estimate(mmrl, "--batch", "16")["batch"] == 16


def test_a_device_that_is_not_here_is_told_by_its_memory(mmrl):
    big = ["--device-memory", "80GB", "--tflops", "100"]
    said = estimate(mmrl, *big, name="ViT-bigG-14")
    assert said["memory"]["fits"] is True and said["precision"] == "bf16" and said["device"] == "cuda"
    assert said["seconds"]["step"] == pytest.approx(said["operations"]["step"] / 100e12)
    assert estimate(mmrl, "--device-memory", "12GiB", name="ViT-bigG-14")["memory"]["fits"] is False
    lines = mmrl("estimate", "--set", "backbone.name=ViT-bigG-14", "--device-memory", "12GiB").splitlines()
    assert lines[-1] == "does not fit: there are 12.88 GB"


def test_people_get_a_line_for_each_kind_of_cost(mmrl):
    lines = mmrl("estimate", "--tflops", "0.1").splitlines()
    assert lines[0].startswith("tiny, mmrl from layer 3, 4 images a step, 50 classes, ")
    assert [line.split(":")[0] for line in lines[1:]] == [
        "parameters", "memory", "features", "operations", "time", "fits",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--set", "backbone.name=ViT-B-161"], "did you mean ViT-B-16"),
     (["--set", "backbone.name=RN50"], "its image tower is a ResNet"),
     (["--set", "adapter.insertion_depth=99"], "adapter.insertion_depth is 99, but tiny has 6 layers"),
     (["--device-memory", "lots"], "'lots' is no size; say it as 80GB or 24GiB"),
     (["--tflops", "inf"], "inf is no number that can be used here")],
)  # fmt: skip
def test_what_cannot_be_estimated_is_one_line(mmrl, options, said):
    line = mmrl("estimate", *options, code=2)
    assert said in line and line.count("\n") == 1
