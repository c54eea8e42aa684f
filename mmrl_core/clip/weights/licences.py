"""Under which licence a backbone's weights are, as far as it is known: what a model card has to say of them."""

import re
from typing import NamedTuple

CHECK = "read the terms of whoever published them before passing them or a model on"
# LAION published these for the plain towers; the same words in the tags of other models are other people's weights.
LAION = re.compile(r"laion400m_e3[12]|laion2b_(e16|s\d+b_b\d+k)|datacomp_\w+|commonpool_\w+")
LAION_NAMES = re.compile(r"ViT-(B-32|B-32-256|B-16|B-16-plus-240|L-14|H-14|g-14|bigG-14)(-quickgelu)?")
LAION_OTHERS = re.compile(r"(xlm-)?roberta-(base-|large-)?ViT-\w-\d+|coca_ViT-\w-\d+")  # all their tags are LAION's
APPLE = "published by Apple, under a licence of its own"


class Licence(NamedTuple):
    """An SPDX identifier, None where it is not known, and a sentence for people."""

    spdx: str | None
    note: str


def licence_of(name: str, weights: str | None) -> Licence:
    """The licence of the weights that `backbone.name` and `backbone.weights` stand for.

    It goes by open_clip's tag alone: of a file nothing is known, whatever it is called.
    """
    if name == "tiny" and not weights:
        return Licence("Apache-2.0", "made by this project from pictures that it rendered")
    if weights and weights.split(":")[0] == "random":
        return Licence(None, "random weights: nobody's work")
    if weights == "openai":
        return Licence(
            "MIT", "OpenAI's CLIP, whose model card leaves uses that are not studied before out of its scope"
        )
    return _published(name, weights or "") or Licence(None, f"the licence of these weights is not known here; {CHECK}")


def _published(name: str, tag: str) -> Licence | None:
    """By who published the weights of an open_clip tag, as timm's records and the model cards have it."""
    if (LAION.fullmatch(tag) and LAION_NAMES.fullmatch(name)) or _is_tag_of(LAION_OTHERS, name, tag):
        return Licence("MIT", "published by LAION and OpenCLIP")
    if re.fullmatch(r"metaclip_(400m|fullcc|altogether)|metaclip2_worldwide", tag):
        return Licence("CC-BY-NC-4.0", "Meta's MetaCLIP: not for commercial use")
    if tag == "meta" and name.startswith("PE-Core-"):
        return Licence("Apache-2.0", "Meta's Perception Encoder")
    if tag == "webli" and "SigLIP" in name:
        return Licence("Apache-2.0", "Google's SigLIP")
    if name.startswith(("EVA01-", "EVA02-")) and re.fullmatch(r"(laion\d+[mb]|merged2b)_s\d+b_b\d+k", tag):
        return Licence("MIT", "BAAI's EVA-CLIP")
    if re.fullmatch(r"dfn[25]b\w*|datacompdr(_lt)?|dfndr2b", tag):
        return Licence(None, f"{APPLE}; {CHECK}")
    return None


def _is_tag_of(names: re.Pattern[str], name: str, tag: str) -> bool:
    return bool(names.fullmatch(name)) and bool(re.fullmatch(r"(mscoco_finetuned_|frozen_)?laion\db_s\d+b_b\d+k", tag))


def licence_line(name: str, weights: str | None) -> str:
    """`MIT (OpenAI's CLIP, ...)` or `unknown (...)`: one cell of a model card's table."""
    licence = licence_of(name, weights)
    return f"{licence.spdx or 'unknown'} ({licence.note})"
