"""Tokenizers of Hugging Face: from where the weights are, asked for their lengths, running nothing."""

import json
import sys

import open_clip
import pytest
import torch
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from transformers import CLIPTokenizer

from mmrl_core.clip.backbone import Backbone, new_clip
from mmrl_core.clip.prompts import context_length, cut_note
from mmrl_core.clip.weights.places import Folder
from mmrl_core.clip.weights.tokenizers import HuggingFaceTokenizer, of_transformers, tokenizer_of
from mmrl_core.errors import UserError
from tests.core.clip.weights.checkpoints import change_json, save_tokenizer
from tests.support.architectures import cut, form_of

TEXT = {"context_length": 8, "vocab_size": 99, "hf_tokenizer_name": "an/other", "tokenizer_kwargs": {}}


@pytest.fixture
def words(tmp_path):
    save_tokenizer(tmp_path)
    return tmp_path


def test_a_folders_own_tokenizer_gives_what_open_clips_wrapper_of_it_gives(words):
    theirs = HFTokenizer(str(words), context_length=8, clean="canonicalize")
    settings = {**TEXT, "tokenizer_kwargs": {"clean": "canonicalize"}}
    ours = tokenizer_of(settings, "x", Folder(f"local-dir:{words}"))
    texts = ["A photo of a cat.", "dog", "a " * 20]
    assert isinstance(ours, HuggingFaceTokenizer) and ours.context_length == 8
    assert torch.equal(ours(texts), theirs(texts)) and ours(texts).shape == (3, 8)


def test_texts_that_are_cut_are_noted_with_the_marks_that_the_tokenizer_really_adds(words):
    tokenizer = HuggingFaceTokenizer(str(words), 8, {})
    assert tokenizer.marks == 1 and len(tokenizer.encode("a cat " * 9)) == 18
    fits, cut = "cat and dog so", "cat and dog so on"  # with "a photo of" and the mark at the end: 8 and 9
    note = cut_note([fits, cut], "a photo of {}", tokenizer.encode, 8, tokenizer.marks)
    assert f"{cut!r} has 9 tokens" in note and f"{fits!r}" not in note and "cannot be told apart" in note
    assert cut_note(["cat", "Cat"], "a photo of {}", tokenizer.encode, 8, tokenizer.marks) is None


def test_a_backbone_says_which_prompts_such_a_tokenizer_cuts(words):
    shape = {"embed_dim": 16, "vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "patch_size": 16},
             "text_cfg": {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}}  # fmt: skip
    backbone = Backbone.from_clip(new_clip(shape), tokenizer=HuggingFaceTokenizer(str(words), 8, {}))
    assert backbone.cut_note(["cat", "a dog"], "{}") is None
    assert "cut at 8 tokens" in backbone.cut_note(["cat", "a " * 8], "{}")
    with pytest.raises(UserError, match="it is cut at 8 tokens, and theirs have 9 and 10; give them shorter names"):
        backbone.tokenize(["a " * 8, "a " * 9], "{}")


def test_code_that_a_folder_brings_is_not_run_whatever_its_configuration_says(words, tmp_path):
    ran = tmp_path / "ran"
    (words / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own: pass\n")
    change_json(words / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", None]}, tokenizer_class="Own")
    asked = {**TEXT, "tokenizer_kwargs": {"trust_remote_code": True}}
    with pytest.raises(UserError, match="asks its tokenizer for 'trust_remote_code', which is not passed on; do not"):
        tokenizer_of(asked, "x", Folder(f"local-dir:{words}"))
    with pytest.raises(UserError, match="contains custom code which must be executed"):
        tokenizer_of(TEXT, "x", Folder(f"local-dir:{words}"))
    assert not ran.exists()


def test_without_transformers_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    text = open_clip.get_model_config("ViT-B-16-SigLIP")["text_cfg"]
    with pytest.raises(UserError, match=r"run `pip install 'mmrl-ops\[transformers\]'`$"):
        tokenizer_of(text, "ViT-B-16-SigLIP")
    assert isinstance(tokenizer_of({}, "ViT-B-16"), SimpleTokenizer)


def test_a_tokenizer_that_cannot_be_had_is_said_in_one_line(tmp_path):
    with pytest.raises(UserError, match="the tokenizer of backbone x could not be had from") as raised:
        tokenizer_of(TEXT, "x", Folder(f"local-dir:{tmp_path}"))
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500


def clips_vocabulary() -> dict[str, int]:
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    return {names.get(word, word): number for word, number in SimpleTokenizer().encoder.items()}


def test_clips_own_vocabulary_is_read_by_clips_own_tokenizer_and_any_other_by_hugging_faces(tmp_path):
    vocabulary = clips_vocabulary()
    merges = list(SimpleTokenizer().bpe_ranks)
    config = {"text_cfg": {"vocab_size": 49408, "context_length": 77}}
    place = Folder(f"local-dir:{tmp_path}")
    assert "hf_tokenizer_name" not in of_transformers(place, config, "clip")  # saved without its tokenizer
    theirs = CLIPTokenizer(vocab=vocabulary, merges=merges)
    theirs.save_pretrained(tmp_path)
    text_cfg = of_transformers(place, config, "clip")
    texts = ["a photo of a cat.", "the Dog's  photograph"]
    ours = tokenizer_of(text_cfg, "x", place)(texts)
    expected = theirs(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids
    assert isinstance(tokenizer_of(text_cfg, "x", place), SimpleTokenizer)
    up_to_end = torch.arange(77) <= ours.argmax(dim=1, keepdim=True)  # beyond it they pad otherwise
    assert torch.equal(ours[up_to_end], expected[up_to_end])
    (tmp_path / "vocab.json").write_text(json.dumps({**vocabulary, "cat</w>": 1, "!": vocabulary["cat</w>"]}))
    assert of_transformers(place, config, "clip")["hf_tokenizer_name"] == str(tmp_path)
    assert of_transformers(place, {"text_cfg": {"vocab_size": 99}}, "clip")["hf_tokenizer_name"] == str(tmp_path)


def test_a_folders_context_length_comes_from_its_configuration(tmp_path):
    name = f"local-dir:{tmp_path}"
    assert context_length(name) is None
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", "text_config": {}}))
    assert context_length(name) == 77
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    assert context_length(name) is None
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"text_cfg": {"context_length": 20}}}))
    assert context_length(name) == 20
    (tmp_path / "open_clip_config.json").write_text("[]")
    assert context_length(name) is None


def test_a_model_of_another_vocabulary_has_to_come_with_its_tokenizer():
    clip, tokenizer = cut(form_of("ViT-B-16-SigLIP"))
    with pytest.raises(UserError, match="backbone custom has a vocabulary of 5000 tokens, not CLIP's; give its"):
        Backbone.from_clip(clip)
    assert Backbone.from_clip(clip, tokenizer=tokenizer).tokenizer is tokenizer
