"""Predictions by NumPy are those of PyTorch, of the same files, and nothing that was altered is read."""

import hashlib
import json
from pathlib import Path

import open_clip
import pytest
import safetensors.torch
from PIL import Image
from torch import nn

from mmrl_core.clip.backbone import load_backbone
from mmrl_core.errors import Damaged, UserError
from mmrl_core.light.predictor import FEW, LightPredictor
from mmrl_core.method.adapter import save_adapter
from mmrl_core.method.adapter_card import CARD, FOLDED, TENSORS, read_card
from mmrl_core.method.folded import tower_facts
from mmrl_core.method.shapes import TOWER
from mmrl_core.predict import Prediction, Predictor
from tests.core.data.odd_images import ODD
from tests.core.test_predict import TRAINED, noise, save_small
from tests.support.alter import alter_card, replace_tensors
from tests.support.small import KINDS, small_backbone, small_kind

CONTENT = {"class_names": TRAINED, "template": "a {}."}
IMAGES = [noise(0), noise(1), Image.linear_gradient("L").resize((50, 31)).convert("RGB"), Image.new("RGB", (7, 90))]
OWN = "light-own"
OWN_CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"layers": 3, "width": 32, "head_width": 8, "patch_size": 10, "image_size": 32},
    "text_cfg": {"width": 16, "heads": 2, "layers": 4},
    "quick_gelu": True,
}


