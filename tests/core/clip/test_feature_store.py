"""Frozen features on disk: the same bits as without, within a budget, and safe whoever else is at it."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mmrl_core.clip.backbone import load_backbone
from mmrl_core.clip.feature_store import (
    UNUSED,
    FeatureStore,
    FrozenFeatures,
    evaluation_key,
    image_digest,
    training_key,
)
from mmrl_core.clip.towers import Frozen, ImageTower
from mmrl_core.config import AdapterConfig, TrainConfig
from mmrl_core.data.images import decode
from mmrl_core.data.sets import ImageSet
from mmrl_core.data.shards import Example
from mmrl_core.evaluation.scores import score, score_each
from mmrl_core.method.model import AdaptedCLIP
from mmrl_core.training.fit import fit
from tests.core.test_predict import noise
from tests.support.small import random_images, small_adapter, small_backbone

GENEROUS = 1e9
ROOT = Path(__file__).parents[3]


@functools.cache
def middling():
    """A CLIP whose products are large enough for a CPU to choose kernels by their size: 50 tokens of width 256."""
    return small_backbone(image_layers=5, text_layers=5, image_width=256, image_size=112)


@pytest.fixture(params=["small", "middling", "tiny"])
def backbone(request):
    return {"small": small_backbone, "middling": middling, "tiny": lambda: load_backbone("tiny")}[request.param]()


def image_set(n: int = 11) -> ImageSet:
    images = [decode(noise(i), str(i)) for i in range(n)]
    return ImageSet([f"train-{i}" for i in range(n)], images, [i % 3 for i in range(n)], ["red", "tan", "ash"], "a {}.")


def settings(depth: int = 2, **train) -> tuple[AdapterConfig, TrainConfig]:
    config = AdapterConfig(method="mmrlpp", insertion_depth=depth, n_tokens=2, rep_dim=8, projection_rank=4)
    return config, TrainConfig(**{"epochs": 2, "batch_size": 4, "warmup_epochs": 0, **train})


def assert_same_bits(one, other) -> None:
    states = one.adapter.state_dict(), other.adapter.state_dict()
    assert one.history == other.history
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def records(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_training_gives_the_same_bits_without_store_with_an_empty_and_with_a_full_one(
    backbone, precision, threads, tmp_path
):
    before, data = torch.get_num_threads(), image_set()
    torch.set_num_threads(threads)
    try:
        for batch_size in (4, 5):
            config, train = settings(precision=precision, batch_size=batch_size)
            store = FeatureStore(tmp_path, GENEROUS)
            without = fit(backbone, config, train, data)
            assert_same_bits(without, fit(backbone, config, train, data, store=store))
            written = {path: path.stat().st_mtime_ns for path in records(tmp_path)}
            assert_same_bits(without, fit(backbone, config, train, data, store=store))
            assert {path: path.stat().st_mtime_ns for path in records(tmp_path)} == written
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_models_of_all_depths_share_the_trunks_of_the_shallowest_bit_by_bit(depth, backbone, tmp_path):
    data, store = image_set(), FeatureStore(tmp_path, GENEROUS, depth=2)
    fit(backbone, *settings(2), data, store=store)
    shared = records(tmp_path)
    config, train = settings(depth)
    assert_same_bits(fit(backbone, config, train, data), fit(backbone, config, train, data, store=store))
    assert records(tmp_path) == shared


def test_another_selection_of_the_images_finds_the_views_it_shares_with_the_first(backbone, tmp_path):
    whole, store = image_set(12), FeatureStore(tmp_path, GENEROUS)
    part = whole._replace(items=whole.items[3:9], images=whole.images[3:9], labels=whole.labels[3:9])
    config, train = settings(batch_size=3)
    fit(backbone, config, train, whole, store=store)
    shared = records(tmp_path)
    assert len(shared) == train.epochs * len(whole.items)
    assert_same_bits(fit(backbone, config, train, part), fit(backbone, config, train, part, store=store))
    assert records(tmp_path) == shared


def test_scores_are_the_same_bits_with_and_without_store_whatever_is_there_already(backbone, tmp_path):
    examples = [Example(f"k{i}", f"{i}.png", i % 2, "", noise(i)) for i in range(7)]
    model = AdaptedCLIP(backbone, small_adapter(backbone), ["cat", "dog"], "a {}.")
    store = FeatureStore(tmp_path, GENEROUS)
    without = score(model, examples, [0, 1], [0, 1])
    score(model, examples[2:5], [0, 1], [0, 1], store=store)
    for _ in range(2):
        kept = score(model, examples, [0, 1], [0, 1], store=store)
        assert torch.equal(kept.adapted, without.adapted)
        assert torch.equal(kept.zero_shot, without.zero_shot)
    assert len(records(tmp_path)) == len(examples)


def test_adapters_of_any_depths_that_are_scored_together_get_the_bits_that_each_gets_alone(backbone, tmp_path):
    examples = [Example(f"k{i}", f"{i}.png", i % 2, "", noise(i)) for i in range(7)]
    kinds = [("mmrlpp", 3, "a {}."), ("mmrl", 2, "the {}."), ("mmrl", 4, "a {}."), ("mmrlpp", 2, "a {}.")]
    models = [AdaptedCLIP(backbone, small_adapter(backbone, method, insertion_depth=depth), ["cat", "dog"], template)
              for method, depth, template in kinds]  # fmt: skip
    alone = [score(model, examples, [0, 1], [0]) for model in models]
    for store in (None, FeatureStore(tmp_path, GENEROUS), FeatureStore(tmp_path, GENEROUS, depth=2)):
        for one, other in zip(alone, score_each(models, examples, [0, 1], [0], store=store), strict=True):
            assert torch.equal(one.adapted, other.adapted) and torch.equal(one.zero_shot, other.zero_shot)
            assert one.labels.equal(other.labels) and one.items == other.items


def test_views_of_another_seed_epoch_item_or_image_have_records_of_their_own():
    (one, other), train = image_set(2).images, TrainConfig()
    keys = [
        training_key(image_digest(one), train, 0, "a"),
        training_key(image_digest(one), train.model_copy(update={"seed": 2}), 0, "a"),
        training_key(image_digest(one), train.model_copy(update={"views": "pillow"}), 0, "a"),
        training_key(image_digest(one), train.model_copy(update={"augmentation": "crop"}), 0, "a"),
        training_key(image_digest(one), train, 1, "a"), training_key(image_digest(one), train, 0, "b"),
        training_key(image_digest(other), train, 0, "a"),
        evaluation_key(image_digest(one)), evaluation_key(image_digest(other)),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)


def test_backbones_depths_precisions_and_batch_sizes_have_shelves_of_their_own(tmp_path):
    store, shelves = FeatureStore(tmp_path, GENEROUS), set()
    for backbone in (small_backbone(), small_backbone(seed=1), small_backbone(quick_gelu=True)):
        for n_insert in (1, 2):
            for dtype in (torch.float32, torch.bfloat16):
                for batch in (3, 4):
                    features = FrozenFeatures(ImageTower(backbone, n_insert, dtype), batch, store)
                    shelves.add(features.shelf.folder)
    assert len(shelves) == 3 * 2 * 2 * 2


def test_beyond_the_budget_features_are_computed_and_said_so_once(tmp_path, caplog):
    backbone, data, (config, train) = small_backbone(), image_set(), settings()
    fit(backbone, config, train, data, store=FeatureStore(tmp_path / "measured", GENEROUS))
    size = records(tmp_path / "measured")[0].stat().st_size
    store = FeatureStore(tmp_path / "bounded", 5.5 * size)
    assert_same_bits(fit(backbone, config, train, data), fit(backbone, config, train, data, store=store))
    assert store.used() == sum(path.stat().st_size for path in records(tmp_path / "bounded")) == 5 * size
    assert store.is_full and not FeatureStore(tmp_path / "measured", GENEROUS).is_full
    assert [record.message for record in caplog.records if "budget" in record.message] == [
        f"frozen features are no longer kept in {tmp_path / 'bounded'} (its budget of {5.5 * size / 1e9:g} GB is used "
        "up; raise features.budget_gb or `mmrl clean`): they are computed each time"
    ]


def test_shelves_that_nobody_used_for_an_hour_make_room_and_others_do_not(tmp_path):
    record = Frozen(torch.zeros(3, 4), torch.zeros(2))
    old, used = (FeatureStore(tmp_path, GENEROUS).shelf({"shelf": name}) for name in ("old", "used"))
    for shelf in (old, used):
        shelf.put("a", record)
    size = FeatureStore(tmp_path, GENEROUS).used() / 2
    long_ago = time.time() - UNUSED - 60
    os.utime(old.folder / "shelf.json", (long_ago, long_ago))
    store = FeatureStore(tmp_path, 2 * size)
    fresh = store.shelf({"shelf": "fresh"})
    fresh.put("b", record)
    assert (old.get("a"), store.used()) == (None, 2 * size)
    assert used.get("a") is not None and fresh.get("b") is not None
    fresh.put("c", record)
    assert fresh.get("c") is None and used.get("a") is not None


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"cut"])
def test_a_damaged_record_is_computed_anew(content, tmp_path):
    backbone, data, (config, train) = small_backbone(), image_set(), settings()
    whole = fit(backbone, config, train, data, store=FeatureStore(tmp_path, GENEROUS))
    victim = records(tmp_path)[3]
    good = victim.read_bytes()
    victim.write_bytes(good[: len(good) // 2] if content == b"cut" else content)
    assert_same_bits(whole, fit(backbone, config, train, data, store=FeatureStore(tmp_path, GENEROUS)))
    assert victim.read_bytes() == good


RUN = """
import os, resource, signal, sys
from mmrl_core.clip.feature_store import FeatureStore
from mmrl_core.training.fit import fit
from tests.core.clip.test_feature_store import image_set, settings
from tests.support.small import small_backbone

