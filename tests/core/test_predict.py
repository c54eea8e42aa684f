"""Predictor: what it scores which class by, and that it streams."""

import io
import shutil
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice

import pytest
import torch
from PIL import Image

from mmrl_core import predict
from mmrl_core.clip.backbone import Backbone, load_backbone
from mmrl_core.data.images import decode
from mmrl_core.data.views import test_views as views_of
from mmrl_core.errors import UserError
from mmrl_core.evaluation import abstain
from mmrl_core.files import sha256_file
from mmrl_core.method.adapter import save_adapter
from mmrl_core.method.adapter_card import FOLDED
from mmrl_core.method.joint_logits import joint_logits
from mmrl_core.method.model import AdaptedCLIP
from mmrl_core.predict import Classes, Prediction, Predictor
from tests.core.data.odd_images import ODD, on_white
from tests.core.method.test_folded import operations, shaped_backbone
from tests.support.alter import alter_card
from tests.support.small import KINDS, small_adapter, small_backbone, small_kind

TRAINED = ["two", "four", "six"]


def save_small(folder, **card) -> None:
    """An adapter of random tensors on the bundled backbone."""
    backbone = load_backbone("tiny")
    save_adapter(folder, small_adapter(backbone), backbone, {"class_names": TRAINED, "template": "a {}.", **card})


def noise(seed: int) -> bytes:
    """A PNG of 16 x 16 random pixels."""
    pixels = torch.randint(256, (16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    encoded = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(encoded, format="PNG")
    return encoded.getvalue()


@pytest.fixture(scope="module")
def predictor(tmp_path_factory) -> Predictor:
    folder = tmp_path_factory.mktemp("adapter")
    save_small(folder)
    return Predictor.load(folder)


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (None, [0, 1, 2]),
        (["six", "two"], [2, 0]),
        (["seven", "nine"], [-1, -1]),
        (["seven", "two", "four"], [-1, 0, 1]),
    ],
)
@torch.inference_mode()
def test_every_class_is_scored_by_the_logits_of_its_kind(predictor, names, columns):
    found = predictor.predict([noise(0)], names)[0]
    model, all_names = predictor.model, names or TRAINED
    text, backbone = predictor.text_features(all_names), model.backbone
    views = views_of([decode(noise(0), "noise")], backbone.view_settings)
    output = model(views, text)
    expected = joint_logits(output, torch.tensor(columns)).softmax(-1)[0].tolist()
    assert list(found.probabilities) == all_names
    assert list(found.probabilities.values()) == pytest.approx(expected, abs=1e-6)
    assert found.probability == max(found.probabilities.values()) == found.probabilities[found.label]
    assert found.confidence == pytest.approx(float(abstain.confidence(output)), abs=1e-6)


@torch.inference_mode()
def test_a_names_probability_is_the_sum_over_its_classes_and_the_best_name_has_the_largest(predictor):
    [alone] = predictor.predict([noise(0)], ["seven", "nine"])
    first, second = sorted(alone.probabilities, key=alone.probabilities.get, reverse=True)
    often = int(alone.probabilities[first] / alone.probabilities[second]) + 1
    names = [second, first, *[second] * (often - 1)]
    [found] = predictor.predict([noise(0)], names)
    view = predictor.view(noise(0), "noise")[None]
    by_class = joint_logits(predictor.model(view, predictor.text_features(names)), torch.full((len(names),), -1))
    by_class = by_class.softmax(-1)[0].tolist()
    assert found.label == second and list(found.probabilities) == [second, first]
    assert found.probabilities == pytest.approx({first: by_class[1], second: sum(by_class) - by_class[1]}, abs=1e-5)
    assert found.probability == found.probabilities[second] > max(by_class)


def test_an_adapter_may_be_trained_on_two_classes_of_one_name(tmp_path):
    save_small(tmp_path, class_names=["missile", "sunglasses", "missile", "sunglasses", "crane"])
    predictor = Predictor.load(tmp_path)
    [found] = predictor.predict([noise(0)])
    assert list(found.probabilities) == ["missile", "sunglasses", "crane"]
    assert sum(found.probabilities.values()) == pytest.approx(1, abs=1e-5)
    predictor.check_answers()
    assert predictor.classes(["crane", "missile", "cat"]).columns.tolist() == [4, 0, -1]


def test_classes_that_are_all_of_one_name_leave_nothing_to_choose(predictor):
    with pytest.raises(UserError, match="'cat' and 'cat' make the same prompt and there is no other"):
        predictor.classes(["cat", "cat", "cat"])
    assert predictor.predict([noise(0)], ["cat"])[0].probability == 1


def test_new_names_that_are_too_long_are_named_and_trained_ones_are_as_they_were_trained(tmp_path):
    long, longer = " ".join("abcdefgh" * 10), " ".join("ijklmnop" * 10)
    save_small(tmp_path, class_names=["two", long])
    predictor = Predictor.load(tmp_path)
    assert predictor.cut_note(["two", long]) is None
    note = predictor.cut_note(["two", long, longer])
    assert "cut at 77 tokens" in note and "has 84 tokens" in note and "i j k l" in note and "a b c d" not in note


