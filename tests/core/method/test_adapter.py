"""Adapter files, their verification, and the import of published checkpoints."""

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mmrl_core.config import AdapterConfig
from mmrl_core.errors import Damaged, UserError
from mmrl_core.method.adapter import CARD, TENSORS, Adapter, load_adapter, save_adapter
from mmrl_core.method.published_checkpoints import implied_settings, published_method, read_published
from mmrl_core.method.shapes import tensor_shapes
from tests.core.method.test_golden import GOLDEN, golden_backbone
from tests.support.alter import alter_card, alter_tensors, replace_tensors
from tests.support.small import small_adapter, small_backbone

CONTENT = {"class_names": ["cat", "dog"], "template": "a {}."}


def raise_alpha(folder) -> None:
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps({**card, "adapter": {**card["adapter"], "alpha": 0.1}}))


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
        (raise_alpha, "does not match its own card_sha256"),
    ],
)
def test_missing_or_foreign_files_are_refused_with_what_to_do(saved, damage, message):
    damage(saved[0])
    with pytest.raises(UserError, match=message):
        load_adapter(saved[0], small_backbone())


def test_a_missing_file_and_another_backbone_are_no_verdict_on_the_adapter(saved):
    with pytest.raises(UserError) as refused:
        load_adapter(saved[0], small_backbone(seed=1))
    assert not isinstance(refused.value, Damaged)
    (saved[0] / TENSORS).unlink()
    with pytest.raises(UserError) as refused:
        load_adapter(saved[0], small_backbone())
    assert not isinstance(refused.value, Damaged)


def refused(folder) -> str:
    """What is said of an adapter that is damaged, in one line."""
    with pytest.raises(Damaged) as damage:
        load_adapter(folder, small_backbone())
    assert "\n" not in str(damage.value)
    return str(damage.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: card.update(class_names="cat"), "class_names"),
        (lambda card: card.update(class_names=["cat"]), "fewer than two classes"),
        (lambda card: card.update(class_names=["cat", "cat"]), "fewer than two classes"),
        (lambda card: card.update(class_names=["cat", 3]), "class_names"),
        (lambda card: card.update(class_names=["cat", ""]), "class_names"),
        (lambda card: card.pop("class_names"), "class_names"),
        (lambda card: card.update(template="a photo"), "template"),
        (lambda card: card.update(template=None), "template"),
        (lambda card: card.update(sha256="f" * 63), "sha256"),
        (lambda card: card.update(sha256=7), "sha256"),
        (lambda card: card.update(backbone="tiny"), "backbone"),
        (lambda card: card["backbone"].pop("sha256"), "backbone.sha256"),
        (lambda card: card["backbone"].pop("weights"), "backbone.weights"),
        (lambda card: card.update(adapter=[]), "adapter"),
        (lambda card: card["adapter"].update(method="clip"), "method"),
        (lambda card: card["adapter"].update(rep_dim=0), "rep_dim"),
        (lambda card: card["adapter"].update(alpha=float("nan")), "alpha"),
        (lambda card: card["adapter"].update(n_tokens=10**6), "n_tokens"),
        (lambda card: card["adapter"].update(insertion_depth=9), "insertion_depth 9 is beyond the 4 layers"),
        (lambda card: card.update(abstain=0.5), "abstain"),
        (lambda card: card.update(abstain={"confidence": "c", "keep": 0, "threshold": 0.5}), "abstain.keep"),
        (lambda card: card.update(abstain={"confidence": "c", "keep": 1, "threshold": float("inf")}), "threshold"),
        (lambda card: card.update(abstain={"confidence": "c", "keep": 1, "threshold": True}), "threshold"),
        (lambda card: card.update(abstain={"confidence": "c", "keep": 1}), "threshold"),
    ],
)
def test_a_card_of_right_sums_and_wrong_content_is_damaged(saved, change, message):
    alter_card(saved[0], change)
    assert message in refused(saved[0])


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "{", '{"schema_version": 0}', "\udc80"])
def test_a_card_that_is_no_document_is_damaged(saved, content):
    (saved[0] / CARD).write_bytes(content.encode(errors="surrogateescape"))
    refused(saved[0])


def test_a_card_with_text_that_is_no_unicode_is_damaged(saved):
    card = json.loads((saved[0] / CARD).read_text())
    (saved[0] / CARD).write_text(json.dumps({**card, "class_names": ["\ud800", "cat"]}))
    assert "half a surrogate pair" in refused(saved[0])


