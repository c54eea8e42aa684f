"""Verify and freeze a CLIP; `families/` knows what its towers are made of."""

import hashlib
import warnings
from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from mmrl_core.clip import LOGIT_SCALE, bundled
from mmrl_core.clip.blocks import Block
from mmrl_core.clip.bundled import new_clip
from mmrl_core.clip.families.images import ImageForm, image_form
from mmrl_core.clip.families.texts import TextForm, text_form, text_module
from mmrl_core.clip.openclip import CLIP, ResidualAttentionBlock, open_clip
from mmrl_core.clip.precision import whole_float32
from mmrl_core.clip.prompts import cut_note, fill_template, same_prompt
from mmrl_core.clip.supported import refuse_unsupported
from mmrl_core.clip.text_tower import TextTower, text_tower
from mmrl_core.clip.towers import ImageTower
from mmrl_core.clip.weights.preprocessing import check_preprocessing
from mmrl_core.clip.weights.pretrained import TESTED, load_clip
from mmrl_core.clip.weights.tokenizers import CLIPS, tokenizer_of
from mmrl_core.data.squares import ViewSettings
from mmrl_core.errors import UserError

__all__ = ["LOGIT_SCALE", "TESTED", "Backbone", "fill_template", "load_backbone", "new_clip", "tokenizer_for"]

