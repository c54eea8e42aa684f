"""Prompts of classes, and which of them a text tower cuts. torch is imported only where a prompt may be too long.

CLIP's tokenizer drops what is beyond the context length without a word, and with it the end of the template; so do
those of Hugging Face, whose marks are as many as each says (`weights/tokenizers.py`).
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from mmrl_core.clip.weights.places import DIRECTORY, read_object
from mmrl_core.clip.weights.transformers_config import open_clip_config
from mmrl_core.data.own.records import some
from mmrl_core.errors import UserError

MARKS = 2  # tokens of every prompt of CLIP's: the marks of its beginning and end
CONTEXT_LENGTH = 77  # where a configuration does not say
CLIPS = 49408  # tokens of CLIP's vocabulary

Encode = Callable[[str], Sequence[int]]  # a text -> its tokens, without the marks


def fill_template(class_names: list[str], template: str) -> list[str]:
    """One prompt a class; '_' in a class name becomes a space."""
    if "{}" not in template:
        raise UserError(f"prompt template {template!r} has no {{}} for the class name; add one")
    if not class_names:
        raise UserError("the list of class names is empty; name at least one class")
    return [template.replace("{}", name.replace("_", " ")) for name in class_names]


def most_tokens(prompt: str) -> int:
    """No prompt has more tokens than this, marks included: a token is a byte or more, and no space.

    The tokenizer's cleaning lengthens no plain text; Unicode's normal forms and entities up to three times.
    """
    size = sum(len(word.encode(errors="surrogatepass")) for word in prompt.split())
    return MARKS + (size if prompt.isascii() and "&" not in prompt else 3 * size)


def context_length(backbone: str) -> int | None:
    """How many tokens of a prompt a backbone reads, by its configuration alone; None where it has no tokenizer of
    CLIP's, where that would have to be fetched, and where there is no such model."""
    text = _text_cfg(backbone)
    if text is None or any(text.get(key) for key in ("hf_model_name", "hf_tokenizer_name")):
        return None
    return text.get("context_length", CONTEXT_LENGTH)


def _text_cfg(backbone: str) -> dict[str, Any] | None:
    """From the files of open_clip, which are there to be read without importing it, or from those of a folder."""
    if backbone.startswith(DIRECTORY):
        return _folders_text_cfg(Path(os.path.expanduser(backbone.removeprefix(DIRECTORY))))
    if backbone == "tiny":
        card = Path(__file__).parent.parent / "assets" / "tiny.json"
        return json.loads(card.read_text())["model_cfg"]["text_cfg"]
    spec = find_spec("open_clip")
    folders = spec.submodule_search_locations or [] if spec else []
    files = {file.stem: file for folder in folders for file in Path(folder, "model_configs").glob("*.json")}
    return json.loads(files[backbone].read_text()).get("text_cfg") if backbone in files else None


def _folders_text_cfg(folder: Path) -> dict[str, Any] | None:
    """Of either layout; None for a configuration that is not to be had, of which whoever loads the model tells."""
    own, theirs = folder / "open_clip_config.json", folder / "config.json"
    try:
        if own.is_file():
            text = read_object(own)["model_cfg"]["text_cfg"]
        else:
            text = open_clip_config(read_object(theirs), str(theirs))["text_cfg"]
            text |= {} if text["vocab_size"] == CLIPS else {"hf_tokenizer_name": str(folder)}
    except (UserError, KeyError, TypeError):
        return None
    return text if isinstance(text, dict) else None


def cut_notes(class_names: list[str], templates: Iterable[str], backbone: str) -> list[str]:
    """A line for each template with which that backbone cuts prompts of these classes."""
    limit = context_length(backbone)
    if limit is None or not class_names:
        return []
    long = [template for template in templates if _may_be_cut(class_names, template, limit)]
    if not long:
        return []
    from mmrl_core.clip.backbone import tokenizer_for  # brings torch

    encode = cast(Any, tokenizer_for(backbone)).encode  # CLIP's own, which has it
    return [note for template in long if (note := cut_note(class_names, template, encode, limit))]


def _may_be_cut(class_names: list[str], template: str, limit: int) -> bool:
    return any(most_tokens(prompt) > limit for prompt in fill_template(class_names, template))


def cut_note(class_names: list[str], template: str, encode: Encode, limit: int, marks: int | None = None) -> str | None:
    """A line that names the classes whose prompts have more than `limit` tokens, and how many; None without one.

    `marks` is how many a tokenizer other than CLIP's adds to every prompt.
    """
    prompts = dict(zip(class_names, fill_template(class_names, template), strict=True))
    if marks is None:  # only of CLIP's tokens is it known how many there can be
        marks, prompts = MARKS, {name: prompt for name, prompt in prompts.items() if most_tokens(prompt) > limit}
    long = {name: encode(prompt) for name, prompt in prompts.items()}
    cut = {name: tokens for name, tokens in long.items() if marks + len(tokens) > limit}
    if not cut:
        return None
    listed = some([f"{_shortened(name)!r} has {marks + len(tokens)} tokens" for name, tokens in cut.items()])
    kept = Counter(tuple(tokens[: limit - marks]) for tokens in long.values())
    is_alike = any(kept[tuple(tokens[: limit - marks])] > 1 for tokens in cut.values())
    alike = ", and some cannot be told apart any more" if is_alike else ""
    return (
        f"prompts are cut at {limit} tokens, and with them the end of the template {template!r}{alike}: {listed}; "
        "shorten the class names"
    )


def same_prompt(
    one: str, other: str, template: str, encode: Encode | None, limit: int, marks: int | None = None
) -> str:
    """Why two classes cannot be told apart."""
    names = f"classes {_shortened(one)!r} and {_shortened(other)!r} make the same prompt"
    prompts = fill_template([one, other], template)
    added = MARKS if marks is None else marks
    counts = [added + len(encode(prompt)) for prompt in prompts] if encode else [0]
    if max(counts) <= limit:
        return f"{names}; give every class its own name"
    return f"{names}: it is cut at {limit} tokens, and theirs have {counts[0]} and {counts[1]}; give them shorter names"


def _shortened(name: str) -> str:
    return name if len(name) <= 80 else f"{name[:50]}...{name[-25:]}"