def test_a_card_of_a_later_release_is_no_damage(saved):
    card = json.loads((saved[0] / CARD).read_text())
    (saved[0] / CARD).write_text(json.dumps({**card, "schema_version": 2}))
    with pytest.raises(UserError, match="schema_version 2") as refused:
        load_adapter(saved[0], small_backbone())
    assert not isinstance(refused.value, Damaged)


def test_a_class_list_that_names_one_twice_loads(saved):
    alter_card(saved[0], lambda card: card.update(class_names=["crane", "crane", "cat"]))
    assert load_adapter(saved[0], small_backbone())[1]["class_names"] == ["crane", "crane", "cat"]


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors["space"].fill_(float("nan")),
        lambda tensors: tensors["text_aligner.bias"][-1].fill_(float("-inf")),
        lambda tensors: tensors.update(space=tensors["space"].to(torch.int64)),
        lambda tensors: tensors.update(space=tensors["space"].half()),
        lambda tensors: tensors.update(space=tensors["space"].double()),
        lambda tensors: tensors.update(space=tensors["space"].T),
        lambda tensors: tensors.update(space=tensors["space"][None]),
        lambda tensors: tensors.update(more=torch.zeros(1)),
        lambda tensors: tensors.pop("image_aligner.bias"),
        lambda tensors: tensors.clear(),
    ],
)
def test_tensors_of_right_sums_and_wrong_content_are_damaged(saved, change):
    alter_tensors(saved[0], change)
    assert "tensor" in refused(saved[0])


@pytest.mark.parametrize("end", [0, 7, 8, 100, -1])
def test_tensors_that_are_cut_short_are_damaged(saved, end):
    replace_tensors(saved[0], (saved[0] / TENSORS).read_bytes()[:end])
    assert "is not a safetensors file" in refused(saved[0])


@pytest.mark.parametrize("size", [10**9, 2**62, 10**30])
@pytest.mark.parametrize("key", ["rep_dim", "residual_rank", "projection_rank"])
def test_a_card_that_says_more_than_the_file_holds_is_refused_before_anything_is_built(tmp_path, key, size):
    adapter = small_adapter(small_backbone(), "mmrlpp")
    save_adapter(tmp_path, adapter, small_backbone(), CONTENT)
    alter_card(tmp_path, lambda card: card["adapter"].update({key: size}))
    assert str(size) in refused(tmp_path)


@pytest.mark.parametrize("method", ["mmrl", "mmrlpp"])
@pytest.mark.parametrize("depth", [1, 3])
def test_an_adapters_shapes_are_known_before_it_is_built(method, depth):
    backbone = small_backbone(4, 3)
    sizes = {"insertion_depth": depth, "n_tokens": 2, "rep_dim": 7, "residual_rank": 3, "projection_rank": 5}
    config = AdapterConfig(method=method, **sizes)
    built = {name: tuple(tensor.shape) for name, tensor in Adapter(config, backbone).state_dict().items()}
    assert tensor_shapes(config, backbone) == built


@pytest.mark.parametrize(
    ("card", "value", "message"),
    [({"class_names": ["cat"]}, 1.0, "fewer than two classes"), ({}, float("nan"), "space has values")],
)
def test_what_could_not_be_loaded_again_is_not_saved(tmp_path, card, value, message):
    adapter = small_adapter(small_backbone())
    with torch.no_grad():
        adapter.space[0, 0] = value
    with pytest.raises(UserError, match=message):
        save_adapter(tmp_path, adapter, small_backbone(), {**CONTENT, **card})
    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor.fill_(float("nan")), "no finite numbers"),
        (lambda tensor: tensor.to(torch.int32), "whole numbers"),
        (lambda tensor: tensor[:1, :1].clone().expand(tensor.shape), "no plain tensor"),
    ],
)
def test_a_checkpoint_of_wrong_values_is_refused(tmp_path, change, message):
    name, state = "representation_learner.compound_rep_tokens", published("mmrl")
    torch.save({"state_dict": {**state, name: change(state[name])}}, tmp_path / "model.pth.tar")
    adapter = Adapter(AdapterConfig(method="mmrl", insertion_depth=3, n_tokens=4, rep_dim=32), golden_backbone())
    with pytest.raises(UserError, match=message):
        adapter.load_published(read_published(tmp_path / "model.pth.tar"))
