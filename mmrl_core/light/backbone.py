"""A backbone's image tower as arrays, read without PyTorch and verified as it is with it."""

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from mmrl_core.clip import bundled
from mmrl_core.light.tower import Arrays
from mmrl_core.method.adapter_card import BackboneCard

VISUAL = "visual."
LAYER = re.compile(r"(visual\.|text\.)?transformer\.resblocks\.(\d+)\.")


class LightBackbone(NamedTuple):
    """The image tower's weights by name, in float32, and the backbone's measures."""

    name: str
    visual: Arrays
    depth: int  # of the shallower tower
    image_width: int
    text_width: int
    embed_dim: int

    @property
    def pooled_width(self) -> int:
        """Of a tower that is read at its class token."""
        return self.image_width


def read_backbone(card: BackboneCard) -> LightBackbone | None:
    """The backbone with the weights that an adapter's card names; None where they are not the bundled ones or those of
    a safetensors file, as this release has them, and PyTorch has to tell what they are."""
    if card["name"] == bundled.NAME:
        if card["weights"] is not None or card["sha256"] != bundled.WEIGHTS:
            return None
        return _read(bundled.NAME, bundled.bundled_file().path, None)
    weights = Path(card["weights"] or "")
    if weights.suffix != ".safetensors" or not weights.is_file():
        return None
    try:
        return _read(card["name"], weights, card["sha256"])
    except (SafetensorError, OSError, TypeError, KeyError, ValueError):  # not weights of a CLIP that NumPy can read
        return None


def _read(name: str, path: Path, sha256: str | None) -> LightBackbone | None:
    """With a sha256 only where that is the digest of the weights."""
    with safe_open(path, "np") as file:
        names = sorted(file.keys())
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in names}
        wanted = names if sha256 else [key for key in names if key.startswith(VISUAL)]
        arrays = {key: np.asarray(file.get_tensor(key), np.float32) for key in wanted}
    if sha256 and _weights_sha256(arrays) != sha256:
        return None
    text = "text." if "text.positional_embedding" in shapes else ""
    visual = {key.removeprefix(VISUAL): arrays[key] for key in wanted if key.startswith(VISUAL)}
    return LightBackbone(
        name,
        visual,
        depth=min(_layers(names, VISUAL), _layers(names, text)),
        image_width=shapes["visual.conv1.weight"][0],
        text_width=shapes[f"{text}positional_embedding"][1],
        embed_dim=shapes["visual.proj"][1],
    )


def _layers(names: list[str], tower: str) -> int:
    found = [LAYER.match(name) for name in names]
    return len({match[2] for match in found if match and (match[1] or "") == tower})


def _weights_sha256(arrays: Arrays) -> str:
    """As `Backbone.weights_sha256`."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} torch.float32 {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
