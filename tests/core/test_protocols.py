"""The protocols as data, and the published settings that go with each."""

import pytest

from flows.settings.params import Params
from flows.settings.resolve import target_beta
from mmrl_core.errors import UserError
from mmrl_core.presets import published
from mmrl_core.protocols import PROTOCOLS, labels_of

MATRIX = {"datasets": ["digits"], "methods": ["mmrl"], "shots": [16], "seeds": [1]}


def params(protocol: str, **changes) -> Params:
    return Params.model_validate({**MATRIX, "data": {"protocol": protocol}, **changes})


def test_the_settings_know_the_protocols_that_there_are():
    for name, protocol in PROTOCOLS.items():
        targets = ["letters"] if protocol.has_targets else []
        assert params(name, targets=targets).data.protocol == name


def test_base_to_novel_and_joint_train_on_base_classes_and_differ_in_the_classes_to_choose_from():
    apart, joint = PROTOCOLS["base-to-novel"], PROTOCOLS["joint"]
    assert apart.trains_on == joint.trains_on == ("base",)
    assert [test.classes for test in apart.tests] == [("base",), ("novel",)]
    assert [test.classes for test in joint.tests] == [("base", "novel")] * 2
    assert [test.images for test in joint.tests] == [("base",), ("novel",)]


def test_protocols_that_train_alike_say_so_and_others_do_not():
    training = {name: str(protocol.training) for name, protocol in PROTOCOLS.items()}
    assert training["base-to-novel"] == training["joint"]
    assert training["cross-dataset"] == training["domain-generalization"]
    assert len(set(training.values())) == 3


def test_the_labels_of_several_halves_are_in_order():
    assert labels_of({"base": [0, 3], "novel": [1, 2]}, ("base", "novel")) == [0, 1, 2, 3]


@pytest.mark.parametrize(("protocol", "changes", "message"), [
    ("cross-dataset", {}, "name the datasets to test on in targets"),
    ("few-shot", {"targets": ["letters"]}, "few-shot, which has no targets"),
    ("cross-dataset", {"targets": ["digits"]}, "digits is both in datasets and in targets"),
])  # fmt: skip
def test_targets_that_do_not_fit_the_protocol_are_refused(protocol, changes, message):
    with pytest.raises(ValueError, match=message):
        params(protocol, **changes)


@pytest.mark.parametrize(("dataset", "method", "protocol", "batch", "epochs", "lr", "warmup"), [
    ("dtd", "mmrl", "base-to-novel", 4, 10, 1e-3, 1),
    ("dtd", "mmrlpp", "joint", 4, 10, 1e-3, 1),
    ("imagenet", "mmrlpp", "base-to-novel", 32, 5, 1e-3, 1),
    ("imagenet", "mmrlpp", "few-shot", 32, 5, 1e-3, 1),
    ("dtd", "mmrl", "few-shot", 32, 50, 1e-3, 1),
    ("dtd", "mmrlpp", "few-shot", 32, 100, 2e-3, 1),
    ("imagenet", "mmrl", "cross-dataset", 32, 1, 1e-3, 0),
    ("imagenet", "mmrlpp", "domain-generalization", 32, 1, 1e-3, 0),
])  # fmt: skip
def test_the_published_schedule_of_each_protocol(dataset, method, protocol, batch, epochs, lr, warmup):
    found = published(dataset, method, 12, protocol)
    assert found["train.batch_size"] == batch and found["train.epochs"] == epochs
    assert found["train.lr"] == lr and found["train.warmup_epochs"] == warmup


@pytest.mark.parametrize(("method", "weight"), [("mmrl", 0.5), ("mmrlpp", 0.1)])
def test_transfer_from_imagenet_has_a_weight_and_a_beta_of_its_own(method, weight):
    found = published("imagenet", method, 12, "cross-dataset")
    assert found["adapter.reg_weight"] == weight and found["adapter.beta"] == 0.9


@pytest.mark.parametrize(("target", "beta"), [
    ("imagenetv2", 0.9), ("imagenet_r", 0.9), ("imagenet_a", 0.8), ("imagenet_sketch", 0.7), ("fgvc_aircraft", 0.9),
    ("ucf101", 0.9), ("sun397", 0.7), ("oxford_pets", 0.6), ("caltech101", 0.6), ("describable_textures", 0.5),
    ("flowers102", 0.4), ("stanford_cars", 0.3), ("eurosat", 0.3), ("food101", 0.3), ("letters", None),
])  # fmt: skip
def test_beta_by_target_is_used_only_where_it_is_asked_for(target, beta):
    per_target = params("cross-dataset", targets=["letters"], preset="published-per-target")
    assert target_beta(per_target, "mmrlpp", target) == beta
    assert target_beta(per_target, "mmrl", target) is None
    assert target_beta(params("cross-dataset", targets=["letters"]), "mmrlpp", target) is None
    fixed = params("cross-dataset", targets=["letters"], preset="published-per-target", adapter={"beta": 0.5})
    assert target_beta(fixed, "mmrlpp", target) is None


def test_an_unknown_protocol_names_the_known_ones(tmp_path):
    from flows.settings.params import load_params

    (tmp_path / "params.yaml").write_text(f"{ {**MATRIX, 'data': {'protocol': 'few_shot'}} }")
    with pytest.raises(
        UserError,
        match=r"data\.protocol is 'few_shot', which cannot be: choose one of .*, joint; did you mean few-shot",
    ):
        load_params(tmp_path / "params.yaml")
