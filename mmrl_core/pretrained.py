"""Weight files in OpenAI's own format, and whether a file is what it is called.

Nothing is unpickled: a TorchScript archive, as OpenAI publishes its models, is read by torch's own reader, which knows
tensors and TorchScript but no Python; everything else by `weights_only`.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mmrl_core.errors import UserError

# open_clip's names and tags whose towers and activation the tests check; other plain CLIP ViTs should do as well.
TESTED = (
    ("ViT-B-16", "openai"), ("ViT-B-32", "openai"), ("ViT-L-14", "openai"),
    ("ViT-B-16", "laion2b_s34b_b88k"), ("ViT-B-32", "laion2b_s34b_b79k"), ("ViT-L-14", "laion2b_s32b_b82k"),
    ("ViT-B-16", "datacomp_xl_s13b_b90k"), ("ViT-B-32", "datacomp_xl_s13b_b90k"), ("ViT-L-14", "datacomp_xl_s13b_b90k"),
)  # fmt: skip
OPENAI_KEYS = {"input_resolution", "context_length", "vocab_size"}  # beside the weights, in OpenAI's files alone


def openai_state(path: str | Path) -> dict[str, Tensor] | None:
    """The weights (half precision where OpenAI has that) of a file in OpenAI's format, None for any other file.

    Raises RuntimeError or pickle.UnpicklingError on a damaged file.
    """
    if str(path).endswith(".safetensors"):
        return None
    if _is_torchscript(path):
        state = torch.jit.load(str(path), map_location="cpu").state_dict()
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, Mapping) or not state.keys() >= OPENAI_KEYS:
        return None
    return {key: value for key, value in state.items() if key not in OPENAI_KEYS}


def _is_torchscript(path: str | Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def check_published(path: str | Path, sha256: str, published: Mapping[str, str]) -> None:
    """Raises UserError when a file bears the name of one that OpenAI published, and is not that file.

    `published` holds the sha256 by file name.
    """
    name = Path(path).name
    if published.get(name, sha256) != sha256:
        raise UserError(
            f"backbone.weights {str(path)!r} is not the {name} that OpenAI published (its sha256 begins with "
            f"{sha256[:12]}, not {published[name][:12]}); fetch it again, or rename it if it is another model"
        )
