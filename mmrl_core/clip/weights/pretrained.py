"""Weights of CLIPs by open_clip's tag or from a file: fetched, checked, and given the activation they need.

OpenAI's CLIPs apply QuickGELU, most others GELU, and weights under the wrong one load without complaint and are wrong.
A tag, or a file whose sha256 open_clip's list holds, needs what open_clip says of it; a file in OpenAI's format needs
QuickGELU; of any other file the activation cannot be read off, and the model's name decides: ViT-B-16 has GELU,
ViT-B-16-quickgelu has QuickGELU. A plain name takes the activation that the weights need, a -quickgelu name refuses
weights known to need GELU. Images are resized and normalised as a tag, a known file or a configuration beside the file
asks (`preprocessing.py`), otherwise as OpenAI's.

No file is unpickled: TorchScript archives go through `torchscript.py`, others through torch's `weights_only`.
"""

import difflib
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from mmrl_core.clip.openclip import CLIP, open_clip
from mmrl_core.clip.portable import PortableInit
from mmrl_core.clip.supported import refuse_by_configuration
from mmrl_core.clip.weights.preprocessing import preprocessing
from mmrl_core.clip.weights.sizes import check_sizes
from mmrl_core.clip.weights.torchscript import is_torchscript, read_tensors
from mmrl_core.errors import UserError
from mmrl_core.files import sha256_file
from mmrl_core.parsing import whole_number

# open_clip's names and tags whose towers and activation the tests check; other plain CLIP ViTs should do as well.
TESTED = (
    ("ViT-B-16", "openai"), ("ViT-B-32", "openai"), ("ViT-L-14", "openai"),
    ("ViT-B-16", "laion400m_e32"), ("ViT-B-32", "laion400m_e32"), ("ViT-L-14", "laion400m_e32"),
    ("ViT-B-16", "laion2b_s34b_b88k"), ("ViT-B-32", "laion2b_s34b_b79k"), ("ViT-L-14", "laion2b_s32b_b82k"),
    ("ViT-B-16", "datacomp_xl_s13b_b90k"), ("ViT-B-32", "datacomp_xl_s13b_b90k"), ("ViT-L-14", "datacomp_xl_s13b_b90k"),
)  # fmt: skip
OPENAI_KEYS = {"input_resolution", "context_length", "vocab_size"}  # beside the weights, in OpenAI's files alone
PretrainedCfg = dict[str, Any]  # what open_clip says of published weights: url, quick_gelu, mean, resize_mode ...


class LoadedCLIP(NamedTuple):
    """A model of open_clip with its weights, and the digest of the file they came from, if they came from one."""

    clip: CLIP
    file_sha256: str | None


def load_clip(name: str, weights: str | None) -> LoadedCLIP:
    """The model of that open_clip name with the weights of a tag, a file, or `random` / `random:SEED`.

    Raises UserError for an unknown name, tag or file, for a tag that cannot be fetched, and for weights that do not fit
    the model or its activation, or are not the file that their name or place says.
    """
    _check_name(name)
    refuse_by_configuration(name, open_clip.get_model_config(name))  # before anything is fetched or read
    if not weights:
        raise UserError(f"backbone.weights is not set for {name}; give a file, an open_clip tag, or `random`")
    if weights.split(":")[0] == "random":
        return LoadedCLIP(_random_model(name, weights), None)
    known = _tag(name, weights)
    if known is None and not Path(weights).is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name))
        raise UserError(f"backbone.weights {weights!r} is neither a file nor a tag of {name} ({tags})")
    if known is not None:
        _check_activation(name, weights, known)  # before anything is fetched
        preprocessing(known, None, f"backbone.weights {weights}")
    path = Path(weights if known is None else _fetched(name, weights, known))
    sha256 = sha256_file(path)
    check_digest(path, sha256)
    known = known or _published_by(sha256)
    pixels = preprocessing(known, path, f"backbone.weights {weights}")
    clip = _model(name, weights, path, known)
    clip.visual.preprocess_cfg = {**getattr(clip.visual, "preprocess_cfg", {}), **pixels}
    return LoadedCLIP(clip, sha256)


def _check_name(name: str) -> None:
    if name not in open_clip.list_models():
        plain = {known.lower(): known for known in ("tiny", *open_clip.list_models())}
        near = [plain[known] for known in difflib.get_close_matches(name.lower(), plain, n=3)]
        hint = f"; did you mean {' or '.join(near)}?" if near else "; see open_clip.list_models()"
        raise UserError(f"backbone.name {name!r} is not a model of open_clip{hint}")


def _random_model(name: str, weights: str) -> CLIP:
    _, _, seed = weights.partition(":")
    number = whole_number(seed or "0")
    if number is None:
        raise UserError(f"backbone.weights {weights!r}: the seed after `random:` must be a whole number")
    with PortableInit(number):
        return open_clip.create_model(name, load_weights=False)


def _plain(name: str) -> str:
    return name.removesuffix("-quickgelu")


def _tag(name: str, weights: str) -> PretrainedCfg | None:
    """open_clip's entry for a tag of the model; for a -quickgelu name it lists only the tags that need QuickGELU."""
    models = [model for model in (name, _plain(name)) if weights in open_clip.list_pretrained_tags_by_model(model)]
    return open_clip.get_pretrained_cfg(models[0], weights) if models else None