def test_one_batch_answers_each_image_among_its_own_classes(predictor):
    lists = [None, ["seven", "nine"], None, ["seven", "two"]]
    asked = [predictor.classes(names) for names in lists]
    views = [predictor.view(noise(seed), "noise") for seed in range(4)]
    together = predictor.score(views, asked)
    for seed, names in enumerate(lists):
        [alone] = predictor.predict([noise(seed)], names)
        assert together[seed].probabilities == pytest.approx(alone.probabilities, abs=1e-5)
        assert together[seed].confidence == pytest.approx(alone.confidence, abs=1e-5)


def test_files_bytes_and_images_are_labelled_alike(predictor, tmp_path):
    path = tmp_path / "noise.png"
    path.write_bytes(noise(1))
    by_path, by_text, by_bytes, by_image = predictor.predict([path, str(path), noise(1), decode(noise(1), "noise")])
    assert by_path == by_text == by_bytes == by_image


def test_results_come_in_order_over_many_batches(predictor, monkeypatch):
    monkeypatch.setattr(predict, "BATCH_SIZE", 2)
    images = [noise(seed) for seed in range(5)]
    together, alone = predictor.predict(images), [predictor.predict([image])[0] for image in images]
    assert [one.probability for one in together] == pytest.approx([one.probability for one in alone], abs=1e-5)
    assert [one.label for one in together] == [one.label for one in alone]
    assert predictor.predict([]) == []


def test_an_endless_stream_is_read_no_further_than_the_batch_after_next(predictor, monkeypatch):
    monkeypatch.setattr(predict, "BATCH_SIZE", 3)
    taken = count()
    endless = (noise(next(taken)) for _ in iter(int, 1))
    assert len(list(islice(predictor.stream(endless), 4))) == 4
    assert next(taken) <= 9


def test_a_damaged_image_stops_with_its_name_or_gives_none_if_asked(predictor, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "BATCH_SIZE", 2)
    (tmp_path / "torn.png").write_bytes(noise(0)[:40])
    images = [noise(0), tmp_path / "torn.png", tmp_path / "absent.png", noise(1), b"text"]
    with pytest.raises(UserError, match=r"torn\.png"):
        predictor.predict(images)
    found = list(predictor.stream(images, skip_damaged=True))
    assert [one is None for one in found] == [False, True, True, False, True]
    assert found[3].label == predictor.predict([noise(1)])[0].label


@pytest.mark.parametrize("name", ODD)
def test_an_image_that_pillow_has_opened_is_seen_as_its_file_is(predictor, name):
    image = ODD[name](Image.linear_gradient("L").resize((40, 30)).convert("RGB"))
    seen = predictor.view(image, name)
    assert torch.equal(predictor.view(Image.open(io.BytesIO(image)), name), seen)
    assert torch.equal(predictor.view(on_white(image), name), seen)


def lists_of(predictor: Predictor) -> list[Classes]:
    """Trained, other and mixed classes, and classes that share a name."""
    return [predictor.classes(names) for names in (None, ["seven", "nine"], ["seven", "two"], ["nine", "two", "nine"])]


def seen(predictor: Predictor, views: list[torch.Tensor], lists: list[Classes], **asked) -> list[Prediction]:
    """Every view among every list, in one batch."""
    return predictor.score([view for view in views for _ in lists], lists * len(views), **asked)


