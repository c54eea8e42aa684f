"""mmrl.adapt: what it trains, holds out and refuses."""

import threading

import pytest
import torch
from PIL import Image

import mmrl
from mmrl import AdapterConfig, ImageSet, TrainConfig, UserError, fit, load_backbone, save_adapter
from mmrl_core.adapting.held_out import divide
from mmrl_core.adapting.labelled import Entry
from mmrl_core.baselines.finish import finish
from mmrl_core.data.images import to_rgb
from tests.core.adapting.conftest import TEMPLATE, digits
from tests.support.small import small_backbone

RED, BLUE = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")
TWO = {"red": [RED] * 2, "blue": [BLUE] * 2}
QUICK = {"backbone": small_backbone(), "epochs": 1, "rep_dim": 8, "insertion_depth": 3}


def entries(*counts: int) -> list[Entry]:
    """So many images of each class."""
    return [
        Entry(f"{label}/{index}", label, lambda: RED, "")
        for label, count in enumerate(counts)
        for index in range(count)
    ]


def image_set(images: dict[str, list[Image.Image]]) -> ImageSet:
    """Two images each of two classes."""
    items = [f"{name}/{index}" for name in images for index in range(2)]
    pixels = [to_rgb(image, "digit") for own in images.values() for image in own]
    return ImageSet(items, pixels, [0, 0, 1, 1], list(images), TEMPLATE)


def keys(entries: list[Entry]) -> list[str]:
    return [entry.key for entry in entries]


def by_class(entries: list[Entry], classes: int) -> list[int]:
    return [sum(entry.label == label for entry in entries) for label in range(classes)]


def test_digits_that_it_has_not_seen_are_labelled_rightly(adapted):
    tests = [(name, image) for name, own in digits(images=10, split="test").items() for image in own]
    said = adapted.predict([image for _, image in tests])
    assert sum(one.label == name for one, (name, _) in zip(said, tests, strict=True)) >= 27
    assert all(list(one.probabilities) == ["zero", "one", "two"] for one in said)


def test_the_adapter_is_what_the_steps_of_the_library_make(tmp_path):
    images = digits(2, 2)
    held = digits(2, 2, "val")
    settings = {"insertion_depth": 4, "rep_dim": 16, "reg_weight": 0.1, "probe": "fused"}
    ours = mmrl.adapt(images, validation=held, template=TEMPLATE, epochs=2, lr=2e-3, seed=3, **settings)

    backbone = load_backbone("tiny")
    data, val = image_set(images), image_set(held)
    fitted = fit(backbone, AdapterConfig(method="mmrl", **settings), TrainConfig(epochs=2, lr=2e-3, seed=3), data)
    finish(backbone, fitted.adapter, data, val)
    theirs = save_adapter(tmp_path, fitted.adapter, backbone, {"class_names": list(images), "template": TEMPLATE})
    assert {key: ours.card[key] for key in ("sha256", "head", "calibration")} == {
        key: theirs[key] for key in ("sha256", "head", "calibration")
    }


def test_the_same_call_gives_the_same_adapter_and_another_seed_another():
    once, again = (mmrl.adapt(TWO, **QUICK) for _ in range(2))
    assert once.card["sha256"] == again.card["sha256"] != mmrl.adapt(TWO, seed=2, **QUICK).card["sha256"]


def test_a_mode_of_torch_that_the_caller_is_in_changes_nothing():
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        within = mmrl.adapt(TWO, **QUICK)
    assert within.card["sha256"] == mmrl.adapt(TWO, **QUICK).card["sha256"]
    assert within.predict(RED).label in TWO


def test_the_card_has_the_settings_and_every_epoch():
    card = mmrl.adapt(TWO, method="mmrlpp", **{**QUICK, "epochs": 2}, lr=0.01).card
    assert card["settings"]["train.lr"] == 0.01 and card["settings"]["adapter.method"] == "mmrlpp"
    assert card["settings"]["train.precision"] == "float32"  # what `auto` is on a CPU
    assert len(card["history"]) == 2


def test_progress_is_told_on_stderr_or_to_a_function(capsys):
    told = []
    mmrl.adapt(TWO, progress=lambda epoch, metrics: told.append((epoch, metrics["loss"])), **QUICK)
    assert [epoch for epoch, _ in told] == [0] and capsys.readouterr().err == ""
    mmrl.adapt(TWO, progress=True, **QUICK)
    assert capsys.readouterr().err == f"adapt: epoch 1/1, loss {told[0][1]:.3f}\n"


def test_one_image_in_four_of_each_class_is_held_out_and_at_most_four():
    division = divide(entries(3, 4, 8, 100), None, None, seed=1)
    assert by_class(division.train, 4) == [3, 3, 6, 96] and by_class(division.held_out, 4) == [0, 1, 2, 4]
    assert sorted(keys(division.train + division.held_out)) == sorted(keys(entries(3, 4, 8, 100)))


