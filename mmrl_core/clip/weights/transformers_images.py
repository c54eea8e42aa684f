"""How transformers' preprocessor_config.json wants images prepared, in open_clip's words."""

import math
from collections.abc import Mapping
from typing import Any

from mmrl_core.errors import UserError

CLIP = {"do_resize": True, "size": {"shortest_edge": 224}, "resample": 3, "do_center_crop": True, "crop_size": 224,
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711]}  # fmt: skip
SIGLIP = {**CLIP, "size": {"height": 224, "width": 224}, "do_center_crop": False, "image_mean": [0.5, 0.5, 0.5],
          "image_std": [0.5, 0.5, 0.5]}  # fmt: skip
INTERPOLATIONS = {2: "bilinear", 3: "bicubic", 0: "nearest", 1: "lanczos"}  # by Pillow's numbers


def preprocess_config(content: Mapping[str, Any] | None, kind: str, image_size: int, where: str) -> dict[str, Any]:
    """open_clip's preprocess_cfg of a preprocessor_config.json, None where there is none: then transformers' defaults
    for a model of that kind. Raises UserError for what the views do not do."""
    defaults = {**(CLIP if kind == "clip" else SIGLIP)}
    if content is None:
        return _stated(defaults, "squash" if kind != "clip" else "shortest")
    given = content.get("image_processor", content)
    if not isinstance(given, Mapping):
        raise UserError(f"{where}: image_processor is no object; fetch or save it again")
    stated = {**defaults, **{key: value for key, value in given.items() if value is not None}}
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if stated[step] is False:
            raise UserError(f"{where}: {step} is false, which the views cannot do; correct it")
    if not _is_a_255th(stated["rescale_factor"]):
        raise UserError(f"{where}: rescale_factor is {stated['rescale_factor']!r}, not 1/255, which alone is supported")
    mode, sizes = _resizing(stated)
    if mode is None or any(size != image_size for size in sizes):
        told = {key: stated[key] for key in ("size", "do_center_crop", "crop_size")}
        raise UserError(
            f"{where}: {str(told)[:200]} does not give the {image_size} pixels that the model reads; correct it"
        )
    return _stated(stated, mode)


def _is_a_255th(factor: Any) -> bool:
    return isinstance(factor, int | float) and math.isclose(factor, 1 / 255, rel_tol=1e-6)


def _stated(stated: Mapping[str, Any], mode: str) -> dict[str, Any]:
    number = stated["resample"]
    interpolation = INTERPOLATIONS.get(number, number) if isinstance(number, int) else number
    return {"mean": stated["image_mean"], "std": stated["image_std"], "resize_mode": mode,
            "interpolation": interpolation}  # fmt: skip


def _resizing(stated: Mapping[str, Any]) -> tuple[str | None, tuple[Any, ...]]:
    """open_clip's word for it, and every number of pixels that is said; None where there is no such word."""
    size, crop = stated["size"], stated["crop_size"]
    if isinstance(size, int):  # of old files; with CLIP's processor the shorter edge
        size = {"shortest_edge": size} if stated["do_center_crop"] else {"height": size, "width": size}
    if not isinstance(size, Mapping):
        return None, ()
    cropped = tuple(crop.values()) if isinstance(crop, Mapping) else (crop,)
    if size.keys() == {"shortest_edge"} and stated["do_center_crop"]:
        return "shortest", (*size.values(), *cropped)
    if size.keys() == {"height", "width"}:
        return "squash", (*size.values(), *(cropped if stated["do_center_crop"] else ()))
    return None, ()
