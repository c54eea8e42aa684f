"""The catalogue against what open_clip builds: models on torch's meta device, which have shapes and no numbers."""

import json
import re

import open_clip
import pytest

from benchmarks.support.architectures import count, hugging_face_tower, image_tower, text_parameters, timm_tower
from mmrl_core.clip.catalogue import architecture, catalogue, config_of, family_of
from mmrl_core.clip.shapes import measured, parameters_of, shape_of
from mmrl_core.clip.supported import refuse_by_configuration
from mmrl_core.errors import UserError

# One of each kind of tower and of head.
BUILT = (
    "ViT-B-16", "ViT-bigG-14-worldwide", "ViT-M-16-alt", "ViT-L-14-CLIPA-336", "coca_ViT-B-32", "ViT-B-16-SigLIP2-384",
    "ViT-SO400M-14-SigLIP", "ViT-B-16-SigLIP-i18n-256", "EVA02-B-16", "EVA02-E-14", "EVA01-g-14", "MobileCLIP-B",
    "PE-Core-T-16-384", "RN50", "ViTamin-S",
)  # fmt: skip


@pytest.mark.parametrize("name", BUILT)
def test_an_architecture_has_as_many_parameters_as_open_clip_builds(name):
    built = [count(image_tower(name)), text_parameters(name, measured()["text"])]
    assert measured()["parameters"][name] == built
    assert architecture(name).parameters == sum(built)


def test_the_formula_and_the_measured_numbers_agree_on_every_transformer():
    agree = {}
    for name in measured()["parameters"].keys() & open_clip.list_models():  # other tests add some of their own
        try:
            shape = shape_of(open_clip.get_model_config(name))
        except UserError:
            continue
        agree[name] = [shape.image_parameters, shape.text_parameters] == measured()["parameters"][name]
    assert len(agree) == 115 and all(agree.values())


@pytest.mark.parametrize("name", ["EVA02-L-14-336", "PE-Core-B-16", "MobileCLIP2-B", "ViT-SO400M-14-SigLIP-384"])
def test_the_measures_of_a_timm_tower_are_those_of_timm(name):
    vision = open_clip.get_model_config(name)["vision_cfg"]
    assert measured()["image"][vision["timm_model_name"]] == timm_tower(image_tower(name))


@pytest.mark.parametrize("name", ["roberta-base", "google/mt5-base", "facebook/nllb-200-distilled-600M"])
def test_the_measures_of_a_text_tower_are_those_of_transformers(name):
    assert measured()["text"][name] == hugging_face_tower(name)


def test_a_plain_towers_measures_are_what_open_clip_builds():
    shape, built = shape_of(open_clip.get_model_config("ViT-B-16-plus-240")), image_tower("ViT-B-16-plus-240")
    assert shape.image.rows == built.positional_embedding.shape[0]
    assert shape.image.hidden == built.transformer.resblocks[0].mlp.c_fc.out_features
    assert (shape.image.heads, shape.image.depth) == (14, len(built.transformer.resblocks))
    assert shape.image.layer_parameters == count(built.transformer.resblocks[0])


def test_every_architecture_has_a_row_and_its_published_tags():
    rows = catalogue()
    assert [row.name for row in rows] == open_clip.list_models()
    listed = [(row.name, tag.name) for row in rows for tag in row.tags]
    assert {*open_clip.list_pretrained()} <= {*listed}
    assert all(row.parameters for row in rows)


def test_a_row_says_adaptable_just_where_a_backbone_is_not_refused():
    rows = catalogue()
    for row in rows:
        if row.problem is None:
            refuse_by_configuration(row.name, open_clip.get_model_config(row.name))
        else:
            with pytest.raises(UserError, match=re.escape(row.problem)):
                refuse_by_configuration(row.name, open_clip.get_model_config(row.name))
    assert {row.problem is None for row in rows} == {True, False}


@pytest.mark.parametrize(
    ("name", "family"),
    [("ViT-H-14-worldwide", "MetaCLIP 2"), ("ViT-L-16-SigLIP2-512", "SigLIP 2"), ("ViT-B-16-SigLIP", "SigLIP"),
     ("nllb-clip-base-siglip", "NLLB-CLIP"), ("ViT-B-16", "CLIP"), ("MobileCLIP2-B", "MobileCLIP 2")],
)  # fmt: skip
def test_a_model_is_called_what_people_call_it(name, family):
    assert family_of(name) == family


def test_a_pattern_is_part_of_a_name_or_family_in_whatever_case_or_has_stars():
    assert {row.family for row in catalogue("siglip 2")} == {"SigLIP 2"}
    assert [row.name for row in catalogue("vit-b-16-PLUS")] == ["ViT-B-16-plus", "ViT-B-16-plus-240"]
    assert [row.name for row in catalogue("vit-?-14")] == ["ViT-e-14", "ViT-g-14", "ViT-H-14", "ViT-L-14"]
    with pytest.raises(UserError, match="no architecture of open_clip is like 'ViT-B-61'; did you mean ViT-B-16"):
        catalogue("ViT-B-61")


def test_towers_that_are_not_known_are_told_and_not_counted():
    resnet = open_clip.get_model_config("RN50")
    with pytest.raises(UserError, match="ResNet"):
        shape_of(resnet)
    strange = {"embed_dim": 8, "vision_cfg": {"timm_model_name": "vit_of_tomorrow"}, "text_cfg": {}}
    with pytest.raises(UserError, match="vit_of_tomorrow"):
        shape_of(strange)
    assert parameters_of("my own", strange) is None and parameters_of("RN50", resnet)


def test_tiny_has_a_configuration_of_the_same_kind():
    assert shape_of(config_of("tiny")).depth == 6
    for other in ("no such model", "hf-hub:org/name"):  # open_clip would fetch the latter
        assert config_of(other) is None


def test_a_folder_has_the_measures_of_its_configuration(tmp_path):
    config = open_clip.get_model_config("ViT-S-32")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    assert shape_of(config_of(f"local-dir:{tmp_path}")) == shape_of(config)
    with pytest.raises(UserError, match="backbone.name local-dir:/nowhere"):
        config_of("local-dir:/nowhere")


@pytest.mark.parametrize(
    ("name", "pools", "causal", "padded"),
    [("ViT-B-16", False, True, False), ("EVA02-B-16", False, True, False), ("ViT-L-14-CLIPA", True, False, True),
     ("ViT-B-16-SigLIP", True, False, True), ("coca_ViT-B-32", True, False, True),
     ("roberta-ViT-B-32", False, False, False)],
)  # fmt: skip
def test_how_towers_are_read_and_masked_is_in_their_configuration(name, pools, causal, padded):
    shape = shape_of(open_clip.get_model_config(name))
    assert (shape.pools, shape.causal, shape.padded) == (pools, causal, padded)
