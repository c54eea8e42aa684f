"""Verify and freeze a CLIP. The only user of open_clip's private interfaces."""

import hashlib
import json
import warnings
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mmrl_core.clip.blocks import Block, freeze
from mmrl_core.clip.openclip import (
    CLIP,
    ResidualAttentionBlock,
    TextTransformer,
    VisionTransformer,
    open_clip,
)
from mmrl_core.clip.preprocessing import check_preprocessing
from mmrl_core.clip.pretrained import TESTED, LoadedCLIP, load_clip
from mmrl_core.clip.towers import ImageTower, TextTower
from mmrl_core.data.views import ViewSettings
from mmrl_core.errors import UserError
from mmrl_core.files import sha256_file

__all__ = ["TESTED", "Backbone", "expand", "fill_template", "load_backbone", "new_clip", "tokenizer_for"]

ASSETS = Path(__file__).parent.parent / "assets"
LOGIT_SCALE = 100.0
Tokenizer = Callable[[list[str]], Tensor]  # n texts -> ids (n, context length)
OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Backbone(nn.Module):
    """A frozen CLIP, always in eval mode, with its tokenizer and preprocessing.

    `image_blocks` and `text_blocks` are the towers' residual blocks; widths and depths come from them.
    `weights_file_sha256` is the digest of the file that the weights came from, None where there is none.
    """

    def __init__(
        self, clip: CLIP, name: str, tokenizer: Tokenizer, weights: str | None = None,
        weights_file_sha256: str | None = None,
    ):  # fmt: skip
        super().__init__()
        _refuse_unsupported(clip, name)
        check_preprocessing(getattr(clip.visual, "preprocess_cfg", {}), f"backbone {name}")
        self.clip = clip.requires_grad_(False)
        self.name, self.weights, self.tokenizer = name, weights, tokenizer
        self.weights_file_sha256 = weights_file_sha256
        self._frozen: dict[tuple[str, torch.dtype, torch.device], list[Block]] = {}
        self.eval()

    @classmethod
    def from_clip(cls, clip: CLIP, *, name: str = "custom", tokenizer: Tokenizer | None = None) -> "Backbone":
        """Wrap an open_clip model. Raises UserError naming what is unsupported about its towers."""
        return cls(clip, name, tokenizer or tokenizer_for(name))

    def train(self, mode: bool = True) -> "Backbone":
        """A frozen CLIP has no training mode: stays in eval mode whatever its parent does."""
        return super().train(False)

    @property
    def visual(self) -> VisionTransformer:
        return self.clip.visual

    @property
    def text(self) -> CLIP | TextTransformer:
        """The module that carries the text tower: the CLIP itself, or the `text` of a CustomTextCLIP."""
        return getattr(self.clip, "text", self.clip)

    @property
    def image_blocks(self) -> list[ResidualAttentionBlock]:
        return list(self.visual.transformer.resblocks)

    @property
    def text_blocks(self) -> list[ResidualAttentionBlock]:
        return list(self.text.transformer.resblocks)

    @property
    def image_width(self) -> int:
        return self.visual.conv1.out_channels

    @property
    def text_width(self) -> int:
        return self.text.token_embedding.embedding_dim

    @property
    def embed_dim(self) -> int:
        return self.visual.proj.shape[1]

    @property
    def depth(self) -> int:
        """N of the shallower tower, on which insertion depths count."""
        return min(len(self.image_blocks), len(self.text_blocks))

    @property
    def image_size(self) -> int:
        return self.visual.image_size[0]

    @property
    def image_tokens(self) -> int:
        """1 + P, the class token and the patches."""
        return self.visual.positional_embedding.shape[0]

    def _asks_for(self, key: str, default: Any) -> Any:
        """What its weights say of preprocessing."""
        return getattr(self.visual, "preprocess_cfg", {}).get(key) or default

    @property
    def mean(self) -> tuple[float, ...]:
        return tuple(self._asks_for("mean", getattr(self.visual, "image_mean", None) or OPENAI_MEAN))

    @property
    def std(self) -> tuple[float, ...]:
        return tuple(self._asks_for("std", getattr(self.visual, "image_std", None) or OPENAI_STD))

    @property
    def view_settings(self) -> ViewSettings:
        """How its weights want images prepared."""
        interpolation = self._asks_for("interpolation", "random").replace("random", "bicubic")  # open_clip's reading
        resize_mode = self._asks_for("resize_mode", "shortest")
        return ViewSettings(self.image_size, self.mean, self.std, resize_mode, interpolation)

    @property
    def device(self) -> torch.device:
        return self.visual.proj.device

    def arrays(self) -> dict[str, np.ndarray]:
        """Its weights by name, on a CPU."""
        return {name: parameter.detach().numpy() for name, parameter in self.clip.named_parameters()}

    def adopt(self, arrays: dict[str, np.ndarray]) -> None:
        """Replace the weights by the same ones in arrays, which may be read-only and shared with other processes."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of arrays that cannot be written to: a frozen CLIP never is
            for name, parameter in self.clip.named_parameters():
                parameter.data = torch.from_numpy(arrays[name])
        self._frozen.clear()

    @cached_property
    def weights_sha256(self) -> str:
        """Digest of every weight by name, shape, type and value, whatever file they came from."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.clip.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    @cached_property
    def identity(self) -> str:
        """Digest of all that settles the image tower's outputs: weights, activation, heads and preprocessing."""
        block = self.image_blocks[0]
        facts = [
            type(block.mlp[1]).__name__,
            block.attn.num_heads,
            block.ln_1.eps,
            self.image_size,
            self.mean,
            self.std,
        ]
        if (resizing := tuple(self.view_settings[3:])) != ("shortest", "bicubic"):
            facts.append(resizing)  # only then: digests from before these were known hold
        return hashlib.sha256(f"{self.weights_sha256} {facts}".encode()).hexdigest()

    def frozen_blocks(self, tower: str, dtype: torch.dtype) -> list[Block]:
        """The blocks of the `image` or `text` tower with matrix products in `dtype`; made once."""
        key = (tower, dtype, self.device)
        if key not in self._frozen:
            blocks = self.image_blocks if tower == "image" else self.text_blocks
            with torch.inference_mode(False):  # whoever asks first: training has to be able to use them too
                self._frozen[key] = [freeze(block, dtype) for block in blocks]
        return self._frozen[key]

    def embed_images(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, 3, size, size) -> input of the first block (B, 1 + P, D), float32; the convolution runs in `dtype`."""
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            return self.visual._embeds(images).float()

    def embed_tokens(self, token_ids: Tensor) -> Tensor:
        """(C, L) ids, L up to the context length -> input of the first block (C, L, D)."""
        return self.text.token_embedding(token_ids) + self.text.positional_embedding[: token_ids.shape[1]]

    def tokenize(self, class_names: list[str], template: str) -> Tensor:
        """Prompts of the classes as token ids (C, context length). Raises UserError when two names share one.

        The same name twice is let through: ImageNet's class list has some.
        """
        token_ids = self.tokenizer(fill_template(class_names, template))
        first: dict[bytes, int] = {}
        for index, row in enumerate(token_ids):
            other = first.setdefault(row.numpy().tobytes(), index)
            if class_names[other] != class_names[index]:
                names = f"{class_names[other]!r} and {class_names[index]!r}"
                raise UserError(f"classes {names} make the same prompt; give every class its own name")
        return token_ids.to(self.device)

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """Zero-shot features (B, 3, size, size) -> (B, E), L2-normalised."""
        tower = ImageTower(self, n_insert=1)
        return tower.zero_shot(tower.trunk(images))

    @torch.no_grad()
    def encode_text(self, class_names: list[str], template: str) -> Tensor:
        """Zero-shot features of the prompts (C, E), L2-normalised."""
        return TextTower(self, class_names, template, n_insert=1).zero_shot()


def refuse_repeated(class_names: list[str]) -> None:
    """UserError when a user's own list names a class twice; benchmark lists may (see `Backbone.tokenize`)."""
    if repeated := [name for index, name in enumerate(class_names) if name in class_names[:index]]:
        raise UserError(f"classes {repeated[0]!r} and {repeated[0]!r} make the same prompt; name each once")


