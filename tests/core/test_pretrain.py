"""The pictures and the training behind the bundled backbone."""

import colorsys
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mmrl_core.clip.backbone import new_clip
from mmrl_core.data.catalog import open_source
from mmrl_core.files import sha256_file
from mmrl_core.pretrain import RenderedBatches, caption_table, contrastive_loss, pretrain
from mmrl_core.renders import CONCEPTS, captions, render
from mmrl_core.renders.glyphs import DIGIT_WORDS, DIGITS, LETTERS
from mmrl_core.renders.objects import COLOURS, OBJECTS, Object, sample_colour


def test_a_render_is_a_pure_function_of_its_seed():
    first, concept = render(7)
    render(8)  # another render in between changes nothing
    second, again = render(7)
    assert concept == again
    np.testing.assert_array_equal(first, second)
    assert first.shape == (32, 32, 3) and first.dtype == np.uint8


def test_every_concept_is_rendered_in_the_intended_shares():
    concepts = [CONCEPTS[render(seed)[1]] for seed in range(4000)]
    assert set(concepts) == set(CONCEPTS)
    for kind, share in ((DIGITS, 0.3), (LETTERS, 0.2), (OBJECTS, 0.5)):
        assert abs(sum(concept in tuple(kind) for concept in concepts) / len(concepts) - share) < 0.03


@pytest.mark.parametrize("concept", [*DIGITS, *LETTERS])
def test_captions_name_their_character(concept):
    names = {concept.lower()} | ({DIGIT_WORDS[int(concept)]} if concept in DIGITS else set())
    for caption in captions(concept):
        assert names & set(caption.rstrip(".").split())


def test_captions_name_parts_of_their_object_and_nothing_else():
    everything = {word for shown in OBJECTS for word in shown}
    for caption in captions(Object("striped", "red", "star")):
        assert everything & set(caption.rstrip(".").split()) <= {"striped", "red", "star"}


@pytest.mark.parametrize("key", ["digits", "objects", "signboards"])
def test_prompts_of_the_embedded_datasets_are_captions(key):
    source, texts = open_source(key, ""), set(caption_table()[0])
    for template in source.templates:
        assert {template.format(name) for name in source.class_names} <= texts


def test_colours_have_the_hue_of_their_name():
    rng = np.random.default_rng(0)
    for name, ((hue, width), *_) in COLOURS.items():
        for _ in range(20):
            turned = 360 * colorsys.rgb_to_hsv(*sample_colour(rng, name))[0]
            assert abs((turned - hue + 180) % 360 - 180) <= width + 1e-6, name


def test_every_picture_of_a_batch_has_a_caption_and_every_caption_a_picture():
    _, labels, chosen = RenderedBatches(1, 0)[0]
    positives = caption_table()[1][labels][:, chosen]
    assert positives.any(1).all() and positives.any(0).all()


def test_true_captions_of_one_picture_do_not_compete():
    positives = torch.tensor([[True, True, False], [False, False, True]])
    loss = contrastive_loss(torch.tensor([[50.0, 20.0, -20.0], [-20.0, -20.0, 20.0]]), positives)
    assert loss < 1e-6


def test_the_loss_is_lowest_when_all_pictures_of_a_concept_agree_with_its_caption():
    positives = torch.tensor([[True, False], [True, False], [False, True]])
    agreeing, mixed = positives.float() * 20, positives.float().flip(0) * 20
    assert contrastive_loss(agreeing, positives) < contrastive_loss(mixed, positives)


class Trained(NamedTuple):
    """Two folders, the steps that were reported, and the caller's random state and threads before and after."""

    folders: list[Path]
    steps: list[tuple]
    before: tuple[torch.Tensor, int]
    after: tuple[torch.Tensor, int]


@pytest.fixture(scope="module")
def trained_twice(tmp_path_factory):
    folders = [tmp_path_factory.mktemp("pretrain") for _ in range(2)]
    torch.manual_seed(1)
    steps, before = [], (torch.random.get_rng_state(), torch.get_num_threads())
    for workers, folder in enumerate(folders):  # the second run renders in a worker process
        pretrain(folder, steps=2, workers=workers, report=lambda *step: steps.append(step))
    return Trained(folders, steps, before, (torch.random.get_rng_state(), torch.get_num_threads()))


def test_pretraining_twice_gives_the_same_bytes_whoever_renders(trained_twice):
    first, second = trained_twice.folders
    for name in ("tiny.safetensors", "tiny.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_the_card_describes_the_weights_and_they_load_strictly(trained_twice):
    weights = trained_twice.folders[0] / "tiny.safetensors"
    card = json.loads(weights.with_suffix(".json").read_text())
    assert card["sha256"] == sha256_file(weights)
    assert card["command"] == "mmrl pretrain --out DIR --steps 2 --seed 0"
    state = {name: value.float() for name, value in load_file(weights).items()}
    ids, rows = state.pop("token_embedding.ids").long(), state.pop("token_embedding.rows")
    clip = new_clip(card["model_cfg"])
    clip.load_state_dict({**state, "token_embedding.weight": clip.token_embedding.weight.index_copy(0, ids, rows)})


def test_pretraining_leaves_the_callers_threads_and_random_state_alone_and_reports_each_step(trained_twice):
    (state, threads), (state_after, threads_after) = trained_twice.before, trained_twice.after
    assert torch.equal(state_after, state) and threads_after == threads
    assert [step[:2] for step in trained_twice.steps] == [(1, 2), (2, 2)] * 2