Tokenizer = Callable[[list[str]], Tensor]  # n texts -> ids (n, context length)
KEPT_TEXTS = 2
OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Backbone(nn.Module):
    """A frozen CLIP, always in eval mode, with its tokenizer and preprocessing.

    `image_blocks` and `text_blocks` are the towers' residual blocks; widths and depths come from them.
    `weights_file_sha256` is the digest of the file that the weights came from, None where there is none, and
    `configuration_sha256` that of the configuration that a folder or repository has beside them.
    """

    def __init__(
        self, clip: CLIP, name: str, tokenizer: Tokenizer, weights: str | None = None,
        weights_file_sha256: str | None = None, configuration_sha256: str | None = None,
    ):  # fmt: skip
        super().__init__()
        refuse_unsupported(clip, name)
        check_preprocessing(getattr(clip.visual, "preprocess_cfg", {}), f"backbone {name}")
        self.clip = clip.requires_grad_(False)
        self.name, self.weights, self.tokenizer = name, weights, tokenizer
        self.weights_file_sha256, self.configuration_sha256 = weights_file_sha256, configuration_sha256
        self._frozen: dict[tuple[str, torch.dtype, torch.device], tuple[int, list[Block]]] = {}
        self._texts: dict[Hashable, TextTower] = {}  # those of KEPT_TEXTS that were asked for last
        self.eval()

    @classmethod
    def from_clip(cls, clip: CLIP, *, name: str = "custom", tokenizer: Tokenizer | None = None) -> "Backbone":
        """Wrap an open_clip model. Raises UserError naming what is unsupported about its towers, and where it needs a
        tokenizer that is not given: models by an open_clip name and those with CLIP's vocabulary have one."""
        size = getattr(text_module(clip), "vocab_size", CLIPS)
        if tokenizer is None and size != CLIPS and name not in open_clip.list_models():
            raise UserError(f"backbone {name} has a vocabulary of {size} tokens, not CLIP's; give its tokenizer")
        return cls(clip, name, tokenizer or tokenizer_for(name, getattr(clip, "context_length", None)))

    def train(self, mode: bool = True) -> "Backbone":
        """A frozen CLIP has no training mode: stays in eval mode whatever its parent does."""
        return super().train(False)

    @property
    def visual(self) -> nn.Module:
        return self.clip.visual

    @cached_property
    def image_form(self) -> ImageForm:
        return image_form(self.clip)

    @cached_property
    def text_form(self) -> TextForm:
        return text_form(self.clip)

    @property
    def text(self) -> Any:
        """The module that carries the text tower: the CLIP itself, or the `text` of a CustomTextCLIP."""
        return text_module(self.clip)

    @property
    def image_blocks(self) -> list[nn.Module]:
        return list(self.image_form.blocks)

    @property
    def text_blocks(self) -> list[nn.Module]:
        return list(self.text_form.blocks)

    @property
    def image_width(self) -> int:
        return self.image_form.width

    @property
    def text_width(self) -> int:
        return self.text_form.width

    @property
    def pooled_width(self) -> int:
        """Of what is read off the image tower and projected: the tower's width, or its attention pooling's."""
        return self.image_form.pooled_width

    @cached_property
    def embed_dim(self) -> int:
        return self.image_form.projection().weight.shape[1]

    @property
    def depth(self) -> int:
        """N of the shallower tower, on which insertion depths count."""
        return min(len(self.image_form.blocks), len(self.text_form.blocks))

    @property
    def image_size(self) -> int:
        return self.image_form.size[0]

    @property
    def image_tokens(self) -> int:
        """n, the class token where there is one, and the patches."""
        return self.image_form.n_rows

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
        return self.clip.logit_scale.device

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
        self._texts = {}

    @cached_property
    def weights_sha256(self) -> str:
        """Digest of every weight by name, shape, type and value, whatever file they came from; of a model that has its
        own configuration, of that as well: the same weights would otherwise give other features without a word."""
        digest = hashlib.sha256((self.configuration_sha256 or "").encode())
        for name, tensor in sorted(self.clip.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def gives_what(self, sha256: str, class_names: list[str], template: str) -> bool:
        """Whether its features of these classes, and of any image, are those of the weights with that digest: the same
        weights, or `tiny` as another release or machine drew the tokens that these prompts do not use."""
        if sha256 == self.weights_sha256:
            return True
        if sha256 not in bundled.EARLIER or self.name != bundled.NAME:
            return False
        return self.weights_sha256 in bundled.EARLIER or bundled.are_trained(self.tokenize(class_names, template).cpu())

    @cached_property
    def identity(self) -> str:
        """Digest of all that settles the image tower's outputs: weights, activation, heads and preprocessing."""
        block = self.image_blocks[0]
        if isinstance(block, ResidualAttentionBlock):
            facts = [type(block.mlp[1]).__name__, block.attn.num_heads, block.ln_1.eps]
        else:
            facts = [repr(self.visual), self.frozen_blocks("image", torch.float32)[0].heads]
        facts += [self.image_size, self.mean, self.std]
        if (resizing := tuple(self.view_settings[3:])) != ("shortest", "bicubic"):
            facts.append(resizing)  # only then: digests from before these were known hold
        return hashlib.sha256(f"{self.weights_sha256} {facts}".encode()).hexdigest()

    def frozen_blocks(self, tower: str, dtype: torch.dtype) -> list[Block]:
        """The blocks of the `image` or `text` tower with matrix products in `dtype`; made once, copies in a lower
        precision anew of weights that were written since."""
        key = (tower, dtype, self.device)
        written = 0 if dtype == torch.float32 else _written(self.clip)
        if key not in self._frozen or self._frozen[key][0] != written:
            form = self.image_form if tower == "image" else self.text_form
            with torch.inference_mode(False):  # whoever asks first: training has to be able to use them too
                self._frozen[key] = written, [form.freeze(block, dtype) for block in form.blocks]
        return self._frozen[key][1]

    def text_tower(
        self, class_names: list[str], template: str, n_insert: int, dtype: torch.dtype = torch.float32, runs: int = 1
    ) -> TextTower:
        """As `text_tower`, and the same one for whoever asks for the same: a training, what is fitted after it, its
        folded form and an evaluation of several runs encode the classes once."""
        key = tuple(class_names), template, n_insert, dtype, runs, self.device, _written(self.text)
        tower = self._texts.get(key)
        if tower is None:
            with torch.inference_mode(False):  # whoever asks first, as `frozen_blocks`
                tower = text_tower(self, class_names, template, n_insert, dtype, runs)
        others = {other: kept for other, kept in self._texts.items() if other != key}
        self._texts = {**dict(list(others.items())[1 - KEPT_TEXTS :]), key: tower}
        return tower

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        """`.to(device)` and the like: what was computed of the weights is of the old ones."""
        self._texts = {}
        return super()._apply(*args, **kwargs)

    def embed_images(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, 3, size, size) -> input of the first block (B, n, D), float32; the convolution runs in `dtype`."""
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32), whole_float32():
            return self.image_form.embed(images).float()

    def tokenize(self, class_names: list[str], template: str) -> Tensor:
        """Prompts of the classes as token ids (C, context length). Raises UserError when two names share one.

        The same name twice is let through: ImageNet's class list has some.
        """
        token_ids = self.tokenizer(fill_template(class_names, template))
        first: dict[bytes, int] = {}
        for index, row in enumerate(token_ids.numpy()):
            other = first.setdefault(row.tobytes(), index)
            if class_names[other] != class_names[index]:
                encode, marks = (getattr(self.tokenizer, name, None) for name in ("encode", "marks"))
                pair = class_names[other], class_names[index]
                raise UserError(same_prompt(*pair, template, encode, token_ids.shape[1], marks))
        return token_ids.to(self.device)

    def cut_note(self, class_names: list[str], template: str) -> str | None:
        """A line that names the classes whose prompts the tokenizer cuts; None without one, and where a tokenizer of
        one's own does not tell."""
        encode, limit, marks = (getattr(self.tokenizer, name, None) for name in ("encode", "context_length", "marks"))
        return cut_note(class_names, template, encode, limit, marks) if encode and limit else None

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """Zero-shot features (B, 3, size, size) -> (B, E), L2-normalised."""
        tower = ImageTower(self, n_insert=1)
        return tower.zero_shot(tower.trunk(images))

    @torch.no_grad()
    def encode_text(self, class_names: list[str], template: str) -> Tensor:
        """Zero-shot features of the prompts (C, E), L2-normalised."""
        return self.text_tower(class_names, template, n_insert=1).zero_shot()


def _written(module: nn.Module) -> int:
    """How often its weights were written in place: some train a backbone."""
    return sum(one._version for one in module.parameters() if not one.is_inference())


def measures(backbone: Backbone) -> dict[str, int]:
    """What the shapes of an adapter's tensors depend on, beside its settings."""
    return {
        name: getattr(backbone, name) for name in ("depth", "image_width", "text_width", "pooled_width", "embed_dim")
    }


def check_measures(made_for: dict[str, int], backbone: Backbone) -> None:
    """Raise UserError unless the backbone has the measures that an adapter was made for."""
    for name, measure in measures(backbone).items():
        if made_for[name] != measure:
            raise UserError(
                f"the adapter is made for {name} {made_for[name]} but backbone {backbone.name} has {measure}; "
                f"use the adapter settings and backbone that belong together"
            )


def refuse_one_name(class_names: list[str]) -> None:
    """UserError when a list holds one name again and again: there is nothing to choose. Of several names each may come
    more than once (see `Backbone.tokenize`)."""
    if len(class_names) > 1 and len(set(class_names)) == 1:
        name = class_names[0]
        raise UserError(f"classes {name!r} and {name!r} make the same prompt and there is no other; name more classes")


def tokenizer_for(name: str, context_length: int | None = None) -> Tokenizer:
    """The tokenizer of an open_clip model, or CLIP's standard one; cuts at its own context length or at another. Raises
    UserError for one of Hugging Face that cannot be had."""
    text = open_clip.get_model_config(name if name in open_clip.list_models() else "ViT-B-16")["text_cfg"]
    return tokenizer_of({**text, "context_length": context_length or text.get("context_length")}, name)


def load_backbone(
    name: str, weights: str | None = None, *, device: str | torch.device = "cpu", sha256: str | None = None
) -> Backbone:
    """Load a frozen CLIP: by its open_clip name, from a repository (`hf-hub:org/name`) or a folder (`local-dir:PATH`).

    `weights` is a file, a pretrained tag of open_clip, or `random` / `random:SEED`; the bundled `tiny`, a repository
    and a folder have their own. The activation is the one that `pretrained.py` finds the weights to need. `sha256` is
    what an adapter's card has as the digest of the weights: `tiny` then is as it was for that adapter (`bundled.py`).
    Raises UserError for an unknown name, tag or file, weights that do not fit, and towers that the method does not
    cover, before anything is fetched for them.
    """
    if name != bundled.NAME:
        clip, file_sha256, tokenizer, configuration = load_clip(name, weights)
        return Backbone(clip, name, tokenizer, weights, file_sha256, configuration).to(device)
    if weights is not None:
        raise UserError(f"backbone.weights is {weights!r}, but tiny comes with its own; leave it null")
    if sha256 in bundled.EARLIER:
        earlier = _bundled(bundled.tokens_as_earlier)
        if earlier.weights_sha256 in bundled.EARLIER:  # else this machine's torch draws others
            return earlier.to(device)
    return _bundled().to(device)


def _bundled(tokens: bundled.TokenTable = bundled.tokens_as_drawn) -> Backbone:
    clip, file_sha256 = bundled.bundled_clip(tokens)
    return Backbone(clip, bundled.NAME, tokenizer_for(bundled.NAME), None, file_sha256)
