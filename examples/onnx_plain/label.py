"""Label images with what `mmrl export` wrote, without this project: onnxruntime, NumPy and Pillow are enough.

    mmrl export --out model
    python examples/onnx_plain/label.py model IMAGE...

prints a JSON object a line: the image's path, its label, and every class's probability. Which steps lead from an image
to the file's input is in model.json, in words and in fields; this is all of them for JPEG, PNG, WebP and others of 8
bits. (Grey of 16 bits is scaled as `decoding` says; such an image is refused here.)
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before it is imported, or it keeps an identifier under ~/.cache
import onnxruntime

ROUNDINGS = {"floor": int, "half to even": round}


def read_image(card: dict[str, Any], path: str) -> Image.Image:
    """The first frame, upright, on the background, in RGB."""
    with Image.open(path) as opened:
        if opened.mode[0] in "IF":
            raise SystemExit(f"{path} has more than 8 bits a pixel; save it with 8")
        rgba = ImageOps.exif_transpose(opened).convert("RGBA")
    background = Image.new("RGBA", rgba.size, (*card["decoding"]["background"], 255))
    return Image.alpha_composite(background, rgba).convert("RGB")


def to_square(card: dict[str, Any], image: Image.Image) -> Image.Image:
    """The image as S x S pixels, in the one of three ways that `resizing` names."""
    size, says = card["image_size"], card["resizing"]
    kind = Image.Resampling[says["interpolation"].upper()]
    if says["mode"] == "squash":
        return image.resize((size, size), kind)
    if says["mode"] == "longest":
        rounding, offset = ROUNDINGS[says["short_side_rounding"]], ROUNDINGS[says["pad_offset_rounding"]]
        scaled = [max(1, rounding(size * side / max(image.size))) for side in image.size]
        square = Image.new("RGB", (size, size), tuple(says["fill"]))
        square.paste(image.resize(scaled, kind), tuple(offset((size - side) / 2) for side in scaled))
        return square
    rounding, offset = ROUNDINGS[says["long_side_rounding"]], ROUNDINGS[says["crop_offset_rounding"]]
    scaled = [rounding(size * side / min(image.size)) for side in image.size]
    left, top = (offset((side - size) / 2) for side in scaled)
    return image.resize(scaled, kind).crop((left, top, left + size, top + size))


def input_of(card: dict[str, Any], image: Image.Image) -> np.ndarray:
    """The file's input, (1, 3, S, S) float32."""
    pixels = np.asarray(to_square(card, image), np.float32) / 255
    return ((pixels - np.float32(card["mean"])) / np.float32(card["std"])).transpose(2, 0, 1)[None]


def main(folder: Path, paths: list[str]) -> None:
    card = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    for path in paths:
        [found] = session.run(["probabilities"], {"images": input_of(card, read_image(card, path))})
        probabilities = dict.fromkeys(card["class_names"], 0.0)
        for name, probability in zip(card["class_names"], found[0], strict=True):
            probabilities[name] += float(probability)  # two classes may share a name
        label = max(probabilities, key=probabilities.__getitem__)
        print(json.dumps({"path": path, "label": label, "probabilities": probabilities}))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit("usage: label.py FOLDER_OF_THE_EXPORT IMAGE...")
    main(Path(sys.argv[1]), sys.argv[2:])
