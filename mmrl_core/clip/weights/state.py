"""The tensors of a file of weights by the names that open_clip gives them, however they were saved; of any other file,
in one line, what it is. Nothing is unpickled: archives go through `torchscript.py`, others through `weights_only`.

Who trains a CLIP saves it with more around it: a checkpoint with the epoch, DistributedDataParallel's `module.`,
torch.compile's `_orig_mod.`, the name that the CLIP has in a module of their own.
"""

import contextlib
import pickle
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from mmrl_core.clip.openclip import CLIP, open_clip
from mmrl_core.clip.weights.places import short
from mmrl_core.clip.weights.torchscript import is_torchscript, read_tensors
from mmrl_core.errors import UserError

OPENAI_KEYS = {"input_resolution", "context_length", "vocab_size"}  # beside the weights, in OpenAI's files alone
NUMPY = (".npz", ".npy")  # of big_vision; open_clip reads them, without pickles
HOLDERS = ("state_dict", "model_state_dict", "model")  # where checkpoints of trainings have the weights
WRAPPERS = ("module", "_orig_mod")  # what DataParallel and torch.compile put into a name
TOWERS = ("visual", "text")  # first parts of names that are open_clip's own
MOBILE = "image_encoder.model."  # Apple's own MobileCLIP, which open_clip converts
LORA = "a LoRA without the model that it belongs to; merge the two and save the result"
# By how the names of tensors begin: what the file is.
OTHERS = (
    (("space", "image_aligner.", "text_aligner."), "an adapter of this project, not a backbone; name the CLIP that its "
     "adapter.json has under `backbone`"),
    (("base_model.model.", "lora_"), LORA),
    (("text_model.", "vision_model."), "of transformers; name the folder that it lies in, with its config.json, as "
     "backbone.name local-dir:FOLDER"),
    (("blocks.", "patch_embed.", "cls_token", "conv1.", "class_embedding"), "an image tower alone, without its texts"),
)  # fmt: skip


class State(NamedTuple):
    """Tensors by open_clip's names, and whether OpenAI saved them (half precision, trained with QuickGELU)."""

    tensors: dict[str, Tensor]
    is_openai: bool


@contextlib.contextmanager
def in_one_line(what: str) -> Iterator[None]:
    """Turns what reading a file and filling a model raise into UserError: `what`, and why. open_clip, timm and torch
    raise many kinds."""
    try:
        yield
    except UserError:
        raise
    except pickle.UnpicklingError as error:  # torch's own text advises to unpickle it
        reason = "it is damaged or holds more than tensors; fetch it again or save its state dict"
        raise UserError(f"{what}: {reason}") from error
    except Exception as error:
        raise UserError(f"{what}: {short(error)}") from error


def read_state(path: Path) -> State:
    """The weights of a file. Raises ValueError saying what it is instead, pickle.UnpicklingError for a file that holds
    anything but tensors, and what safetensors, torch and zipfile raise on a damaged one."""
    content = read_content(path)
    if content.keys() >= OPENAI_KEYS:
        return State({key: value for key, value in content.items() if key not in OPENAI_KEYS}, True)
    if path.suffix != ".safetensors" and is_torchscript(path):
        raise ValueError("it is a TorchScript archive, but not of an OpenAI model; save its state dict instead")
    tensors = unwrapped(tensors_of(content))
    if problem := _not_open_clips(tensors):
        raise ValueError(f"it is {problem}")
    return State(tensors, False)


def read_content(path: Path) -> Mapping[str, Any]:
    """What a file holds by name, tensors or not. Raises as `read_state`."""
    if path.suffix == ".json":
        raise ValueError("it is JSON; of a list of shards name the folder, as backbone.name local-dir:FOLDER")
    if path.suffix == ".safetensors":
        return load_file(path)
    if is_torchscript(path):
        return read_tensors(path)
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    if not isinstance(content, Mapping):
        raise ValueError(f"it holds a {type(content).__name__}, not weights by name; save the model's state dict")
    return content