def test_of_so_many_shots_the_rest_is_held_out_at_most_four():
    division = divide(entries(2, 5, 40), 3, None, seed=1)
    assert by_class(division.train, 3) == [2, 3, 3] and by_class(division.held_out, 3) == [0, 2, 3]
    assert by_class(divide(entries(40), 16, None, seed=1).held_out, 1) == [4]


def test_a_share_is_held_out_but_never_a_whole_class():
    division = divide(entries(1, 10), None, 0.5, seed=1)
    assert by_class(division.train, 2) == [1, 5] and by_class(division.held_out, 2) == [0, 5]
    assert divide(entries(1, 10), None, 0.0, seed=1).held_out == []


def test_which_images_are_drawn_is_a_function_of_the_seed():
    drawn = [keys(divide(entries(40, 40), 5, None, seed).train) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_without_an_image_held_out_there_is_no_threshold_and_no_probe():
    adapter = mmrl.adapt(TWO, validation=0, **QUICK)
    assert adapter.threshold is None and adapter.card["head"] is None and adapter.card["calibration"] is None
    assert mmrl.adapt(TWO, validation=0.5, **QUICK).card["calibration"]["images"] == 2


def test_held_out_images_may_be_of_some_of_the_classes_in_another_order():
    adapter = mmrl.adapt(TWO, validation={"blue": [BLUE], "red": [RED, RED]}, **QUICK)
    assert adapter.card["calibration"]["images"] == 3 and adapter.class_names == ["red", "blue"]
    assert mmrl.adapt(TWO, validation={"blue": [BLUE]}, **QUICK).card["calibration"]["images"] == 1


def test_a_loaded_backbone_is_taken_as_it_is():
    adapter = mmrl.adapt(TWO, **QUICK)
    assert adapter.model.backbone is QUICK["backbone"] and adapter.device == torch.device("cpu")


class OfOneThread:
    """A dataset that other threads than the one that made it may not read."""

    def __init__(self):
        self.classes, self.made_by = ["red", "blue"], threading.get_ident()

    def __len__(self):
        return 40

    def __getitem__(self, index):
        assert threading.get_ident() == self.made_by
        return (BLUE if index % 2 else RED), index % 2


def test_a_dataset_is_read_by_the_callers_thread():
    assert mmrl.adapt(OfOneThread(), **QUICK).class_names == ["red", "blue"]


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"method": "mrl"}, "method is 'mrl', which cannot be: choose one of mmrl, mmrlpp; did you mean mmrl?"),
        ({"backbone": "ViT-B16"}, "'ViT-B16' is not a model of open_clip; did you mean ViT-B-16"),
        ({"backbone": "ViT-B-16"}, "backbone.weights is not set for ViT-B-16"),
        ({"backbone": 3}, "backbone is of type int; give the name of a model of open_clip, or `tiny`"),
        ({"weights": "openai"}, "weights are those of the loaded backbone"),
        ({"epochs": 0}, "epochs is 0, which cannot be: at least 1 is needed"),
        ({"epochs": 2.5}, "epochs is 2.5, which cannot be: a whole number is needed"),
        ({"epoch": 3}, r"adapt\(\) has no setting 'epoch'; did you mean epochs\?"),
        ({"color": 3}, r"adapt\(\) has no setting 'color'; known: insertion_depth, "),
        ({"lr": -1}, "lr is -1, which cannot be: more than 0 is needed"),
        ({"seed": "one"}, "seed is 'one', which cannot be: a whole number is needed"),
        ({"probe": "yes"}, "probe is 'yes', which cannot be: choose one of off, fused"),
        ({"precision": "fp16"}, "fp16, which needs a GPU"),
        ({"device": "gpu"}, "device 'gpu' is not to be had here"),
        ({"template": "a photo"}, "template is 'a photo'; give a prompt with {} for the class"),
        ({"shots": 0}, "shots is 0; give 1 or more training images a class"),
        ({"validation": 1.0}, "validation is 1.0; give the share of images to hold out"),
        ({"validation": True}, "validation is True; give the share"),
        ({"validation": {"green": [RED]}}, "validation has the class 'green', which is not trained; known: red, blue"),
        ({"insertion_depth": 99}, "insertion_depth 99 is beyond the 4 layers"),
        ({"class_names": ["a", "b"]}, "class_names is for datasets whose labels are numbers"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_argument_is_one_line(wrong, line):
    with pytest.raises(UserError, match=line) as error:
        mmrl.adapt(TWO, **{**QUICK, **wrong})
    assert "\n" not in str(error.value)
