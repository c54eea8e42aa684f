"""Adapted: predicting, saving and loading, other devices, and its parts in a training loop."""

import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

import mmrl
from mmrl import Predictor, UserError
from mmrl_core.adapting.hub import model_card
from tests.core.adapting.conftest import digits


def images() -> list[Image.Image]:
    return [image for own in digits(images=2, split="test").values() for image in own]


def test_one_image_gives_one_prediction_and_several_a_list(adapted, tmp_path):
    path, image = tmp_path / "zero.png", images()[0]
    image.save(path)
    one = adapted.predict(image)
    assert isinstance(one.label, str) and one.probability == max(one.probabilities.values())
    for form in (path, str(path), path.read_bytes(), np.asarray(image.convert("RGB"))):
        assert adapted.predict(form) == one and adapted.predict([form]) == [one]
    assert adapted.predict([]) == []
    assert [again.label for again in adapted.predict(iter([image, image]))] == [one.label] * 2


def test_other_classes_are_scored_without_training(adapted):
    said = adapted.predict(images(), class_names=["zero", "nine"])
    assert [list(one.probabilities) for one in said] == [["zero", "nine"]] * 6
    assert said[0].label == "zero"
    with pytest.raises(UserError, match="make the same prompt"):
        adapted.predict(images(), ["nine", "Nine"])


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (3, "images are of type int, no image and no list of images"),
        ([None], "image number 0 is of type NoneType"),
        (torch.zeros(2, 3, 48, 48), "image number 0 is a tensor of torch"),
        (torch.zeros(3, 48, 48), "image number 0 is a tensor of torch"),
        (np.zeros((48, 48)), "image number 0 is an array of float64"),
        ("nowhere.png", "cannot read the image nowhere.png"),
        ([b"no image"], "number 0 is not an image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_image_is_told_in_one_line(adapted, wrong, line):
    with pytest.raises(UserError, match=line):
        adapted.predict(wrong)


def test_a_saved_adapter_is_loaded_as_it_was_and_saved_again_to_the_same_bytes(adapted, tmp_path):
    assert adapted.save(tmp_path / "once") == tmp_path / "once"
    loaded = mmrl.load(tmp_path / "once")
    assert isinstance(loaded, mmrl.Adapted) and loaded.predict(images()) == adapted.predict(images())
    assert loaded.threshold == adapted.threshold is not None
    loaded.save(tmp_path / "again")
    for name in ("adapter.json", "adapter.safetensors"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert {path.suffix for path in (tmp_path / "once").iterdir()} == {".json", ".safetensors"}


def test_what_it_saves_is_any_other_adapter_to_the_library(adapted, tmp_path):
    said = Predictor.load(adapted.save(tmp_path)).predict(images())
    assert said == adapted.predict(images())


def test_folders_that_hold_no_adapter_or_a_damaged_one_are_told_in_one_line(adapted, tmp_path):
    with pytest.raises(UserError, match="holds no adapter.json; give a folder that `save`"):
        mmrl.load(tmp_path / "nowhere")
    adapted.save(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter.safetensors").write_bytes(b"else")
    with pytest.raises(UserError, match="is not a safetensors file"):
        mmrl.load(tmp_path / "adapter")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the adapter to .*file"):
        adapted.save(tmp_path / "file")


def test_the_logits_of_a_batch_are_what_it_predicts(adapted):
    views = torch.stack([adapted.transform(image) for image in images()])
    probabilities = adapted.logits(views).softmax(-1)
    assert probabilities.tolist() == [
        pytest.approx(list(one.probabilities.values()), abs=1e-6) for one in adapted.predict(images())
    ]
    assert adapted.model(views).image_features.shape == (6, 128)
    with pytest.raises(UserError, match=r"views are \(3, 48, 48\); give a tensor \(images, 3, "):
        adapted.logits(torch.zeros(3, 48, 48))
    with pytest.raises(UserError, match="views are list"):
        adapted.logits(images())


def test_gradients_reach_the_views(adapted):
    views = torch.stack([adapted.transform(image) for image in images()[:2]]).requires_grad_()
    adapted.logits(views)[:, 0].sum().backward()
    assert views.grad is not None and (views.grad != 0).any(dim=-1).any()


def test_under_autocast_it_answers_in_the_lower_precision_and_nearly_the_same(adapted):
    views = torch.stack([adapted.transform(image) for image in images()])
    exact = adapted.logits(views)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough, said = adapted.logits(views), adapted.predict(images())
    assert not torch.equal(exact, rough)
    assert (exact.softmax(-1) - rough.softmax(-1)).abs().max() < 0.1
    assert [one.label for one in said] == [one.label for one in adapted.predict(images())]


def test_what_is_loaded_or_moved_under_autocast_is_what_it_is_outside(adapted, tmp_path):
    adapted.save(tmp_path)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        loaded = mmrl.load(tmp_path).to("cpu")
    assert loaded.predict(images()) == adapted.predict(images())
    views = torch.stack([loaded.transform(image) for image in images()[:1]]).requires_grad_()
    loaded.logits(views).sum().backward()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_loader_makes_its_batches_also_in_processes_of_its_own(adapted, tmp_path, workers):
    for name, own in digits(images=2, split="test").items():
        (tmp_path / name).mkdir()
        for index, image in enumerate(own):
            image.save(tmp_path / name / f"{index}.png")
    dataset = ImageFolder(str(tmp_path), transform=adapted.transform)
    started = "spawn" if workers else None  # everything is pickled then
    loader = DataLoader(dataset, batch_size=4, num_workers=workers, multiprocessing_context=started)
    found = torch.cat([adapted.logits(views) for views, _ in loader]).argmax(-1)
    said = adapted.predict([path for path, _ in dataset.samples])
    assert [adapted.class_names[index] for index in found] == [one.label for one in said]


def test_the_transform_can_be_pickled(adapted):
    image = images()[0]
    again = pickle.loads(pickle.dumps(adapted.transform))
    assert torch.equal(again(image), adapted.transform(image)) and again == adapted.transform


def test_moved_to_the_device_where_it_is_it_answers_the_same(adapted, tmp_path):
    adapted.save(tmp_path)
    moved = mmrl.load(tmp_path, device="cpu")
    assert moved.to("cpu") is moved and moved.device == torch.device("cpu")
    assert moved.predict(images()) == adapted.predict(images())
    with pytest.raises(UserError, match="device 'nowhere' is not to be had here"):
        moved.to("nowhere")


def test_on_the_hub_of_hugging_face_nothing_but_its_files_is_read(adapted, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    adapted.save_pretrained(tmp_path / "hub", model_card_kwargs={"license": "mit", "title": "Digits"})
    assert {"README.md", "config.json", "adapter.json", "adapter.safetensors"} <= set(os.listdir(tmp_path / "hub"))
    assert {path.suffix for path in (tmp_path / "hub").iterdir()} == {".md", ".json", ".safetensors"}
    loaded = mmrl.Adapted.from_pretrained(tmp_path / "hub", device="cpu")
    assert loaded.predict(images()) == adapted.predict(images())
    for content in ('{"card": {}, "model": 3, "device": "nowhere"}', "[", "[]"):
        (tmp_path / "hub" / "config.json").write_text(content)
        assert mmrl.Adapted.from_pretrained(tmp_path / "hub").predict(images()) == adapted.predict(images())


def test_a_repository_that_is_not_to_be_had_is_told_in_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot have the adapter nobody/nothing .*; give a folder that `save` wrote"):
        mmrl.Adapted.from_pretrained("nobody/nothing", cache_dir=tmp_path, local_files_only=True)


def test_a_repository_in_the_cache_of_the_hub_is_loaded_from_there(adapted, tmp_path):
    """The cache as huggingface_hub lays it out, so that no network is needed."""
    commit = "0" * 40
    repository = tmp_path / "models--me--digits"
    adapted.save_pretrained(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    loaded = mmrl.Adapted.from_pretrained("me/digits", cache_dir=tmp_path, local_files_only=True)
    assert loaded.predict(images()) == adapted.predict(images())


def test_the_model_card_says_what_it_knows_and_what_it_needs(adapted):
    card = adapted.generate_model_card(license="mit")
    assert card.data.license == "mit" and card.data.library_name == "mmrl-ops"
    assert {"clip", "few-shot", "mmrl"} <= set(card.data.tags)
    assert "`tiny`, weights `bundled`" in card.text and "Apache-2.0" in card.text
    assert [line for line in card.text.splitlines() if line.startswith("- ")] == ["- `zero`", "- `one`", "- `two`"]
    assert "not stated" in adapted.generate_model_card().text


def test_the_model_card_says_whether_the_backbones_weights_have_to_be_had_as_well():
    card = {"class_names": ["cat"], "template": "a {}.", "trainable": 1, "adapter": {"method": "mmrl"}}
    needs = {}
    for name, weights in (("ViT-B-16", "openai"), ("ViT-B-16", "/weights/clip.pt"), ("local-dir:clip", None),
                          ("hf-hub:org/clip", None)):  # fmt: skip
        text = model_card({**card, "backbone": {"name": name, "weights": weights, "sha256": "0" * 64}}).text
        needs[name, weights] = "You need the file of the backbone's weights" in text
        assert ("`its own`" in text) == (weights is None) and "bundled" not in text
    assert [key for key, is_needed in needs.items() if is_needed] == [
        ("ViT-B-16", "/weights/clip.pt"), ("local-dir:clip", None)
    ]  # fmt: skip
