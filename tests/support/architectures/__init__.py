"""Every architecture of open_clip cut to two layers and small widths, with random weights; what the product says of it.

What makes a family special stays: kinds of blocks, norms, pooling, activations, masks, projections, biases.
"""

import functools
import json
from typing import NamedTuple

import open_clip
import torch
from torch import nn

from mmrl_core.clip.supported import problem_of
from tests.support.architectures.cutting import cut_config
from tests.support.architectures.making import make
from tests.support.architectures.words import Words, words_of


class Cut(NamedTuple):
    """A small model, and a tokenizer that speaks its vocabulary."""

    clip: nn.Module
    tokenizer: Words

    @property
    def image_size(self) -> int:
        return self.clip.visual.image_size[0]


@functools.cache
def problems() -> dict[str, str | None]:
    """Every architecture's name with why the product refuses it, None where it does not."""
    return {name: problem_of(open_clip.get_model_config(name)) for name in sorted(open_clip.list_models())}


def accepted() -> list[str]:
    return [name for name, problem in problems().items() if problem is None]


def form_of(name: str) -> str:
    """What the cut model of a name is made from; names of one form have one and the same cut model."""
    return json.dumps(cut_config(open_clip.get_model_config(name)), sort_keys=True)


def cut(form: str, seed: int = 0) -> Cut:
    """The model of a form, in eval mode; every weight is random, so that no path is hidden by a zero or a one."""
    config = json.loads(form)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        clip = make(config).eval().requires_grad_(False)
        randomize(clip)
    return Cut(clip, words_of(config["text_cfg"]))


def randomize(clip: nn.Module) -> None:
    """Weights of matrices by their inputs, embeddings large enough for features to differ, scales around one."""
    for module in clip.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() < 2:
                nn.init.normal_(parameter, mean=float("bias" not in name), std=0.3)
            elif name.endswith("weight") and not isinstance(module, nn.Embedding):
                nn.init.normal_(parameter, std=1.2 * parameter[0].numel() ** -0.5)
            else:
                nn.init.normal_(parameter, std=1.0)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
