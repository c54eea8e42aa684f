"""Every architecture of open_clip that is accepted, cut to two layers with random weights: its encoders are
open_clip's, adapted it is the plain model, its adapters save and load, and its ONNX file agrees.
"""

import collections
import functools

import open_clip
import pytest
import torch

from mmrl_core.clip.backbone import Backbone
from mmrl_core.clip.text_tower import text_tower
from mmrl_core.clip.towers import ImageTower
from mmrl_core.export import export_onnx
from mmrl_core.method.adapter import load_adapter, save_adapter
from mmrl_core.method.losses import mmrl_loss
from mmrl_core.method.model import AdaptedCLIP
from mmrl_core.predict import Predictor
from tests.oracle import Oracle
from tests.support.architectures import accepted, cut, form_of, problems
from tests.support.small import CLASSES, random_images, small_adapter

ENCODERS, ADAPTED = 1e-5, 5e-5  # of features; relative
GRADIENTS = 1e-4  # relative
LOW_PRECISION = 2e-3  # what the cosine of a feature in bf16 and in float32 falls short of 1
DISTINCT = 0.9999  # what the cosine of two images' or classes' features stays below
MOVED = 20 * ADAPTED  # what tokens change at least
AT_LEAST, AT_LEAST_WITH_WEIGHTS = 90, 70
CASES = [("mmrl", 1, "a {}."), ("mmrlpp", 1, "{} in the rain"), ("mmrlpp", 2, "a {}.")]  # method, depth, template
LABELS = torch.tensor([0, 3, 5])
# An export takes seconds, and class features are constants in the file: one of every kind of image tower in CI, all
# forms in the endurance tests.
EXPORTED = ["ViT-L-14-CLIPA", "coca_ViT-B-32", "EVA02-B-16", "PE-Core-B-16", "ViT-B-16-SigLIP", "ViTamin-B"]
# Causal, without a first token, not causal and padded, with a class row; RoBERTa, mT5, NLLB.
OF_TEXTS = [
    "ViT-B-16", "ViT-L-14-worldwide", "ViT-B-16-SigLIP", "MobileCLIP2-L-14", "coca_ViT-B-32",
    "xlm-roberta-base-ViT-B-32", "mt5-base-ViT-B-32", "nllb-clip-base",
]  # fmt: skip


@functools.cache
def backbone_of(form: str) -> Backbone:
    clip, tokenizer = cut(form)
    return Backbone.from_clip(clip, name="cut", tokenizer=tokenizer)


def images_for(backbone: Backbone) -> torch.Tensor:
    return random_images(3, backbone.image_size)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().abs().max() / b.detach().abs().max())


def test_most_architectures_are_accepted_and_what_is_refused_says_why():
    with_weights = {name for name, _ in open_clip.list_pretrained()}
    reasons = collections.defaultdict(list)
    for name, problem in problems().items():
        reasons[problem].append(name)
    taken = reasons.pop(None)
    print(f"{len(taken)} of {len(problems())} architectures accepted, {len(with_weights & {*taken})} of "
          f"{len(with_weights)} with published weights")  # fmt: skip
    for problem, names in reasons.items():
        print(f"  {len(names)} refused, {problem}: {', '.join(names)}")
    assert len(taken) >= AT_LEAST and len(with_weights & {*taken}) >= AT_LEAST_WITH_WEIGHTS


@pytest.mark.parametrize("name", accepted())
def test_its_encoders_are_open_clips_own(name):
    clip, tokenizer = cut(form_of(name))
    backbone = Backbone.from_clip(clip, name=name, tokenizer=tokenizer)
    images, template = images_for(backbone), "a {}."
    with torch.no_grad():
        by_image = clip.encode_image(images, normalize=True)
        by_text = clip.encode_text(backbone.tokenize(CLASSES, template), normalize=True)
    assert all((one @ one.T).tril(-1).max() < DISTINCT for one in (by_image, by_text))
    assert torch.allclose(backbone.encode_image(images), by_image, rtol=0, atol=ENCODERS)
    assert torch.allclose(backbone.encode_text(CLASSES, template), by_text, rtol=0, atol=ENCODERS)


FORMS = {form_of(name): name for name in reversed(accepted())}


@pytest.mark.parametrize("name", FORMS.values())
def test_towers_walked_without_tokens_are_open_clips_own(name):
    backbone = backbone_of(form_of(name))
    images, template = images_for(backbone), "{} in the rain"
    oracle = Oracle(backbone.clip, backbone.tokenizer, small_adapter(backbone), CLASSES, template)
    expected = oracle.zero_shot(images)
    oracle.n_insert = 0  # the plain model's walk as well
    plain = torch.nn.functional.normalize(
        oracle.image.project(oracle.image.pool(oracle.walk(oracle.image, images, "")[0]))
    )
    for found, features in zip((plain, oracle.text_features()), expected, strict=True):
        assert torch.allclose(found, features, rtol=0, atol=ENCODERS)
    for n_insert in (1, 2):
        tower = ImageTower(backbone, n_insert)
        assert torch.allclose(tower.zero_shot(tower.trunk(images)), expected[0], rtol=0, atol=ENCODERS)
        tower = text_tower(backbone, CLASSES, template, n_insert)
        assert torch.allclose(tower.zero_shot(), expected[1], rtol=0, atol=ENCODERS)