def _check_activation(name: str, weights: str, known: PretrainedCfg) -> None:
    if open_clip.get_model_config(name).get("quick_gelu") and not known.get("quick_gelu"):
        raise UserError(
            f"backbone.weights {weights} was trained with GELU, but {name} has QuickGELU; use {_plain(name)}"
        )


def _fetched(name: str, tag: str, known: PretrainedCfg) -> str:
    try:
        return open_clip.download_pretrained(known)
    except Exception as error:  # a hub raises many kinds
        raise UserError(
            f"backbone.weights {tag!r} of {name} could not be fetched ({_short(error)}); "
            f"try again with a network, or give the path of a weights file instead of the tag"
        ) from error


def _model(name: str, weights: str, path: Path, known: PretrainedCfg | None) -> CLIP:
    try:
        state = openai_state(path)
        check_sizes(name, weights, _other_state(path) if state is None else state)
        return _from_file(name, weights, path, known) if state is None else _openai_model(name, state)
    except UserError:
        raise
    except pickle.UnpicklingError as error:  # torch's own text advises to unpickle it
        reason = "it is damaged or holds more than tensors; fetch it again or save its state dict"
        raise UserError(f"backbone.weights {weights!r} does not load into {name}: {reason}") from error
    except Exception as error:  # a file format or key mismatch: open_clip and torch raise many kinds
        raise UserError(f"backbone.weights {weights!r} does not load into {name}: {_short(error)}") from error


def _from_file(name: str, weights: str, path: Path, known: PretrainedCfg | None) -> CLIP:
    if known is None:
        return open_clip.create_model(name, pretrained=str(path))
    _check_activation(name, weights, known)
    return open_clip.create_model(name, pretrained=str(path), force_quick_gelu=bool(known.get("quick_gelu")))


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def openai_state(path: Path) -> dict[str, Tensor] | None:
    """The weights (half precision where OpenAI has that) of a file in OpenAI's format, None for any other file.

    That is the TorchScript archive that OpenAI publishes, or its state dict saved with `torch.save`. Raises
    pickle.UnpicklingError on a file that holds anything but tensors, ValueError on an archive of another make, and what
    torch raises on a damaged file.
    """
    if path.suffix in (".safetensors", ".npz", ".npy"):
        return None
    archive = is_torchscript(path)
    state = read_tensors(path) if archive else _state_dict(path)
    if not isinstance(state, Mapping) or not state.keys() >= OPENAI_KEYS:
        if archive:
            raise ValueError("it is a TorchScript archive, but not of an OpenAI model; save its state dict instead")
        return None
    return {key: value for key, value in state.items() if key not in OPENAI_KEYS}


def _state_dict(path: Path) -> object:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _other_state(path: Path) -> Mapping[str, Tensor]:
    """The weights of a file that is not in OpenAI's format, by the names that open_clip looks for."""
    if path.suffix in (".npz", ".npy"):  # of big_vision, whose towers are none of the method's
        return {}
    state = load_file(path) if path.suffix == ".safetensors" else _state_dict(path)
    state = state.get("state_dict", state) if isinstance(state, Mapping) else {}
    return {key.removeprefix("module."): value for key, value in state.items()}


def _openai_model(name: str, state: dict[str, Tensor]) -> CLIP:
    """OpenAI trained with QuickGELU, whatever the model's name says; weights in float32."""
    clip = open_clip.CLIP(**{**open_clip.get_model_config(name), "quick_gelu": True})
    clip.load_state_dict(state)
    return clip


def _published() -> dict[str, tuple[str, PretrainedCfg]]:
    """File name -> sha256 or its first digits, and open_clip's facts: the files whose address carries a digest."""
    facts = [open_clip.get_pretrained_cfg(*pair) for pair in open_clip.list_pretrained()]
    return {known["url"].split("/")[-1]: (digest, known) for known in facts if (digest := _digest_in(known["url"]))}


def _digest_in(url: str) -> str:
    """OpenAI's folder is a sha256, open_clip's own file names end in its first eight digits."""
    folder, _, file = url.rpartition("/")
    if "openaipublic" in url:
        return folder.split("/")[-1]
    return Path(file).stem.split("-")[-1] if "mlfoundations" in url else ""


def _published_by(sha256: str) -> PretrainedCfg | None:
    return next((known for digest, known in _published().values() if sha256.startswith(digest)), None)


def check_digest(path: Path, sha256: str) -> None:
    """Raises UserError when a file is not what it is called or where it lies says.

    Files that bear a published name must be that file. A folder named by a sha256, as in OpenAI's addresses, and a
    link to a file so named, as in the Hugging Face cache, say what the file must be.
    """
    digests = [name for name in (path.parent.name, path.resolve().name) if re.fullmatch("[0-9a-f]{64}", name)]
    published, _ = _published().get(path.name, ("", {}))
    for digest in [published, *digests]:
        if not sha256.startswith(digest):
            raise UserError(
                f"the weights {path} are not the file that their name or folder says: the sha256 begins with "
                f"{sha256[:12]}, not {digest[:12]}; fetch them again, or rename them if they are another model's"
            )
