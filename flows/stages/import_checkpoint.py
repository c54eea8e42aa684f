"""`mmrl import`: an adapter from a checkpoint of the authors' code."""

from pathlib import Path
from typing import Any

from flows.project.resources import backbone_for
from flows.settings.params import Params
from mmrl_core import METHOD_VERSION
from mmrl_core.errors import UserError
from mmrl_core.method.adapter_card import CardContent


def import_published(
    params: Params, checkpoint: Path, class_names: list[str], template: str, out: Path
) -> dict[str, Any]:
    """An adapter folder from a checkpoint of the authors' code; what the tensors do not tell comes from params.yaml.

    Two classes may share a name, as in CLIP's own ImageNet list.
    """
    from mmrl_core.clip.backbone import refuse_one_name
    from mmrl_core.config import AdapterConfig, parse
    from mmrl_core.files import sha256_file
    from mmrl_core.method.adapter import Adapter, save_adapter
    from mmrl_core.method.published_checkpoints import implied_settings, read_published

    refuse_one_name(class_names)
    published, backbone = read_published(checkpoint), backbone_for(params)
    if len(class_names) < 2:
        raise UserError(
            f"{class_names[0]!r} is one class, which leaves nothing to choose; name all that were trained on"
        )
    implied = implied_settings(published, backbone.depth)
    explicit = {name: value for name, value in params.adapter.model_dump().items() if value is not None}
    config = parse(AdapterConfig, {**explicit, **implied}, str(checkpoint))
    adapter = Adapter(config, backbone)
    adapter.load_published(published)
    backbone.tokenize(class_names, template)  # refuses names or a template that no prompt can be made of
    cut = backbone.cut_note(class_names, template)
    sources = {
        f"adapter.{name}": "checkpoint" if name in implied else "params.yaml" for name in {**explicit, **implied}
    }
    card: CardContent = {
        "method_version": METHOD_VERSION,
        "class_names": class_names,
        "template": template,
        "data": {"imported_from": checkpoint.name, "digest": sha256_file(checkpoint)},
        "settings": {f"adapter.{name}": value for name, value in config.model_dump().items()},
        "sources": {f"adapter.{name}": "default" for name in type(config).model_fields} | sources,
    }
    document = save_adapter(out, adapter, backbone, card)
    return {"method": config.method, "adapter_sha256": document["sha256"], "trainable": document["trainable"],
            **({"notes": [cut]} if cut else {})}  # fmt: skip
