"""Adapter files, their verification, and the import of published checkpoints."""

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mmrl_core.errors import UserError
from mmrl_core.method.adapter import CARD, TENSORS, load_adapter, save_adapter
from mmrl_core.method.published_checkpoints import implied_settings, published_method, read_published
from tests.core.method.test_golden import GOLDEN, golden_backbone
from tests.support.small import small_adapter, small_backbone

CONTENT = {"class_names": ["cat", "dog"], "template": "a {}."}


def alter_card(folder, alpha: float) -> None:
    card = json.loads((folder / CARD).read_text())
    card["adapter"]["alpha"] = alpha
    (folder / CARD).write_text(json.dumps(card))


@pytest.fixture(params=["mmrl", "mmrlpp"])
def saved(request, tmp_path):
    adapter = small_adapter(small_backbone(), request.param)
    save_adapter(tmp_path, adapter, small_backbone(), CONTENT)
    return tmp_path, adapter


def test_an_adapter_comes_back_from_its_files_bit_for_bit(saved):
    folder, adapter = saved
    loaded, card = load_adapter(folder, small_backbone())
    assert loaded.config == adapter.config
    assert card["class_names"] == CONTENT["class_names"]
    assert loaded.state_dict().keys() == adapter.state_dict().keys()
    assert all(torch.equal(tensor, adapter.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def test_equal_adapters_give_equal_bytes(saved, tmp_path):
    folder, adapter = saved
    save_adapter(tmp_path / "again", adapter, small_backbone(), CONTENT)
    for name in (TENSORS, CARD):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_nothing_in_the_tensors_depends_on_the_class_list(saved):
    folder, adapter = saved
    assert load_file(folder / TENSORS).keys() == dict(adapter.named_parameters()).keys()


def test_an_adapter_of_another_backbone_is_refused(saved):
    with pytest.raises(UserError, match="was trained on backbone small with weights"):
        load_adapter(saved[0], small_backbone(seed=1))


def test_an_altered_adapter_is_refused(saved):
    path = saved[0] / TENSORS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="does not match the sha256"):
        load_adapter(saved[0], small_backbone())


def test_a_pickle_in_place_of_safetensors_is_refused_unread(saved):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was read",))

    (saved[0] / TENSORS).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match="not a safetensors file"):
        load_adapter(saved[0], small_backbone())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / CARD).unlink(), "does not exist; run `mmrl train`"),
        (lambda folder: (folder / TENSORS).unlink(), "cannot be read .*; run `mmrl train`"),
        (lambda folder: (folder / CARD).write_text("{"), "not valid JSON"),
        (lambda folder: (folder / CARD).write_text('{"schema_version": 99}'), "schema_version 99"),
        (lambda folder: (folder / CARD).write_text('{"schema_version": 1}'), "does not describe an adapter"),
        (lambda folder: alter_card(folder, alpha=0.1), "does not match its own card_sha256"),
    ],
)
def test_missing_or_foreign_files_are_refused_with_what_to_do(saved, damage, message):
    damage(saved[0])
    with pytest.raises(UserError, match=message):
        load_adapter(saved[0], small_backbone())


def published(method: str) -> dict[str, torch.Tensor]:
    tensors = load_file(GOLDEN / f"{method}.safetensors")
    return {name.removeprefix("init."): value for name, value in tensors.items() if name.startswith("init.")}


@pytest.mark.parametrize("method", ["mmrl", "mmrlpp"])
def test_a_published_checkpoint_tells_its_method_and_settings(method, tmp_path):
    path = tmp_path / "model.pth.tar-10"
    frozen = {"image_encoder.conv1.weight": torch.zeros(1)}
    torch.save({"state_dict": {**published(method), **frozen}, "epoch": 10}, path)
    state = read_published(path)
    settings = implied_settings(state, golden_backbone().depth)
    assert published_method(state) == method
    assert (settings["n_tokens"], settings["rep_dim"], settings["insertion_depth"]) == (4, 32, 3)
    if method == "mmrlpp":
        assert (settings["residual_rank"], settings["projection_rank"]) == (4, 8)


def test_what_lies_beside_the_tensors_of_a_checkpoint_is_neither_needed_nor_run(tmp_path):
    """The authors' trainer saves its optimiser and a scheduler object beside the state dict."""
    path, optimizer = tmp_path / "model.pth.tar", torch.optim.SGD([torch.zeros(1)])
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    beside = {"scheduler": {"successor": scheduler}, "optimizer": optimizer.state_dict(), "val_result": np.float64(0.5)}
    torch.save({"state_dict": published("mmrl"), "epoch": 10, **beside}, path)
    assert read_published(path).keys() == published("mmrl").keys()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "model.pth.tar"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is no checkpoint of plain tensors"):
        read_published(path)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was read",))

    path = tmp_path / "model.pth.tar"
    torch.save({"state_dict": Trap()}, path)
    with pytest.raises(UserError, match="is no checkpoint of plain tensors"):
        read_published(path)


def test_a_checkpoint_with_a_layer_missing_is_refused():
    state = published("mmrl")
    del state["representation_learner.compound_rep_tokens_r2vproj.1.weight"]
    with pytest.raises(UserError, match=r"has layers \[0, 2\]"):
        small_adapter(small_backbone()).load_published(state)


def test_a_checkpoint_of_other_shapes_is_refused():
    with pytest.raises(
        UserError, match=r"adapter tensor space is \(3, 24\) but the published checkpoint has \(4, 32\)"
    ):
        small_adapter(small_backbone()).load_published(published("mmrl"))
