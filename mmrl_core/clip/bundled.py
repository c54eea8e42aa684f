"""The backbone in assets/, `tiny`: only the token rows that it was trained on are stored, the others are drawn.

Earlier releases drew them by torch.randn, with other last bits on a CPU without a vector unit: adapters of theirs name
one of two digests. For these the rows are drawn as they were then.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mmrl_core.errors import UserError
from mmrl_core.files import sha256_file

if TYPE_CHECKING:
    from torch import Tensor

    from mmrl_core.clip.openclip import CLIP

ASSETS = Path(__file__).parent.parent / "assets"
NAME = "tiny"
# Digest of all of tiny's weights as this release draws them.
WEIGHTS = "77dbc97d62241c34642c214b3c2f829991222f36b63b27a15b4b40dd88fb8fa0"
# Digests of all of tiny's weights as earlier releases drew them: on a CPU with a vector unit, and on one without.
EARLIER = {
    "a2d9fd067c1525738558acbe75cb0ead16c1b108ab756cf09bc504cd53716576",
    "b1929734c49fcfb1337cc5edc78efb13a76becac14d457787f3609e37d98f4fa",
}
STD = 0.02  # of token embeddings
IDS, ROWS = "token_embedding.ids", "token_embedding.rows"
TokenTable = Callable[[int, tuple[int, int]], "Tensor"]  # seed and shape (tokens, D) -> rows


def tokens_as_drawn(seed: int, shape: tuple[int, int]) -> "Tensor":
    """Rows of tokens that no caption holds: the same bits on every machine."""
    from mmrl_core.clip.portable import Draws

    return Draws(seed).spread(STD, shape)


def tokens_as_earlier(seed: int, shape: tuple[int, int]) -> "Tensor":
    """Rows as earlier releases drew them: the same on every machine but for rounding."""
    import torch

    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * STD


class BundledFile(NamedTuple):
    """The file of weights, verified, and what the document beside it says of it."""

    path: Path
    card: dict[str, Any]


def bundled_file() -> BundledFile:
    """The file in assets/. Raises UserError when it is not what it was."""
    card, path = json.loads((ASSETS / f"{NAME}.json").read_text()), _weights_file()
    if sha256_file(path) != card["sha256"]:
        raise UserError(f"{path} does not match the sha256 in {path.with_suffix('.json')}; reinstall the package")
    return BundledFile(path, card)


def bundled_clip(tokens: TokenTable = tokens_as_drawn) -> tuple["CLIP", str]:
    """The CLIP shipped in assets/, and the digest of its file. Raises as `bundled_file`."""
    from safetensors.torch import load_file

    path, card = bundled_file()
    return expand(load_file(path), card["model_cfg"], card["token_seed"], tokens), card["sha256"]


def expand(
    state: dict[str, "Tensor"], model_cfg: dict[str, Any], token_seed: int, tokens: TokenTable = tokens_as_drawn
) -> "CLIP":
    """A CLIP from half-precision weights that hold only some rows of the token table; `tokens` draws the others."""
    clip = new_clip(model_cfg)
    state = {key: value.float() for key, value in state.items()}
    ids, rows = state.pop(IDS).long(), state.pop(ROWS)
    table = tokens(token_seed, (clip.vocab_size, rows.shape[1]))
    table[ids] = rows
    clip.load_state_dict({**state, "token_embedding.weight": table})
    return clip


def are_trained(token_ids: "Tensor") -> bool:
    """Whether prompts (C, L) hold only tokens that tiny was trained on, so that no drawn row has a say."""
    import torch
    from safetensors import safe_open

    with safe_open(_weights_file(), "pt") as file:
        return bool(torch.isin(token_ids, file.get_tensor(IDS)).all())


def _weights_file() -> Path:
    return ASSETS / f"{NAME}.safetensors"


def new_clip(model_cfg: dict[str, Any]) -> "CLIP":
    """A randomly initialised open_clip CLIP of the given shape (embed_dim, vision_cfg, text_cfg, quick_gelu)."""
    from mmrl_core.clip.openclip import open_clip

    return open_clip.CLIP(
        model_cfg["embed_dim"],
        open_clip.CLIPVisionCfg(**model_cfg["vision_cfg"]),
        open_clip.CLIPTextCfg(**model_cfg["text_cfg"]),
        quick_gelu=model_cfg.get("quick_gelu", False),
    )
