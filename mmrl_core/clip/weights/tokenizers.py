"""The tokenizer of a CLIP, from where its weights are: CLIP's own, which open_clip has, or one of Hugging Face.

The latter needs the extra `transformers`, which is imported when such a tokenizer is made. No code of a repository is
run: what a configuration may ask of a tokenizer is a short list of words.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from mmrl_core.clip.openclip import open_clip
from mmrl_core.clip.weights.places import Folder, Place, read_object, short
from mmrl_core.errors import UserError

CONTEXT_LENGTH = 77  # where a configuration does not say
CLIPS = 49408  # tokens of CLIP's vocabulary
# What a configuration may hand to a tokenizer. Everything else, `trust_remote_code` first of all, would go through to
# transformers.
KNOWN = {"clean", "strip_sep_token", "language"}
INSTALL = "run `pip install 'mmrl-ops[transformers]'`"
MARKS = {"<|startoftext|>": "<start_of_text>", "<|endoftext|>": "<end_of_text>"}  # transformers' and open_clip's


class HuggingFaceTokenizer:
    """A tokenizer of Hugging Face as open_clip calls it, which can also be asked how long a text is.

    `marks` is the number of tokens that every text gets beside its own, `context_length` that of all it is cut to.
    """

    def __init__(self, source: str, context_length: int, settings: Mapping[str, Any], mode: str | None = None):
        with _quiet():
            self._own = open_clip.tokenizer.HFTokenizer(
                source, context_length=context_length, tokenizer_mode=mode, trust_remote_code=False, **settings
            )  # left open, transformers asks at the terminal whether to run what a repository brings
        self.context_length = context_length
        self.marks = 3 if mode == "clips" else self._own.tokenizer.num_special_tokens_to_add()

    def __call__(self, texts: str | list[str]) -> Tensor:
        """n texts -> ids (n, context length), padded and cut."""
        return self._own(texts)

    def encode(self, text: str) -> Sequence[int]:
        """A text's tokens, all of them, without marks."""
        tokenizer = self._own.tokenizer
        return tokenizer(self._own.clean_fn(text), add_special_tokens=False, verbose=False)["input_ids"]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' notes on configurations, some of its own defaults among them; errors are raised anyway."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


Tokenizer = Any  # called with n texts gives ids (n, context length); open_clip's and HuggingFaceTokenizer


def tokenizer_of(text_cfg: Mapping[str, Any], name: str, place: Place | None = None) -> Tokenizer:
    """The tokenizer that a model's text_cfg asks for: of a folder its own, else that of the repository which it names.

    Raises UserError where the extra that it takes is not installed, where it cannot be had, and where the
    configuration asks for more than words.
    """
    length, settings = text_cfg.get("context_length") or CONTEXT_LENGTH, dict(text_cfg.get("tokenizer_kwargs") or {})
    if unknown := sorted(set(settings) - KNOWN):
        raise UserError(f"backbone {name} asks its tokenizer for {unknown[0]!r}, which is not passed on; do not use it")
    source = text_cfg.get("hf_tokenizer_name")
    if not source:
        return open_clip.tokenizer.SimpleTokenizer(context_length=length, **settings)
    if isinstance(place, Folder):
        source = place.source  # as open_clip reads a folder
    return _hugging_face(str(source), name, length, settings, text_cfg.get("tokenizer_mode"))


def _hugging_face(
    source: str, name: str, length: int, settings: Mapping[str, Any], mode: str | None
) -> HuggingFaceTokenizer:
    if find_spec("transformers") is None:
        raise UserError(f"backbone {name} has a tokenizer of Hugging Face; {INSTALL}")
    try:
        return HuggingFaceTokenizer(source, length, settings, mode)
    except ImportError as error:  # SigLIP's own takes sentencepiece
        raise UserError(f"the tokenizer of backbone {name} takes more ({short(error)[:200]}); {INSTALL}") from error
    except Exception as error:  # transformers and a hub raise many kinds
        raise UserError(
            f"the tokenizer of backbone {name} could not be had from {source} ({short(error)[:200]}); try again with a "
            f"network, or give a folder that has it beside the weights as backbone.name local-dir:PATH"
        ) from error


def of_transformers(place: Place, config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """text_cfg with where the tokenizer of a checkpoint of transformers is: CLIP's own vocabulary needs no files."""
    text_cfg = dict(config["text_cfg"])
    if kind == "clip" and text_cfg["vocab_size"] == CLIPS and _has_clips_vocabulary(place):
        return text_cfg
    return {**text_cfg, "hf_tokenizer_name": place.source}


def _has_clips_vocabulary(place: Place) -> bool:
    """Whether the tokens there are CLIP's, or there are none, as where a model was saved without its tokenizer."""
    path = place.file("vocab.json")
    if path is None:
        whole = place.file("tokenizer.json")
        listed = read_object(whole).get("model") if whole else None
        words = listed.get("vocab") if isinstance(listed, dict) else None
        return whole is None or words == _clips_vocabulary()
    return read_object(path) == _clips_vocabulary()


def _clips_vocabulary() -> dict[str, int]:
    """Token -> id, marks as transformers writes them."""
    theirs = {ours: word for word, ours in MARKS.items()}
    encoder = open_clip.tokenizer.SimpleTokenizer().encoder
    return {theirs.get(word, word): number for word, number in encoder.items()}
