"""Weights of CLIPs by open_clip's tag or from a file: fetched, checked, and given the activation they need.

OpenAI's CLIPs apply QuickGELU, most others GELU, and weights under the wrong one load without complaint and are wrong.
A tag, or a file whose sha256 open_clip's list holds, needs what open_clip says of it; a file in OpenAI's format needs
QuickGELU; of any other file the activation cannot be read off, and the model's name decides: ViT-B-16 has GELU,
ViT-B-16-quickgelu has QuickGELU. A plain name takes the activation that the weights need, a -quickgelu name refuses
weights known to need GELU. Images are resized and normalised as a tag, a known file or a configuration beside the file
asks (`preprocessing.py`), otherwise as OpenAI's.

No file is unpickled (`state.py`).
"""

from pathlib import Path

from mmrl_core.clip.openclip import CLIP, open_clip
from mmrl_core.clip.supported import refuse_by_configuration
from mmrl_core.clip.weights.building import Config, LoadedCLIP, is_random, new_model, random_model
from mmrl_core.clip.weights.names import check_name
from mmrl_core.clip.weights.packaged import load_packaged
from mmrl_core.clip.weights.places import DIRECTORY, is_place, short
from mmrl_core.clip.weights.preprocessing import preprocessing
from mmrl_core.clip.weights.published import PretrainedCfg, check_digest, published_by
from mmrl_core.clip.weights.sizes import check_sizes
from mmrl_core.clip.weights.state import NUMPY, fill, in_one_line, read_state
from mmrl_core.clip.weights.tokenizers import tokenizer_of
from mmrl_core.errors import UserError
from mmrl_core.files import sha256_file

# open_clip's names and tags whose towers and activation the tests check; other plain CLIP ViTs should do as well.
TESTED = (
    ("ViT-B-16", "openai"), ("ViT-B-32", "openai"), ("ViT-L-14", "openai"),
    ("ViT-B-16", "laion400m_e32"), ("ViT-B-32", "laion400m_e32"), ("ViT-L-14", "laion400m_e32"),
    ("ViT-B-16", "laion2b_s34b_b88k"), ("ViT-B-32", "laion2b_s34b_b79k"), ("ViT-L-14", "laion2b_s32b_b82k"),
    ("ViT-B-16", "datacomp_xl_s13b_b90k"), ("ViT-B-32", "datacomp_xl_s13b_b90k"), ("ViT-L-14", "datacomp_xl_s13b_b90k"),
)  # fmt: skip


def load_clip(name: str, weights: str | None) -> LoadedCLIP:
    """The model of that name with its weights and its tokenizer: an open_clip name with the weights of a tag, a file,
    or `random` / `random:SEED`; or a folder or repository that has its own (`packaged.py`).

    Raises UserError for an unknown name, tag or file, for a model that the method does not cover, before anything is
    fetched or read, for a tag that cannot be fetched, and for weights that do not fit the model or its activation, or
    are not the file that their name or place says.
    """
    if is_place(name):
        return load_packaged(name, weights)
    check_name(name)
    config = open_clip.get_model_config(name)
    refuse_by_configuration(name, config)
    if not weights:
        raise UserError(f"backbone.weights is not set for {name}; give a file, an open_clip tag, or `random`")
    if is_random(weights):
        return LoadedCLIP(random_model(name, config, weights), None, tokenizer_of(config["text_cfg"], name))
    known = _known(name, weights)
    tokenizer = tokenizer_of(config["text_cfg"], name)
    path = Path(weights if known is None else _fetched(name, weights, known))
    sha256 = sha256_file(path)
    check_digest(path, sha256)
    known = known or published_by(sha256)
    pixels = preprocessing(known, path, f"backbone.weights {weights}")
    clip = _model(name, config, weights, path, known)
    clip.visual.preprocess_cfg = {**getattr(clip.visual, "preprocess_cfg", {}), **pixels}
    return LoadedCLIP(clip, sha256, tokenizer)


def _known(name: str, weights: str) -> PretrainedCfg | None:
    """What open_clip says of a tag, None for a file. Raises UserError for what is neither, and for a tag whose weights
    would not do."""
    known = _tag(name, weights)
    if known is None and (is_place(weights) or Path(weights).is_dir()):
        own = weights if is_place(weights) else DIRECTORY + weights
        raise UserError(f"backbone.weights {weights!r} has its own configuration; set backbone.name to {own} alone")
    if known is None and not Path(weights).is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name))
        raise UserError(f"backbone.weights {weights!r} is neither a file nor a tag of {name} ({tags})")
    if known is not None:
        _check_activation(name, weights, known)  # before anything is fetched
        preprocessing(known, None, f"backbone.weights {weights}")
    return known


def _plain(name: str) -> str:
    return name.removesuffix("-quickgelu")


def _tag(name: str, weights: str) -> PretrainedCfg | None:
    """open_clip's entry for a tag of the model; for a -quickgelu name it lists only the tags that need QuickGELU."""
    models = [model for model in (name, _plain(name)) if weights in open_clip.list_pretrained_tags_by_model(model)]
    return open_clip.get_pretrained_cfg(models[0], weights) if models else None


def _check_activation(name: str, weights: str, known: PretrainedCfg) -> None:
    if name != _plain(name) and not known.get("quick_gelu"):
        raise UserError(
            f"backbone.weights {weights} was trained with GELU, but {name} has QuickGELU; use {_plain(name)}"
        )


def _fetched(name: str, tag: str, known: PretrainedCfg) -> str:
    try:
        return open_clip.download_pretrained(known)
    except Exception as error:  # a hub raises many kinds
        raise UserError(
            f"backbone.weights {tag!r} of {name} could not be fetched ({short(error)}); "
            f"try again with a network, or give the path of a weights file instead of the tag"
        ) from error


def _model(name: str, config: Config, weights: str, path: Path, known: PretrainedCfg | None) -> CLIP:
    with in_one_line(f"backbone.weights {weights!r} does not load into {name}"):
        if path.suffix in NUMPY:
            return _of_big_vision(config, path)
        state, is_openai = read_state(path)
        check_sizes(name, config, weights, state)
        if known is not None and not is_openai:
            _check_activation(name, weights, known)
        # OpenAI trained with QuickGELU, whatever the model's name says; a few models have it under every name.
        quick = is_openai or bool((known or {}).get("quick_gelu") or config.get("quick_gelu"))
        clip = new_model({**config, "quick_gelu": quick})
        fill(clip, state)
    return clip


def _of_big_vision(config: Config, path: Path) -> CLIP:
    """NumPy's files of SigLIP's authors, which open_clip reads into its own SigLIPs, without pickles."""
    if not config["vision_cfg"].get("timm_model_name") or "init_logit_bias" not in config:
        raise ValueError("it is NumPy's, as big_vision saves SigLIPs, and only those of open_clip take it")
    clip = new_model(config)
    open_clip.factory.load_checkpoint(clip, str(path))
    return clip
