"""A backbone's name that is none: what was meant, of what can be adapted."""

import difflib
import os

from mmrl_core.clip.openclip import open_clip
from mmrl_core.clip.supported import refuse_by_configuration
from mmrl_core.clip.weights.places import DIRECTORY, HUB, REPOSITORY
from mmrl_core.errors import UserError

SPELLINGS = {
    "hf_hub:": HUB, "hfhub:": HUB, "hf-hub/": HUB, "hub:": HUB, "hf:": HUB, "hf://": HUB, "huggingface:": HUB,
    "https://huggingface.co/": HUB, "huggingface.co/": HUB,
    "local_dir:": DIRECTORY, "localdir:": DIRECTORY, "local:": DIRECTORY, "dir:": DIRECTORY, "file://": DIRECTORY,
}  # fmt: skip


def check_name(name: str) -> None:
    """Raises UserError for what is no model of open_clip, with what may have been meant: models that can be adapted, or
    the right spelling of a folder or a repository."""
    if name in open_clip.list_models():
        return
    if spelt := _spelt(name):
        raise UserError(f"backbone.name {name!r} is not a model of open_clip; did you mean {spelt}?")
    plain = {known.lower(): known for known in ("tiny", *open_clip.list_models())}
    near = [plain[known] for known in difflib.get_close_matches(name.lower(), plain, n=12)]
    near = [known for known in near if known == "tiny" or is_accepted(known)][:3]
    hint = f"; did you mean {' or '.join(near)}?" if near else "; `mmrl backbones` lists those that there are"
    raise UserError(f"backbone.name {name!r} is not a model of open_clip{hint}")


def is_accepted(name: str) -> bool:
    """Whether the method covers the model of open_clip that has this name, as its configuration says."""
    try:
        refuse_by_configuration(name, open_clip.get_model_config(name))
    except UserError:
        return False
    return True


def _spelt(name: str) -> str | None:
    """The name of a folder or repository as it has to be written; None where neither was meant."""
    for wrong, right in sorted(SPELLINGS.items(), key=lambda pair: -len(pair[0])):  # the longest that fits
        if name.lower().startswith(wrong):
            return right + name[len(wrong) :]
    for right in (HUB, DIRECTORY):
        if name.lower().startswith(right):  # in capitals
            return right + name[len(right) :]
    if name and os.path.isdir(os.path.expanduser(name)):
        return DIRECTORY + name
    is_plain = name.replace("/", "-").lower() in {known.lower() for known in open_clip.list_models()}  # as ViT-B/16
    return HUB + name if REPOSITORY.fullmatch(name) and not is_plain else None
