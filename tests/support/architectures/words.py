"""A tokenizer for the cut models: a word's id is drawn from its letters, marks and padding stand where the real ones do."""

import zlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.support.architectures.cutting import CONTEXT, VOCABULARY

FIRST_WORD, LAST_WORD = 4, VOCABULARY - 3


class Words(NamedTuple):
    """n texts -> ids (n, 12): `begin` where there is one, words, `end`, then `pad`; what is too long loses words."""

    begin: int | None
    end: int
    pad: int

    def __call__(self, texts: list[str]) -> Tensor:
        return torch.tensor([self._ids(text) for text in texts])

    def _ids(self, text: str) -> list[int]:
        begin = [] if self.begin is None else [self.begin]
        words = [FIRST_WORD + zlib.crc32(word.encode()) % (LAST_WORD - FIRST_WORD) for word in text.split()]
        ids = begin + words[: CONTEXT - len(begin) - 1] + [self.end]
        return ids + [self.pad] * (CONTEXT - len(ids))


OF_CLIP = Words(VOCABULARY - 2, VOCABULARY - 1, 0)  # the largest id ends a text
BY_TOKENIZER = {
    "xlm": Words(0, 2, 1), "roberta": Words(0, 2, 1), "nllb": Words(3, 2, 1), "mt5": Words(None, 1, 0),
    "bert": Words(2, 3, 0), "SigLIP": Words(None, 1, 1),
}  # fmt: skip


def words_of(text: dict[str, Any]) -> Words:
    """The tokenizer for a model's text configuration. SigLIP 2's is padded with 0, and its end is 1."""
    name = text.get("hf_tokenizer_name") or text.get("hf_model_name") or ""
    if "SigLIP2" in name:
        return Words(None, 1, 0)
    return next((words for part, words in BY_TOKENIZER.items() if part in name), OF_CLIP)