def check_alike(found: list[Prediction], expected: list[Prediction]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
        assert one.confidence == pytest.approx(other.confidence, abs=1e-5)


@pytest.mark.parametrize("kind", ["mmrl", "mmrlpp", *KINDS])
def test_onnxruntime_answers_as_pytorch_does(tmp_path, kind):
    backbone = load_backbone("tiny")
    save_adapter(tmp_path, small_kind(backbone, kind, 3), backbone, {"class_names": TRAINED, "template": "a {}."})
    predictor = Predictor.load(tmp_path)
    views = [predictor.view(noise(seed), "noise") for seed in range(3)]
    lists = lists_of(predictor)
    expected, work = seen(predictor, views, lists), operations(lambda batch: seen(predictor, batch, lists), views)
    assert predictor.use_onnxruntime()
    check_alike(seen(predictor, views, lists), expected)
    assert (
        operations(lambda batch: seen(predictor, batch, lists), views) < work / 1000
    )  # PyTorch's: the products with w
    predictor.check_answers()


def test_onnxruntime_answers_every_thread_with_its_own_image(tmp_path):
    save_small(tmp_path)
    predictor = Predictor.load(tmp_path)
    views = [predictor.view(noise(seed), "noise") for seed in range(8)]
    lists = lists_of(predictor)
    expected = [seen(predictor, [view], lists) for view in views]
    assert predictor.use_onnxruntime()
    with ThreadPoolExecutor(4) as threads:
        for found, wanted in zip(
            threads.map(lambda view: seen(predictor, [view], lists), views * 5), expected * 5, strict=True
        ):
            check_alike(found, wanted)


def of_random(backbone: Backbone, kind: str = "mmrl", **settings) -> Predictor:
    """A Predictor whose adapter was not saved."""
    adapter = small_kind(backbone, kind, len(TRAINED), **settings)
    return Predictor(AdaptedCLIP(backbone, adapter, TRAINED, "a {}."), {"class_names": TRAINED, "template": "a {}."})


def test_onnxruntime_is_left_alone_where_it_would_be_no_faster_or_is_not_known_to_be_right(monkeypatch):
    assert of_random(small_backbone()).use_onnxruntime()
    other = shaped_backbone(2, 32)
    other.visual.ln_pre = torch.nn.Identity()
    assert not of_random(other).use_onnxruntime()
    large = small_backbone(1, 1, image_width=1408)  # as many numbers as a ViT-S
    assert not of_random(large, insertion_depth=1).use_onnxruntime()
    predictor = of_random(small_backbone())
    predictor.model.tokens.fill_(1e30)  # no numbers come out
    assert not predictor.use_onnxruntime()
    monkeypatch.setattr(predict, "TOLERANCE", 0.0)
    predictor = of_random(small_backbone())
    views = [torch.randn(3, 32, 32)]
    before = predictor.score(views, [predictor.classes()])
    assert not predictor.use_onnxruntime() and predictor.score(views, [predictor.classes()]) == before


def test_a_prediction_may_hold_the_most_probable_names_alone(predictor):
    views = [predictor.view(noise(seed), "noise") for seed in range(2)]
    lists = lists_of(predictor)
    whole = seen(predictor, views, lists)
    for asked in (1, 2, [1, None, 5, 1, 2, 2, 1, None]):
        counts = [asked] * 8 if isinstance(asked, int) else asked
        for found, every, most in zip(seen(predictor, views, lists, top_k=asked), whole, counts, strict=True):
            ranked = sorted(every.probabilities.items(), key=lambda item: -item[1])[:most]
            assert list(found.probabilities.items()) == (ranked if most else list(every.probabilities.items()))
            assert (found.label, found.probability, found.confidence) == (*ranked[0], every.confidence)


def answers_of(folder, names: list[str] | None = None) -> tuple[list[Prediction], Predictor]:
    """Of a predictor that is loaded anew."""
    predictor = Predictor.load(folder)
    return predictor.predict([noise(seed) for seed in range(2)], names), predictor


@pytest.mark.parametrize("kind", ["mmrlpp + probe", "linear_probe"])
def test_a_folder_with_class_features_is_loaded_without_a_text_tower_and_answers_as_without_them(tmp_path, kind):
    backbone = load_backbone("tiny")
    save_adapter(tmp_path, small_kind(backbone, kind, 3), backbone, {"class_names": TRAINED, "template": "a {}."})
    found, predictor = answers_of(tmp_path)
    assert not predictor.model.backbone._texts
    other, _ = predictor.predict([noise(0), noise(1)], ["seven", "two"])
    (tmp_path / FOLDED).unlink()
    expected, without = answers_of(tmp_path)
    assert without.model.backbone._texts
    check_alike(found, expected)
    check_alike([other], without.predict([noise(0)], ["seven", "two"]))


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """A sound adapter, another, and one of fewer classes; each in a folder of its own."""
    place, backbone = tmp_path_factory.mktemp("others"), load_backbone("tiny")
    for name, seed, classes in (("sound", 0, TRAINED), ("another", 1, TRAINED), ("fewer", 0, TRAINED[:2])):
        (place / name).mkdir()
        save_adapter(place / name, small_adapter(backbone, seed=seed), backbone,
                     {"class_names": classes, "template": "a {}."})  # fmt: skip
    return place


def damaged(folder) -> None:
    (folder / FOLDED).write_bytes((folder / FOLDED).read_bytes()[:-4] + b"\0\0\0\0")


def of_another_adapter(folder) -> None:
    shutil.copy(folder.parent / "another" / FOLDED, folder)


def of_other_shapes_than_the_card_says_though_it_has_their_digest(folder) -> None:
    shutil.copy(folder.parent / "fewer" / FOLDED, folder)
    alter_card(folder, lambda card: card.update(folded_sha256=sha256_file(folder / FOLDED)))


@pytest.mark.parametrize(
    "change", [damaged, of_another_adapter, of_other_shapes_than_the_card_says_though_it_has_their_digest]
)
def test_class_features_that_are_not_the_adapters_are_computed_anew(others, change):
    folder = others / change.__name__
    shutil.copytree(others / "sound", folder)
    change(folder)
    found, predictor = answers_of(folder)
    assert predictor.model.backbone._texts
    check_alike(found, answers_of(others / "sound")[0])