def check_same(found: list[Prediction | None], expected: list[Prediction]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one and (one.label, list(one.probabilities)) == (other.label, list(other.probabilities))
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
        assert (one.probability, one.confidence) == pytest.approx((other.probability, other.confidence), abs=1e-5)


def alter_folded(folder: Path, change) -> None:
    """Other tensors and another header in folded.safetensors, and the card's digests with them."""
    content = (folder / FOLDED).read_bytes()
    tensors = safetensors.torch.load(content)
    facts = json.loads(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"][TOWER])
    change(tensors, facts)
    content = safetensors.torch.save(tensors, {TOWER: json.dumps(facts)})
    (folder / FOLDED).write_bytes(content)
    alter_card(folder, lambda card: card.update(folded_sha256=hashlib.sha256(content).hexdigest()))


@pytest.fixture
def folder(tmp_path) -> Path:
    save_small(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", ["mmrl", "mmrlpp", *KINDS])
def test_every_method_and_baseline_predicts_as_it_does_in_pytorch(tmp_path, kind):
    backbone = load_backbone("tiny")
    save_adapter(tmp_path, small_kind(backbone, kind, 3), backbone, CONTENT)
    light, heavy = LightPredictor.load(tmp_path), Predictor.load(tmp_path)
    check_same(list(light.stream(IMAGES)), heavy.predict(IMAGES))
    names = ["six", "two"]
    assert light.cut_note(names) == heavy.cut_note(names)
    check_same(list(LightPredictor.load(tmp_path, names).stream(IMAGES, names)), heavy.predict(IMAGES, names))


@pytest.mark.parametrize("kind", ["mmrlpp", "linear_probe"])
def test_of_a_head_that_counts_nothing_and_of_one_layer_with_tokens_the_same_is_said(tmp_path, kind):
    backbone = load_backbone("tiny")
    settings = {"insertion_depth": 6} if kind == "mmrlpp" else {}
    adapter = small_kind(backbone, kind, 3, **settings)
    if adapter.head_card:
        adapter.head_card |= {"adapter_weight": 0.5, "head_weight": 0.0}
    save_adapter(tmp_path, adapter, backbone, CONTENT)
    check_same(list(LightPredictor.load(tmp_path).stream(IMAGES)), Predictor.load(tmp_path).predict(IMAGES))


def test_two_trained_classes_may_have_one_name(tmp_path):
    save_small(tmp_path, class_names=["missile", "crane", "missile", "wren"])
    for names in (None, ["wren", "missile"], ["missile", "missile", "missile", "crane"]):
        found = list(LightPredictor.load(tmp_path, names).stream(IMAGES, names))
        check_same(found, Predictor.load(tmp_path).predict(IMAGES, names))


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_own_weights_in_a_safetensors_file_are_read_as_pytorch_reads_them(tmp_path, precision):
    write_own(tmp_path, precision)
    backbone = load_backbone(OWN, str(tmp_path / "own.safetensors"))
    save_adapter(tmp_path, small_kind(backbone, "mmrlpp + probe", 3), backbone, CONTENT)
    check_same(list(LightPredictor.load(tmp_path).stream(IMAGES)), Predictor.load(tmp_path).predict(IMAGES))


def write_own(folder: Path, precision: str = "float32") -> None:
    (folder / f"{OWN}.json").write_text(json.dumps(OWN_CONFIG))
    open_clip.add_model_config(folder / f"{OWN}.json")
    state = open_clip.create_model(OWN).state_dict()
    state = {name: tensor.half() if precision == "float16" else tensor for name, tensor in state.items()}
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in state.items()},
                                folder / "own.safetensors")  # fmt: skip


def test_other_weights_than_the_cards_are_left_to_pytorch_which_refuses_them(tmp_path):
    write_own(tmp_path)
    backbone = load_backbone(OWN, str(tmp_path / "own.safetensors"))
    save_adapter(tmp_path, small_kind(backbone, "mmrl", 3), backbone, CONTENT)
    write_own(tmp_path)  # drawn anew
    assert LightPredictor.load(tmp_path) is None
    with pytest.raises(UserError, match="was trained on backbone"):
        Predictor.load(tmp_path)
    (tmp_path / "own.safetensors").write_bytes(b"torn")
    assert LightPredictor.load(tmp_path) is None


def test_what_is_left_to_pytorch(folder):
    assert LightPredictor.load(folder, images=FEW) and LightPredictor.load(folder, images=FEW + 1) is None
    for names in (["two", "seven"], ["seven"], ["two"], ["two", "two"]):
        assert LightPredictor.load(folder, names) is None
    (folder / FOLDED).unlink()
    assert LightPredictor.load(folder) is None
    alter_card(folder, lambda card: card.pop("folded_sha256"))  # as an older release wrote it
    assert LightPredictor.load(folder) is None
    assert Predictor.load(folder).predict(IMAGES)


def test_tiny_as_an_earlier_release_drew_it_is_left_to_pytorch(folder):
    alter_card(folder, lambda card: card["backbone"].update(sha256="a" * 64))
    assert LightPredictor.load(folder) is None


def test_the_adapters_own_files_do_not_depend_on_the_third(folder):
    (folder / FOLDED).write_bytes(b"")
    assert Predictor.load(folder).predict(IMAGES)
    with pytest.raises(Damaged, match=r"folded\.safetensors is not a safetensors file"):
        LightPredictor.load(folder)


@pytest.mark.parametrize("name", [TENSORS, CARD])
def test_a_damaged_adapter_is_refused_in_the_words_of_pytorchs_way(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[-20] ^= 1
    (folder / name).write_bytes(content)
    refused = []
    for way in (Predictor, LightPredictor):
        with pytest.raises(Damaged) as error:
            way.load(folder)
        refused.append(str(error.value))
    assert refused[0] == refused[1]


def test_tensors_that_the_card_does_not_ask_for_are_refused_as_by_pytorch(folder):
    alter_card(folder, lambda card: card["adapter"].update(n_tokens=4))
    for way in (Predictor, LightPredictor):
        with pytest.raises(Damaged, match="as tensor space where card and backbone ask for"):
            way.load(folder)
    replace_tensors(folder, b"")
    for way in (Predictor, LightPredictor):
        with pytest.raises(Damaged, match="is not a safetensors file"):
            way.load(folder)


def test_an_absent_adapter_is_asked_for(folder):
    (folder / TENSORS).unlink()
    with pytest.raises(UserError, match="cannot be read"):
        LightPredictor.load(folder)
    with pytest.raises(UserError, match="does not exist; run `mmrl train`"):
        LightPredictor.load(folder / "nowhere")


def test_one_changed_value_of_the_third_file_is_refused(folder):
    content = bytearray((folder / FOLDED).read_bytes())
    content[-3] ^= 1
    (folder / FOLDED).write_bytes(content)
    with pytest.raises(Damaged, match=r"folded\.safetensors does not match the sha256 in its card"):
        LightPredictor.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, facts: tensors.pop("tokens"), "has nothing as tensor tokens where card and backbone ask"),
        (lambda tensors, facts: tensors.update(tokens=tensors["tokens"][:1].clone()), "as tensor tokens where"),
        (lambda tensors, facts: tensors["text_features"].fill_(float("nan")), "text_features .* no finite numbers"),
        (lambda tensors, facts: facts.pop("eps"), "other entries"),
        (lambda tensors, facts: facts.update(heads=7), "so many heads"),
        (lambda tensors, facts: facts.update(heads=0), "so many heads"),
        (lambda tensors, facts: facts.update(size=10**9), "such a size"),
        (lambda tensors, facts: facts.update(eps=float("nan")), "eps is no small number"),
        (lambda tensors, facts: facts.update(activation="ReLU"), "activation: "),
        (lambda tensors, facts: facts.update(resize_mode="squint"), "resize_mode 'squint', which is not supported"),
        (lambda tensors, facts: facts.update(std=[0.0, 1.0, 1.0]), "std is .*, not three numbers"),
    ],
)
def test_a_third_file_that_somebody_made_is_refused_where_it_fits_no_adapter(folder, change, message):
    alter_folded(folder, change)
    with pytest.raises(Damaged, match=message):
        LightPredictor.load(folder)


