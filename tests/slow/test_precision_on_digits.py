"""bf16 on real digits: accuracies differ from float32's by no more than seeds differ among themselves."""

from itertools import islice
from statistics import mean

import pytest
import torch

from mmrl_core.clip.backbone import load_backbone
from mmrl_core.config import AdapterConfig, TrainConfig
from mmrl_core.data.catalog import open_source
from mmrl_core.data.sets import read_set
from mmrl_core.data.shards import read_manifest, stream_examples, write_few_shot, write_pool
from mmrl_core.evaluation.scores import score
from mmrl_core.method.model import AdaptedCLIP
from mmrl_core.training.fit import fit
from tests.core.evaluation.of_probabilities import summary

pytestmark = pytest.mark.slow
SEEDS = (1, 2, 3)
TEMPLATE = "a photo of the digit {}."


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folders of the pool and of every seed's few-shot set."""
    folder, source = tmp_path_factory.mktemp("digits"), open_source("digits", "")
    for name in ("pool", *SEEDS):
        (folder / str(name)).mkdir()
    write_pool(source, folder / "pool")
    for seed in SEEDS:
        write_few_shot(source, 16, seed, folder / str(seed))
    return folder


def accuracies(folder, method: str, seed: int, precision: str) -> dict[str, float]:
    backbone = load_backbone("tiny")
    config = AdapterConfig(method=method, insertion_depth=3, reg_weight=10.0, beta=0.9)
    train = TrainConfig(seed=seed, precision=precision, lr=4e-3, batch_size=8)
    adapter = fit(backbone, config, train, read_set(folder / str(seed), "train", ["base"], TEMPLATE)).adapter
    manifest, found = read_manifest(folder / "pool"), {}
    for half, trained in (("base", manifest["base"]), ("novel", [])):
        names = [manifest["class_names"][label] for label in manifest[half]]
        model = AdaptedCLIP(backbone, adapter, names, TEMPLATE)
        images = islice(stream_examples(folder / "pool", "test", half), None, None, 2)  # every other one
        scores = score(model, images, manifest[half], trained)
        found[half] = summary(scores.adapted, scores.labels)["accuracy"]
    return found


@pytest.mark.endurance  # CI compares steps: tests/core/clip/test_precision.py
@pytest.mark.parametrize("method", ["mmrl", "mmrlpp"])
def test_accuracy_under_bf16_is_within_the_seed_to_seed_spread_of_float32(data, method):
    torch.set_num_threads(1)
    runs = {
        precision: [accuracies(data, method, seed, precision) for seed in SEEDS] for precision in ("float32", "bf16")
    }
    for half in ("base", "novel"):
        full, low = ([run[half] for run in runs[precision]] for precision in ("float32", "bf16"))
        print(f"{method} {half}: float32 {full}, bf16 {low}")
        assert abs(mean(low) - mean(full)) <= max(full) - min(full)
