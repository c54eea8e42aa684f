"""The training loop: schedule, order, determinism, resume."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmrl_core.config import AdapterConfig, TrainConfig
from mmrl_core.data import parallel
from mmrl_core.data.sets import ImageSet
from mmrl_core.errors import UserError
from mmrl_core.training import fit as training
from mmrl_core.training.batches import batches
from mmrl_core.training.checkpoints import NAME, Folder
from mmrl_core.training.fit import fit, lr_at, new_optimizer
from mmrl_core.training.process import settle_process
from tests.support.small import small_adapter, small_backbone

SCHEDULES = json.loads((Path(__file__).parents[2] / "golden" / "lr_schedule.json").read_text())
CONFIG = AdapterConfig(method="mmrlpp", insertion_depth=2, n_tokens=2, rep_dim=8, projection_rank=4)


@pytest.fixture(scope="module")
def data() -> ImageSet:
    colours = ["red", "green", "blue"]
    images = [Image.new("RGB", (20, 16), colour) for colour in colours for _ in range(3)]
    items = [f"train-{i:08d}" for i in range(9)]
    return ImageSet(items, images, [i // 3 for i in range(9)], colours, "a {} square.")


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s['max_epoch']} epochs, warm-up {s['warmup_epoch']}")
def test_the_learning_rate_follows_the_published_schedule(schedule):
    train = TrainConfig(
        epochs=schedule["max_epoch"], lr=schedule["base_lr"], warmup_epochs=schedule.get("warmup_epoch", 0)
    )
    rates = [lr_at(epoch, train) for epoch in range(train.epochs)]
    assert rates == pytest.approx(schedule["lr_per_epoch"], rel=1e-9)


def test_the_last_partial_batch_is_dropped_unless_it_is_the_only_one():
    train = TrainConfig(batch_size=4)
    assert [len(batch) for batch in batches(11, train, 0)] == [4, 4]
    assert [len(batch) for batch in batches(3, train, 0)] == [3]


def test_every_epoch_has_an_order_of_its_own_that_depends_on_seed_and_epoch_alone():
    train = TrainConfig(batch_size=10, seed=3)
    first, again, second = (next(batches(10, train, epoch)) for epoch in (0, 0, 1))
    assert first == again != second
    assert sorted(first) == list(range(10))
    assert next(batches(10, TrainConfig(batch_size=10, seed=4), 0)) != first


def test_weight_decay_shrinks_every_trainable_tensor():
    adapter = small_adapter(small_backbone())
    before = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    for parameter in adapter.parameters():
        parameter.grad = torch.zeros_like(parameter)
    new_optimizer(adapter, lr=0.1).step()
    for name, tensor in adapter.state_dict().items():
        assert torch.allclose(tensor, before[name] * (1 - 0.1 * 5e-4)), name


def test_training_lowers_the_loss_and_leaves_the_backbone_as_it_was(data):
    backbone = small_backbone()
    before = backbone.clip.state_dict()
    before = {name: tensor.clone() for name, tensor in before.items()}
    history = fit(backbone, CONFIG, TrainConfig(epochs=6, batch_size=3, lr=5e-3), data).history
    assert history[-1]["loss"] < history[0]["loss"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.clip.state_dict().items())


def test_the_same_settings_train_to_the_same_bits_whatever_the_global_generator(data):
    train = TrainConfig(epochs=2, batch_size=4)
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        states.append(fit(small_backbone(), CONFIG, train, data).adapter.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_number_of_threads_that_load_images_changes_no_bit(data, monkeypatch):
    train, states = TrainConfig(epochs=2, batch_size=2), []
    for cores in (1, 2, 7):
        monkeypatch.setattr(parallel.os, "cpu_count", lambda cores=cores: cores)
        states.append(fit(small_backbone(), CONFIG, train, data).adapter.state_dict())
    for other in states[1:]:
        assert all(torch.equal(tensor, other[name]) for name, tensor in states[0].items())


def test_a_run_broken_off_after_any_epoch_resumes_to_the_same_bits_and_history(data, tmp_path):
    train = TrainConfig(epochs=4, batch_size=4)
    whole = fit(small_backbone(), CONFIG, train, data)
    for stop in range(3):

        def break_off(epoch: int, metrics: dict, stop=stop) -> None:
            if epoch == stop:
                raise KeyboardInterrupt

        folder = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            fit(small_backbone(), CONFIG, train, data, report=break_off, checkpoints=folder)
        kept = range(max(1, stop), stop + 2)  # the last two epochs, counted from 1
        assert sorted(path.name for path in folder.iterdir()) == [NAME.format(epoch, 0) for epoch in kept]
        resumed = fit(small_backbone(), CONFIG, train, data, checkpoints=folder)
        assert resumed.history == whole.history
        for name, tensor in whole.adapter.state_dict().items():
            assert torch.equal(tensor, resumed.adapter.state_dict()[name]), (stop, name)


def test_a_resumed_run_reports_the_epochs_behind_it_too(data, tmp_path):
    train, reported = TrainConfig(epochs=3, batch_size=4), []
    fit(small_backbone(), CONFIG, train.model_copy(update={"epochs": 3}), data, checkpoints=tmp_path)
    fit(small_backbone(), CONFIG, train, data, checkpoints=tmp_path, report=lambda epoch, _: reported.append(epoch))
    assert reported == [0, 1, 2]


def test_a_run_broken_off_within_an_epoch_resumes_to_the_same_bits_and_history(data, tmp_path, monkeypatch):
    """A checkpoint every two steps of three; broken off by the third one, which cannot be written."""
    monkeypatch.setattr(training, "EVERY", 2)
    train = TrainConfig(epochs=3, batch_size=2)
    whole = fit(small_backbone(), CONFIG, train, data)
    steps = len(list(batches(len(data.items), train, 0)))
    assert steps > 2
    folder = BreaksOff(tmp_path, at=3)
    with pytest.raises(KeyboardInterrupt):
        fit(small_backbone(), CONFIG, train, data, checkpoints=folder)
    assert NAME.format(0, 2) in {path.name for path in tmp_path.iterdir()}
    resumed = fit(small_backbone(), CONFIG, train, data, checkpoints=tmp_path)
    assert resumed.history == whole.history
    for name, tensor in whole.adapter.state_dict().items():
        assert torch.equal(tensor, resumed.adapter.state_dict()[name]), name


class BreaksOff(Folder):
    """A folder of checkpoints whose owner is interrupted when the `at`-th is to be written."""

    def __init__(self, folder, at: int):
        super().__init__(folder)
        self.left = at

    def save(self, content: bytes, epoch: int, step: int) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        super().save(content, epoch, step)


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 cut off"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it_or_the_start(data, tmp_path, content, caplog):
    train = TrainConfig(epochs=2, batch_size=4)
    whole = fit(small_backbone(), CONFIG, train, data, checkpoints=tmp_path / "whole").history
    for left in (1, 0):
        folder = tmp_path / str(left)
        shutil.copytree(tmp_path / "whole", folder)
        for path in sorted(folder.iterdir())[left:]:
            path.write_bytes(content)
        caplog.clear()
        assert fit(small_backbone(), CONFIG, train, data, checkpoints=folder).history == whole
        assert caplog.text.count("is damaged") == 2 - left


def test_a_small_backbone_gets_one_thread_so_that_bits_do_not_depend_on_the_machine():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        settle_process(small_backbone())
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_loss_that_is_no_longer_finite_stops_training_and_names_step_and_term(data):
    with pytest.raises(UserError, match=r"diverged at epoch \d step \d: \w+ is nan; lower train.lr"):
        fit(small_backbone(), CONFIG, TrainConfig(epochs=3, batch_size=3, lr=1e30), data)


def test_training_without_an_image_is_refused(data):
    with pytest.raises(UserError, match="no training image"):
        fit(small_backbone(), CONFIG, TrainConfig(), data._replace(items=[], images=[], labels=[]))
