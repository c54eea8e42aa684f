"""Procedural pictures with captions: what the bundled backbone is pretrained on.

Every picture is a pure function of one integer, so a training set is a range of integers and no file.
"""

from collections.abc import Sequence

import numpy as np

from mmrl_core.renders import glyphs, objects
from mmrl_core.renders.glyphs import DIGITS, LETTERS, SIZE
from mmrl_core.renders.objects import OBJECTS, Object

__all__ = ["CONCEPTS", "SIZE", "captions", "render"]

CONCEPTS: tuple[str | Object, ...] = (*DIGITS, *LETTERS, *OBJECTS)
# Share of each kind in all renders.
SHARES: tuple[tuple[Sequence[str | Object], float], ...] = ((DIGITS, 0.3), (LETTERS, 0.2), (OBJECTS, 0.5))


def captions(concept: str | Object) -> tuple[str, ...]:
    """Captions that are true of a concept."""
    return objects.captions(concept) if isinstance(concept, Object) else glyphs.captions(concept)


def render(item_seed: int) -> tuple[np.ndarray, int]:
    """A picture as RGB, uint8 (32, 32, 3), and the place in CONCEPTS of what it shows."""
    rng = np.random.default_rng(item_seed)
    kinds, shares = zip(*SHARES, strict=True)
    kind = kinds[rng.choice(len(kinds), p=shares)]
    concept = kind[rng.integers(len(kind))]
    if isinstance(concept, Object):
        picture = objects.photograph(rng, concept)
    else:
        picture = np.repeat(glyphs.photograph(rng, concept)[..., None], 3, axis=2)
    return picture, CONCEPTS.index(concept)
