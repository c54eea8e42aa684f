"""Prompts that are too long for a text tower: who says so, and without loading what."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl_core.clip.backbone import Backbone, new_clip, tokenizer_for
from mmrl_core.clip.prompts import context_length, cut_notes, most_tokens
from mmrl_core.errors import UserError
from tests.support.small import small_backbone

LONG = " ".join("abcdefgh" * 10)  # 80 tokens
SHAPE = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 20, "width": 48, "heads": 4, "layers": 1},
}


encode = tokenizer_for("tiny").encode


@settings(max_examples=60)
@given(
    st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(list("&;#xİŉ\x80\U0001d160\ufb2c")), max_size=90)
)
def test_no_prompt_has_more_tokens_than_its_bound(prompt):
    assert len(encode(prompt)) + 2 <= most_tokens(prompt)


def test_names_that_a_backbone_cuts_are_noted_with_their_tokens_those_that_just_fit_are_not():
    fits, template = " ".join("a" * 73), "a {}."  # 73 of the name, 2 of the template, 2 marks
    assert cut_notes(["cat", fits], [template], "tiny") == []
    [note] = cut_notes(["cat", f"{fits} b", LONG], ["the {}", template], "tiny")[1:]
    assert "cut at 77 tokens" in note and "end of the template 'a {}.'" in note and "cat" not in note
    assert "has 78 tokens" in note and "has 84 tokens" in note and "cannot be told apart" not in note


def test_names_that_become_equal_are_noted_as_such_and_refused_with_both_lengths():
    alike = [f"{LONG} one", f"{LONG} and two"]
    assert "some cannot be told apart any more" in cut_notes(alike, ["a {}."], "tiny")[0]
    just = " ".join("a" * 74)  # with the template's "the" it fits exactly, and is what is left of a longer one
    assert "some cannot be told apart any more" in cut_notes([just, f"{just} b"], ["the {}"], "tiny")[0]
    with pytest.raises(
        UserError, match=r"make the same prompt: it is cut at 77 tokens, and theirs have 85 and 86; give"
    ) as caught:
        small_backbone().tokenize(alike, "a {}.")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "tokens"),
    [("tiny", 77), ("ViT-B-16", 77), ("coca_ViT-B-32", 76), ("ViT-B-16-SigLIP", None), ("../tiny", None), ("", None)],
)
def test_the_context_length_comes_from_the_configuration(name, tokens):
    assert context_length(name) == tokens
    if tokens:
        assert tokenizer_for(name)(["a"]).shape == (1, tokens)


def test_short_names_are_passed_without_torch():
    script = (
        "import sys\nfrom mmrl_core.clip.prompts import cut_notes\n"
        "assert cut_notes(['a name of several words'], ['a photo of a {}, a type of flower.'], 'ViT-B-16') == []\n"
        "print('torch' in sys.modules, 'open_clip' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "False False\n"


def test_a_clip_of_ones_own_is_given_prompts_of_its_own_length():
    torch.manual_seed(0)
    backbone = Backbone.from_clip(new_clip(SHAPE), name="short")
    assert backbone.tokenize(["cat", LONG], "a {}.").shape == (2, 20)
    assert backbone.encode_text(["cat", LONG], "a {}.").isfinite().all()
    assert "cut at 20 tokens" in backbone.cut_note(["cat", LONG], "a {}.")