def tensors_of(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights in a file's content: all of it, or what a checkpoint of a training keeps under a name. Raises
    ValueError where there are none."""
    held = next((content[key] for key in HOLDERS if isinstance(content.get(key), Mapping)), content)
    if held.keys() >= {"state", "param_groups"}:
        raise ValueError("it is the state of an optimizer; save the model's state dict")
    others = [str(key) for key, value in held.items() if not isinstance(value, Tensor)]
    if others or not held:
        raise ValueError(f"it holds {_some(others) or 'nothing'}, not weights alone; save the model's state dict")
    return {str(key): value for key, value in held.items()}


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without what wrappers put into their names, in whatever order, and without a name that all of them
    share. Raises ValueError where two would be called alike."""
    split = [[part for part in name.split(".") if part not in WRAPPERS] for name in tensors]
    while len(first := {parts[0] for parts in split if parts}) == 1 and not first & {*TOWERS}:
        if any(len(parts) < 2 for parts in split):
            break
        split = [parts[1:] for parts in split]
    named = {".".join(parts): tensor for parts, tensor in zip(split, tensors.values(), strict=True)}
    if len(named) < len(tensors):
        raise ValueError("it holds two sets of weights whose names differ in `module.` or `_orig_mod.` alone; save one")
    return named


def _not_open_clips(tensors: Iterable[str]) -> str | None:
    names = list(tensors)
    if any("lora_" in name for name in names):
        return LORA
    if any(name.startswith(("visual.", MOBILE)) for name in names):
        return None if any(not name.startswith("visual.") for name in names) else OTHERS[-1][1]
    for beginnings, what in OTHERS:
        if any(name.startswith(beginnings) for name in names):
            return what
    return f"no CLIP of open_clip's: its tensors are called {_some(names)}"


def fill(clip: CLIP, tensors: Mapping[str, Tensor]) -> None:
    """Give a model the weights, each of them. Raises ValueError naming what is missing, unknown or of another shape."""
    clip.load_state_dict(check_fit(clip, tensors))


def check_fit(clip: CLIP, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights as this model calls them. Raises ValueError as `fill`."""
    state, own = dict(_converted(clip, dict(tensors))), clip.state_dict()
    for scalar in ("logit_scale", "logit_bias"):  # with and without a dimension, over the years
        if scalar in state and scalar in own and state[scalar].numel() == 1:
            state[scalar] = state[scalar].reshape(own[scalar].shape)
    if "logit_bias" in own and "logit_bias" not in state:
        state["logit_bias"] = torch.zeros_like(own["logit_bias"])  # trained without one
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if problem := misfit(shapes, {name: tuple(tensor.shape) for name, tensor in own.items()}):
        raise ValueError(problem)
    whole = [name for name, tensor in state.items() if own[name].is_floating_point() and not tensor.is_floating_point()]
    if whole:  # which torch would copy as if they were the weights
        raise ValueError(f"its {whole[0]} is {state[whole[0]].dtype}: quantised; take the weights that it was made of")
    return state


def _converted(clip: CLIP, state: dict[str, Tensor]) -> Mapping[str, Tensor]:
    """As this model calls them: a text tower lies in `text.` or does not, Apple's names become open_clip's."""
    state = open_clip.factory.convert_state_dict(clip, state)
    if not hasattr(clip, "text"):
        state = {name.removeprefix("text."): tensor for name, tensor in state.items()}
    elif "positional_embedding" in state:
        state = open_clip.factory.convert_to_custom_text_state_dict(state)
    stale = "text.transformer.embeddings.position_ids"  # numbers from 0, which older transformers saved
    return {name: tensor for name, tensor in state.items() if name != stale or stale in clip.state_dict()}


def misfit(theirs: Mapping[str, tuple[int, ...]], ours: Mapping[str, tuple[int, ...]]) -> str | None:
    """What tensors by name and shape lack or have too much, None where they are those of the model."""
    missing, unknown = [name for name in ours if name not in theirs], [name for name in theirs if name not in ours]
    if missing:
        return f"it lacks {_some(missing)}" + (f" and has {_some(unknown)} instead" if unknown else "")
    if unknown:
        return f"it has {_some(unknown)}, which the model has not"
    other = [name for name, shape in theirs.items() if shape != ours[name]]
    return f"its {other[0]} is {theirs[other[0]]}, not {ours[other[0]]}" if other else None


def _some(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name[:80] for name in names[:most]) + more
