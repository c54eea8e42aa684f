"""Whatever has a head, a baseline or an adapter with a probe: its logits are the formula's on every way to them, and it
comes back from its files bit for bit."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmrl_core.clip.backbone import load_backbone
from mmrl_core.clip.feature_store import FeatureStore
from mmrl_core.data.shards import Example
from mmrl_core.errors import Damaged, UserError
from mmrl_core.evaluation.scores import UNCALIBRATED, WITHOUT_PROBE, score, score_each
from mmrl_core.method.adapter import Adapter, load_adapter, save_adapter
from mmrl_core.method.adapter_card import CARD, TENSORS, card_sha256
from mmrl_core.method.folded import FoldedCLIP
from mmrl_core.method.joint_logits import joint_logits
from mmrl_core.method.model import AdaptedCLIP
from mmrl_core.predict import Predictor
from tests.core.test_predict import noise
from tests.support.alter import alter_tensors
from tests.support.small import KINDS, random_images, small_backbone, small_kind

NAMES = ["two", "four", "six", "two"]
TEMPLATE = "a {}."
CONTENT = {"class_names": NAMES, "template": TEMPLATE}
LISTS = [
    (NAMES, [0, 1, 2, 3]),
    (["six", "two"], [2, 0]),
    (["two", "cat", "six", "two", "dog"], [0, -1, 2, 3, -1]),
    (["cat", "dog"], [-1, -1]),
]
IMAGES = random_images(3)


@torch.no_grad()
def plain(model: AdaptedCLIP, images: Tensor, columns: list[int]) -> np.ndarray:
    """The probabilities (B, C) by the formula, from the cards' entries and the frozen CLIP's own features."""
    adapter, card = model.adapter, model.adapter.head_card
    output, frozen = model(images), model.backbone.encode_image(images).numpy().astype(np.float64)
    own = by_class = (100 * frozen @ model.zero_shot_text.numpy().T).astype(np.float64)
    if isinstance(adapter, Adapter):
        own, by_class = output.logits_fused.numpy().astype(np.float64), output.logits_class.numpy().astype(np.float64)
    if card["kind"] == "linear":
        head = frozen @ adapter.head.weight.numpy().T + adapter.head.bias.numpy()
    else:
        one_hot = np.repeat(np.eye(len(card["rows"])), card["rows"], axis=0)
        head = np.exp(-card["sharpness"] * (1 - frozen @ adapter.head.keys.numpy().T)) @ one_hot
    ours = [place for place, column in enumerate(columns) if column >= 0]
    logits = by_class / adapter.calibration["other"]
    trained = card["adapter_weight"] * own[:, ours] + card["head_weight"] * head[:, [columns[place] for place in ours]]
    kind = exp(logits)[:, ours].sum(-1, keepdims=True) / exp(logits).sum(-1, keepdims=True)
    probabilities = exp(logits) / exp(logits).sum(-1, keepdims=True)
    within = exp(trained / adapter.calibration["trained"])
    probabilities[:, ours] = kind * within / within.sum(-1, keepdims=True)
    return probabilities


def exp(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits - logits.max(-1, keepdims=True, initial=-1e9))


def on(kind: str, names: list[str]) -> AdaptedCLIP:
    return AdaptedCLIP(small_backbone(), small_kind(small_backbone(), kind, len(NAMES)), names, TEMPLATE).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("names", "columns"), LISTS)
@torch.no_grad()
def test_the_model_and_its_folded_form_give_the_formulas_probabilities(kind, names, columns):
    model = on(kind, names)
    expected = plain(model, IMAGES, columns)
    for one in (model, FoldedCLIP.from_model(model)):
        found = joint_logits(one(IMAGES), torch.tensor(columns), model.adapter.weights).softmax(-1)
        assert found.numpy() == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_the_formulas_and_say_what_there_is_without_temperature_and_probe(kind):
    names, columns = LISTS[2]
    model = on(kind, names)
    examples = [Example(f"k{i}", f"{i}.png", i, "", noise(i)) for i in range(3)]
    scores = score(model, examples, [0, 7, 2, 1, 8], {0: 0, 2: 2, 1: 3})
    images = torch.stack([Predictor(on(kind, NAMES), card()).view(noise(i), "noise") for i in range(3)])
    assert scores.adapted.numpy() == pytest.approx(plain(model, images, columns), abs=2e-5)
    calibration, model.adapter.calibration = model.adapter.calibration, {"trained": 1.0, "other": 1.0, "images": 8}
    uncalibrated = plain(model, images, columns)
    assert scores.variants[UNCALIBRATED].numpy() == pytest.approx(uncalibrated, abs=2e-5)
    if not isinstance(model.adapter, Adapter):
        assert scores.variants.keys() == {UNCALIBRATED}
        return
    model.adapter.head_card.update(adapter_weight=1.0, head_weight=0.0)
    model.adapter.calibration = {**calibration, "trained": calibration["without_probe"]}
    assert scores.variants[WITHOUT_PROBE].numpy() == pytest.approx(plain(model, images, columns), abs=2e-5)


def card() -> dict:
    return {**CONTENT, "sha256": "0" * 64, "backbone": {"sha256": "its own"}}


def test_all_kinds_scored_together_get_the_bits_that_each_gets_alone(tmp_path):
    models = [on(kind, NAMES) for kind in (*KINDS, "mmrl")]
    examples = [Example(f"k{i}", f"{i}.png", i % 4, "", noise(i)) for i in range(7)]
    alone = [score(model, examples, [0, 1, 2, 3], [1, 0, 2]) for model in models]
    for store in (None, FeatureStore(tmp_path, 1e9, depth=2), FeatureStore(tmp_path, 1e9)):
        for one, other in zip(alone, score_each(models, examples, [0, 1, 2, 3], [1, 0, 2], store=store), strict=True):
            assert one.adapted.equal(other.adapted) and one.variants.keys() == other.variants.keys()
            assert all(one.variants[name].equal(tensor) for name, tensor in other.variants.items())


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_what_is_saved_and_loaded_predicts_the_same_bits(kind, tmp_path):
    backbone = small_backbone()
    adapter = small_kind(backbone, kind, len(NAMES))
    document = save_adapter(tmp_path, adapter, backbone, CONTENT)
    loaded, found = load_adapter(tmp_path, backbone)
    assert found == {"schema_version": 1, **document} and loaded.weights == adapter.weights
    assert (loaded.head_card, loaded.calibration) == (adapter.head_card, adapter.calibration)
    assert found["trainable"] == adapter.n_trainable == loaded.n_trainable
    for names, columns in LISTS:
        models = [AdaptedCLIP(backbone, one, names, TEMPLATE).eval() for one in (adapter, loaded)]
        for form in (lambda model: model, FoldedCLIP.from_model):
            one, other = (joint_logits(form(model)(IMAGES), torch.tensor(columns), model.adapter.weights)
                          for model in models)  # fmt: skip
            assert one.equal(other)
    save_adapter(tmp_path / "again", loaded, backbone, CONTENT)
    for name in (CARD, TENSORS):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.fixture(scope="module")
def tiny():
    return load_backbone("tiny")


@pytest.mark.parametrize("kind", ["mmrlpp + probe", "tip_adapter"])
@torch.inference_mode()
def test_a_predictor_gives_the_formulas_probabilities_for_any_list_of_classes(kind, tiny, tmp_path):
    save_adapter(tmp_path, small_kind(tiny, kind, len(NAMES)), tiny, CONTENT)
    predictor = Predictor.load(tmp_path)
    predictor.check_answers()
    view = predictor.view(noise(0), "noise")[None]
    for names, columns in LISTS:
        [found] = predictor.predict([noise(0)], names)
        model = AdaptedCLIP(tiny, small_kind(tiny, kind, len(NAMES)), names, TEMPLATE).eval()
        expected = dict.fromkeys(names, 0.0)
        for name, value in zip(names, plain(model, view, columns)[0], strict=True):
            expected[name] += value
        assert found.probabilities == pytest.approx(expected, abs=1e-4)
        assert found.label == max(expected, key=expected.get)


def test_temperatures_change_no_class_of_either_kind():
    for kind in KINDS:
        model = on(kind, NAMES)
        before = joint_logits(model(IMAGES), torch.arange(4), model.adapter.weights).argmax(-1)
        model.adapter.calibration = {"trained": 8.0, "other": 1.0, "images": 8}
        assert joint_logits(model(IMAGES), torch.arange(4), model.adapter.weights).argmax(-1).equal(before)


def test_a_baseline_counts_what_its_head_holds_and_refuses_a_backbone_of_other_widths():
    baseline = small_kind(small_backbone(), "linear_probe", 4)
    assert baseline.n_trainable == 4 * 32 + 4 and not list(baseline.parameters())
    with pytest.raises(UserError, match="made for image_width 64 but backbone small has 32"):
        AdaptedCLIP(small_backbone(image_width=32), baseline, NAMES, TEMPLATE)
    assert AdaptedCLIP(small_backbone(), baseline, NAMES, TEMPLATE).adapters == []


def test_a_baselines_image_costs_the_frozen_towers_features_alone():
    model = on("tip_adapter", NAMES)
    output = model(IMAGES)
    assert output.image_features is output.rep_features
    torch.testing.assert_close(output.image_features, small_backbone().encode_image(IMAGES), atol=2e-6, rtol=0)
    assert F.normalize(output.text_features, dim=-1).equal(F.normalize(model.zero_shot_text, dim=-1))


@pytest.mark.parametrize("kind", ["mmrl + probe", "linear_probe", "tip_adapter"])
def test_a_head_whose_logits_overflow_answers_with_no_number_and_is_told_of(kind, tiny, tmp_path):
    save_adapter(tmp_path, small_kind(tiny, kind, len(NAMES)), tiny, CONTENT)

    def overflow(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if name.startswith("head."):
                tensor.mul_(1e38).clamp_(-3e38, 3e38)

    alter_tensors(tmp_path, overflow)
    with pytest.raises(Damaged, match="answers with what is no number"):
        Predictor.load(tmp_path).check_answers()


@pytest.mark.parametrize("method", ["mmrl", "mmrlpp"])
def test_a_card_from_before_there_were_heads_loads_as_it_did(method, tmp_path):
    backbone = small_backbone()
    adapter = small_kind(backbone, method)
    save_adapter(tmp_path, adapter, backbone, CONTENT)
    path = tmp_path / CARD
    written = json.loads(path.read_text())
    assert written["head"] is written["calibration"] is None

    older = {key: value for key, value in written.items() if key not in ("head", "calibration")}
    del older["adapter"]["probe"]
    path.write_text(json.dumps({**older, "card_sha256": card_sha256(older)}))
    loaded, _ = load_adapter(tmp_path, backbone)
    assert (loaded.head, loaded.calibration, loaded.config.probe) == (None, None, "off")
    one, other = (AdaptedCLIP(backbone, each, NAMES, TEMPLATE)(IMAGES).logits_fused for each in (adapter, loaded))
    assert one.equal(other)
