"""An adapter in a repository of the Hugging Face Hub: the adapter's two files, config.json and a model card. What is
read of it is adapter.safetensors and adapter.json, as from any folder; config.json is not even opened."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, snapshot_download

from mmrl_core.clip.weights.licences import licence_of
from mmrl_core.clip.weights.places import DIRECTORY, is_place
from mmrl_core.errors import UserError
from mmrl_core.files import write_json
from mmrl_core.method.adapter_card import AdapterCard, BackboneCard

LIBRARY = "mmrl-ops"
TAGS = ["clip", "few-shot", "image-classification", "mmrl"]
READ = ["adapter.json", "adapter.safetensors", "folded.safetensors"]  # of a repository; other releases write more
TITLES = {"mmrl": "MMRL", "mmrlpp": "MMRL++"}
MOST_CLASSES = 200  # that a model card lists

PAGE = """
# {title}

A few-shot adapter of CLIP by {method} with {trainable:,} trained parameters; the CLIP itself is not in here.

| | |
| --- | --- |
| backbone | `{backbone}`, weights `{weights}`, sha256 `{sha256}` |
| licence of the backbone's weights | {licence} |
| licence of this adapter | {own_licence} |
| prompt | `{template}` |
| classes | {count} |

```python
import mmrl

adapter = mmrl.Adapted.from_pretrained("{where}")
adapter.predict("image.jpg")
```

{note}It is safetensors and JSON: nothing is unpickled. Both are checked by their digests before anything is built.

## Classes

{classes}
"""


def write_config(folder: Path, card: AdapterCard) -> None:
    """config.json, by which the Hub knows that this is a model and counts downloads. It is not read again."""
    content = {"library": LIBRARY, "method": card["adapter"]["method"], "base_clip": card["backbone"],
               "classes": len(card["class_names"])}  # fmt: skip
    write_json(folder / "config.json", content)


def model_card(
    card: AdapterCard, license: str | None = None, title: str = "Adapter of CLIP",
    repo_id: str = "FOLDER_OR_REPOSITORY",
) -> ModelCard:  # fmt: skip
    """README.md: what the adapter knows and needs. `license` is an identifier of the Hub's, such as apache-2.0."""
    names, backbone = card["class_names"], card["backbone"]
    licence, method = licence_of(backbone["name"], backbone["weights"]), card["adapter"]["method"]
    data = ModelCardData(library_name=LIBRARY, license=license, tags=sorted({*TAGS, method, "model_hub_mixin"}),
                         pipeline_tag="zero-shot-image-classification")  # fmt: skip
    local = "" if _is_published(backbone) else "You need the file of the backbone's weights as well. "
    own = "its own" if is_place(backbone["name"]) else "bundled"
    text = PAGE.format(
        title=title, method=TITLES.get(method, method), trainable=card["trainable"], backbone=backbone["name"],
        weights=backbone["weights"] or own, sha256=backbone["sha256"][:12],
        licence=f"{licence.spdx or 'unknown'} ({licence.note})", own_licence=license or "not stated",
        template=_plain(card["template"]), count=len(names), where=repo_id, note=local, classes=_listed(names),
    )  # fmt: skip
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{text}")


def _is_published(backbone: BackboneCard) -> bool:
    """Whether anyone has the weights: bundled, random, in a repository, or by a tag of open_clip, which is no path."""
    weights, is_local = backbone["weights"], backbone["name"].startswith(DIRECTORY)
    return not is_local and (weights is None or not any(sign in weights for sign in "/\\."))


def _listed(names: list[str]) -> str:
    more = [f"- and {len(names) - MOST_CLASSES} more, in adapter.json"] if len(names) > MOST_CLASSES else []
    return "\n".join([f"- `{_plain(name)}`" for name in names[:MOST_CLASSES]] + more)


def _plain(text: str) -> str:
    return " ".join(text.replace("`", "'").replace("|", "/").split())


def fetched(repo_id: str, options: dict[str, Any]) -> str:
    """The folder that a repository of the Hub was downloaded to. Raises UserError where it is not to be had."""
    try:
        return snapshot_download(repo_id, allow_patterns=READ, **options)
    except TypeError:  # of an option that there is not
        raise
    except Exception as error:  # a hub raises many kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"cannot have the adapter {repo_id} ({reason}); give a folder that `save` wrote, or the name of a "
            "repository that can be reached"
        ) from None
