"""Under which licence a backbone's weights are, as far as it is known: what a model card has to say of them."""

import re
from typing import NamedTuple

CHECK = "read the terms of whoever published them before passing them or a model on"
# LAION published these for the plain towers; the same words in the tags of other models are other people's weights.
LAION = re.compile(r"laion400m_e3[12]|laion2b_(e16|s\d+b_b\d+k)|datacomp_\w+|commonpool_\w+")
LAION_NAMES = re.compile(r"ViT-(B-32|B-32-256|B-16|B-16-plus-240|L-14|H-14|g-14|bigG-14)(-quickgelu)?")


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
    if weights and LAION.fullmatch(weights) and LAION_NAMES.fullmatch(name):
        return Licence("MIT", "published by LAION and OpenCLIP")
    return Licence(None, f"the licence of these weights is not known here; {CHECK}")


def licence_line(name: str, weights: str | None) -> str:
    """`MIT (OpenAI's CLIP, ...)` or `unknown (...)`: one cell of a model card's table."""
    licence = licence_of(name, weights)
    return f"{licence.spdx or 'unknown'} ({licence.note})"