KINDS = dict.fromkeys([*EXPORTED, *OF_TEXTS])
IN_TURN = [(name, *CASES[place % len(CASES)]) for place, name in enumerate(FORMS.values())]  # a case each
OF_KINDS = [(name, *case) for name in KINDS for case in CASES]


@pytest.mark.parametrize(("name", "method", "depth", "template"), dict.fromkeys([*IN_TURN, *OF_KINDS]))
def test_adapted_it_is_the_plain_model_with_its_gradients(name, method, depth, template):
    backbone = backbone_of(form_of(name))
    adapter, images = small_adapter(backbone, method, insertion_depth=depth), images_for(backbone)
    model = AdaptedCLIP(backbone, adapter, CLASSES, template)
    oracle = Oracle(backbone.clip, backbone.tokenizer, adapter, CLASSES, template)
    frozen = oracle.zero_shot(images)
    out, expected = model(images), oracle.forward(images)
    for key, value in expected.items():
        assert relative(getattr(out, key), value) < ADAPTED, key
    for key, zero_shot in zip(("image_features", "text_features"), frozen, strict=True):
        assert relative(expected[key], zero_shot) > MOVED  # the tokens have a say in both towers
    loss = mmrl_loss(out, LABELS, *frozen, alpha=adapter.alpha, reg_weight=adapter.reg_weight).total
    names, parameters = zip(*adapter.named_parameters(), strict=True)
    ours = torch.autograd.grad(loss, parameters)
    theirs = torch.autograd.grad(oracle.loss(images, LABELS, frozen[1]), parameters)
    for key, one, other in zip(names, ours, theirs, strict=True):
        assert float((one - other).norm() / other.norm()) < GRADIENTS, key


@pytest.mark.parametrize("name", [name for name in OF_TEXTS if name in accepted()])
def test_classes_of_several_runs_in_recomputed_chunks_are_the_plain_models(name):
    """Every kind of text tower, with all classes in one pass, then a few rows at a time."""
    backbone, template, lists = backbone_of(form_of(name)), "{} in the rain", (CLASSES, CLASSES[::-1])
    adapters = [small_adapter(backbone, "mmrlpp", seed=seed) for seed in (0, 1)]
    plain = functools.partial(Oracle, backbone.clip, backbone.tokenizer, template=template)
    expected = [
        plain(adapter, class_names=names).text_features() for adapter, names in zip(adapters, lists, strict=True)
    ]
    expected = torch.cat(expected)
    upstream = torch.linspace(-1, 1, expected.numel()).view_as(expected)
    parameters = [parameter for adapter in adapters for parameter in adapter.text_aligner.parameters()]
    theirs = torch.autograd.grad(expected, parameters, upstream)
    tokens, beta = torch.stack([adapter.text_tokens() for adapter in adapters]), adapters[0].config.composition
    of_all = backbone, [*lists[0], *lists[1]], template, adapters[0].n_insert
    kind = type(text_tower(*of_all, runs=2))
    for rows in (10**6, 30):
        found = kind(*of_all, chunk_tokens=rows, runs=2).adapted(tokens, beta)
        assert relative(found, expected) < ADAPTED
        ours = torch.autograd.grad(found, parameters, upstream, retain_graph=True)
        for one, other in zip(ours, theirs, strict=True):
            assert float((one - other).norm() / other.norm()) < GRADIENTS


@pytest.mark.parametrize("name", KINDS)
def test_in_low_precision_it_is_the_same_but_for_rounding(name):
    backbone = backbone_of(form_of(name))
    adapter, images = small_adapter(backbone, "mmrlpp"), images_for(backbone)
    exact, rounded = (
        AdaptedCLIP(backbone, adapter, CLASSES, "a {}.", precision)(images) for precision in ("float32", "bf16")
    )
    for one, other in ((exact.image_features, rounded.image_features), (exact.text_features, rounded.text_features)):
        assert 1e-7 < 1 - (one * other).sum(-1).min() < LOW_PRECISION


@pytest.mark.parametrize("name", FORMS.values())
def test_its_adapters_save_and_load(name, tmp_path):
    backbone = backbone_of(form_of(name))
    for method in ("mmrl", "mmrlpp"):
        adapter = small_adapter(backbone, method)
        save_adapter(tmp_path / method, adapter, backbone, {"class_names": CLASSES, "template": "a {}."})
        loaded, _ = load_adapter(tmp_path / method, backbone)
        assert all(torch.equal(tensor, loaded.state_dict()[key]) for key, tensor in adapter.state_dict().items())


SWEEP = [pytest.mark.slow, pytest.mark.endurance]
OTHERS = [pytest.param(name, marks=SWEEP) for form, name in FORMS.items() if form not in map(form_of, EXPORTED)]


@pytest.mark.parametrize("name", [*EXPORTED, *OTHERS])
def test_its_onnx_file_agrees(name, tmp_path):
    backbone = backbone_of(form_of(name))
    model = AdaptedCLIP(backbone, small_adapter(backbone, "mmrlpp"), CLASSES, "a {}.")
    card = {"class_names": CLASSES, "template": "a {}.", "sha256": "of the adapter", "backbone": {"sha256": "its own"}}
    export_onnx(Predictor(model, card), tmp_path)  # raises where onnxruntime and torch differ