if sys.argv[2] == "full":  # of a disk without room, as far as a process can tell
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
store = FeatureStore(sys.argv[1], 1e9)
print("ready", flush=True)
sys.stdin.readline()
other = os.fork() if sys.argv[2] == "pair" else None
print(fit(small_backbone(), *settings(epochs=4), image_set(), store=store).history[-1]["loss"])
if other:
    sys.exit(os.waitpid(other, 0)[1])
"""


def start(folder: Path, mode: str = "") -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", RUN, str(folder), mode], env=environment, text=True, cwd=ROOT,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


def test_two_processes_that_want_the_same_records_both_get_them_whole(tmp_path):
    process = start(tmp_path, "pair")
    losses = process.communicate("go\n")[0].split()
    assert process.returncode == 0
    assert len(losses) == 2 and len(set(losses)) == 1 and float(losses[0]) > 0
    shelf = FeatureStore(tmp_path, GENEROUS)
    assert len(records(tmp_path)) == 4 * 8  # 2 whole batches of 4 an epoch
    assert shelf.used() >= sum(path.stat().st_size for path in records(tmp_path))
    assert not list(tmp_path.rglob("*.partial"))


def test_a_process_killed_while_it_writes_leaves_only_whole_records(tmp_path):
    process = start(tmp_path)
    process.stdin.write("go\n")
    process.stdin.flush()
    while len(records(tmp_path)) < 5:
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    sizes = {path.stat().st_size for path in records(tmp_path)}
    assert len(sizes) == 1
    config, train = settings(epochs=4)
    store = FeatureStore(tmp_path, GENEROUS)
    assert_same_bits(
        fit(small_backbone(), config, train, image_set()),
        fit(small_backbone(), config, train, image_set(), store=store),
    )


def test_a_full_disk_only_costs_the_time_to_compute(tmp_path):
    process = start(tmp_path, "full")
    out, err = process.communicate("go\n")
    assert process.returncode == 0, err
    assert float(out) > 0
    assert err.count("no longer kept") == 1 and "File too large" in err
    assert not records(tmp_path) and not list(tmp_path.rglob("*.partial"))


def test_frozen_features_are_those_of_the_tower_in_the_order_asked_for(tmp_path):
    backbone = small_backbone()
    tower, images = ImageTower(backbone, 2), random_images(5)
    features = FrozenFeatures(tower, 5, FeatureStore(tmp_path, GENEROUS))

    def load(order: list[int]) -> Frozen:
        keys = [str(index) for index in order]
        return features.frozen(features.load(keys, lambda rows: images[[order[row] for row in rows]]))

    load([1, 3])
    found = load([4, 3, 0, 1])
    expected = tower.frozen(images[[4, 3, 0, 1]])
    assert torch.allclose(found.trunk, expected.trunk, atol=1e-5)
    assert torch.allclose(found.zero_shot, expected.zero_shot, atol=1e-5)