def fill_template(class_names: list[str], template: str) -> list[str]:
    """One prompt a class; '_' in a class name becomes a space."""
    if "{}" not in template:
        raise UserError(f"prompt template {template!r} has no {{}} for the class name; add one")
    if not class_names:
        raise UserError("the list of class names is empty; name at least one class")
    return [template.replace("{}", name.replace("_", " ")) for name in class_names]


def tokenizer_for(name: str) -> Tokenizer:
    """The tokenizer of an open_clip model, or CLIP's standard one."""
    return open_clip.get_tokenizer(name if name in open_clip.list_models() else "ViT-B-16")


def new_clip(model_cfg: dict[str, Any]) -> CLIP:
    """A randomly initialised open_clip CLIP of the given shape (embed_dim, vision_cfg, text_cfg, quick_gelu)."""
    return open_clip.CLIP(
        model_cfg["embed_dim"],
        open_clip.CLIPVisionCfg(**model_cfg["vision_cfg"]),
        open_clip.CLIPTextCfg(**model_cfg["text_cfg"]),
        quick_gelu=model_cfg.get("quick_gelu", False),
    )


def load_backbone(name: str, weights: str | None = None, *, device: str | torch.device = "cpu") -> Backbone:
    """Load a frozen CLIP by its open_clip name.

    `weights` is a file, a pretrained tag of open_clip, or `random` / `random:SEED`; the bundled `tiny` needs none. The
    activation is the one that `pretrained.py` finds the weights to need. Raises UserError for an unknown name,
    tag or file, weights that do not fit, and towers that the method does not cover.
    """
    if name == "tiny" and weights is not None:
        raise UserError(f"backbone.weights is {weights!r}, but tiny comes with its own; leave it null")
    clip, file_sha256 = _bundled_clip(name) if name == "tiny" else load_clip(name, weights)
    return Backbone(clip, name, tokenizer_for(name), weights, file_sha256).to(device)


