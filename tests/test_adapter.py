"""Adapter files, their verification, and the import of published checkpoints."""

import pickle

import pytest
import torch
from safetensors.torch import load_file

from mmrl_core.adapter import CARD, TENSORS, load_adapter, save_adapter
from mmrl_core.errors import UserError
from mmrl_core.published import implied_settings, published_method, read_published
from tests.small import small_adapter, small_backbone
from tests.test_golden import GOLDEN, golden_backbone

CONTENT = {"class_names": ["cat", "dog"], "template": "a {}."}


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
        (lambda folder: (folder / TENSORS).unlink(), "does not exist; run `mmrl train`"),
        (lambda folder: (folder / CARD).write_text("{"), "not valid JSON"),
        (lambda folder: (folder / CARD).write_text('{"schema_version": 99}'), "schema_version 99"),
        (lambda folder: (folder / CARD).write_text('{"schema_version": 1}'), "does not describe an adapter"),
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


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was read",))

    path = tmp_path / "model.pth.tar"
    torch.save({"state_dict": Trap()}, path)
    with pytest.raises(UserError, match="cannot be read as a checkpoint of plain tensors"):
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