def test_a_tower_of_another_make_has_no_third_file(tmp_path):
    backbone = small_backbone(seed=5)
    visual = backbone.visual
    assert tower_facts(backbone)
    for owner, name, other in ((visual, "ln_pre", nn.Identity()), (backbone.image_blocks[0], "ls_1", nn.ReLU())):
        kept = getattr(owner, name)
        setattr(owner, name, other)
        assert tower_facts(backbone) is None
        setattr(owner, name, kept)


def test_classes_that_make_one_prompt_are_saved_without_the_third_file(tmp_path):
    save_small(tmp_path, class_names=["polar_bear", "polar bear"])
    assert "folded_sha256" not in read_card(tmp_path) and not (tmp_path / FOLDED).exists()


def test_the_third_file_is_the_same_whenever_it_is_made(tmp_path):
    for name in ("one", "other"):
        save_small(tmp_path / name)
    assert (tmp_path / "one" / FOLDED).read_bytes() == (tmp_path / "other" / FOLDED).read_bytes()
    digest = hashlib.sha256((tmp_path / "one" / FOLDED).read_bytes()).hexdigest()
    assert read_card(tmp_path / "one")["folded_sha256"] == digest


def test_a_damaged_image_stops_with_its_name_or_gives_none_if_asked(folder):
    (folder / "torn.png").write_bytes(noise(0)[:40])
    light, images = LightPredictor.load(folder), [noise(0), folder / "torn.png", b"text", noise(1)]
    with pytest.raises(UserError, match=r"torn\.png"):
        list(light.stream(images))
    assert [one is None for one in light.stream(images, skip_damaged=True)] == [False, True, True, False]


@pytest.mark.parametrize("name", ODD)
def test_odd_images_are_seen_alike(odd, name):
    light, heavy = odd
    image = ODD[name](Image.linear_gradient("L").resize((40, 30)).convert("RGB"))
    check_same(list(light.stream([image])), heavy.predict([image]))


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> tuple[LightPredictor, Predictor]:
    folder = tmp_path_factory.mktemp("adapter")
    save_small(folder)
    return LightPredictor.load(folder), Predictor.load(folder)