def _bundled_clip(name: str) -> LoadedCLIP:
    """The CLIP shipped in assets/: only the token rows it was trained on are stored, the rest follow from a seed."""
    card = json.loads((ASSETS / f"{name}.json").read_text())
    path = ASSETS / f"{name}.safetensors"
    if sha256_file(path) != card["sha256"]:
        raise UserError(f"{path} does not match the sha256 in {path.with_suffix('.json')}; reinstall the package")
    return LoadedCLIP(expand(load_file(path), card["model_cfg"], card["token_seed"]), card["sha256"])


def expand(state: dict[str, Tensor], model_cfg: dict[str, Any], token_seed: int) -> CLIP:
    """A CLIP from half-precision weights that hold only some rows of the token table; the others follow from a seed."""
    clip = new_clip(model_cfg)
    state = {key: value.float() for key, value in state.items()}
    ids, rows = state.pop("token_embedding.ids").long(), state.pop("token_embedding.rows")
    generator = torch.Generator().manual_seed(token_seed)
    table = torch.randn(clip.vocab_size, rows.shape[1], generator=generator) * 0.02
    table[ids] = rows
    clip.load_state_dict({**state, "token_embedding.weight": table})
    return clip


def _refuse_unsupported(clip: CLIP, name: str) -> None:
    problem = _image_tower_problem(clip) or _text_tower_problem(clip)
    if problem:
        raise UserError(
            f"backbone {name} is not supported: {problem}; use a CLIP with a plain ViT and causal text tower"
        )


def _image_tower_problem(clip: CLIP) -> str | None:
    visual = getattr(clip, "visual", None)
    if not isinstance(visual, VisionTransformer):
        return f"its image tower is a {type(visual).__name__}, not a ViT"
    if visual.attn_pool is not None or visual.pool_type != "tok" or visual.final_ln_after_pool:
        return "its image tower does not read the class token after ln_post"
    if not isinstance(visual.patch_dropout, nn.Identity) or visual.proj is None:
        return "its image tower drops patches or has no projection"
    if visual.image_size[0] != visual.image_size[1]:
        return "its images are not square"
    return _block_problem(visual.transformer.resblocks, "image")


def _text_tower_problem(clip: CLIP) -> str | None:
    if not isinstance(clip, open_clip.CLIP | open_clip.CustomTextCLIP):
        return f"{type(clip).__name__} is not a CLIP of open_clip"
    text = getattr(clip, "text", clip)
    if not hasattr(text, "token_embedding") or not hasattr(text, "transformer"):
        return f"its text tower is a {type(text).__name__}"
    pool_type = getattr(text, "text_pool_type", None) or getattr(text, "pool_type", None)
    if pool_type != "argmax" or text.attn_mask is None or getattr(text, "cls_emb", None) is not None:
        return "its text tower is not causal or does not read the end-of-text token"
    if not isinstance(text.text_projection, nn.Parameter):
        return "its text projection is not a plain matrix"
    return _block_problem(text.transformer.resblocks, "text")


def _block_problem(blocks: nn.ModuleList, tower: str) -> str | None:
    kinds = {type(block) for block in blocks} - {ResidualAttentionBlock}
    return f"its {tower} tower has {kinds.pop().__name__} layers" if kinds else None
