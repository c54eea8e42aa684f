"""A release as a folder: all that a program needs to serve an adapter, and all that is needed to check the release.

    adapter/            adapter.safetensors and adapter.json
    onnx/               model.onnx and model.json, for programs without PyTorch
    classes.safetensors the class matrix w (C, E)
    examples/           drawn pictures, and expected.json, what the adapter says of them
    README.md           the model card
    SHA256SUMS          of every other file, as sha256sum writes it

`python -m mmrl_core.bundle FOLDER` checks one in a process of its own.
"""

import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import ArrayLike
from PIL import Image

from mmrl_core.data.images import decode
from mmrl_core.data.views import test_view
from mmrl_core.errors import BAD, Damaged, UserError
from mmrl_core.export import MODEL, export_onnx, onnx_session
from mmrl_core.files import read_json, sha256_file, write_json
from mmrl_core.method.adapter_card import AdapterCard
from mmrl_core.predict import Prediction, Predictor

ADAPTER, ONNX, CLASSES, EXAMPLES = "adapter", "onnx", "classes.safetensors", "examples"
EXPECTED, CARD, SUMS = "expected.json", "README.md", "SHA256SUMS"
N_EXAMPLES, EXAMPLE_SIZE = 6, 96
TOLERANCE = 1e-3  # of a probability: another machine's sums have another order


def write_bundle(adapter: str | Path, folder: str | Path, facts: Mapping[str, Any]) -> None:
    """Fill `folder` with the release of an adapter folder; `facts` go into its card, by name, as they are.

    Raises UserError when the adapter is not sound or its ONNX file differs from PyTorch.
    """
    folder = Path(folder)
    shutil.copytree(adapter, folder / ADAPTER)
    predictor = Predictor.load(folder / ADAPTER)
    export_onnx(predictor, folder / ONNX)
    safetensors.torch.save_file({"text_features": _class_matrix(predictor)}, folder / CLASSES)
    (folder / EXAMPLES).mkdir()
    for index, picture in enumerate(_pictures()):
        picture.save(folder / EXAMPLES / f"{index}.png")
    probabilities = {path.name: prediction.probabilities for path, prediction in _predictions(predictor, folder)}
    write_json(folder / EXAMPLES / EXPECTED, {"probabilities": probabilities})
    (folder / CARD).write_text(model_card(predictor.card, facts))
    lines = [f"{sha256_file(folder / name)}  {name}\n" for name in _files(folder)]
    (folder / SUMS).write_text("".join(lines))


def check_bundle(folder: str | Path) -> None:
    """Raises Damaged naming what is missing, altered, or not as expected, UserError where there is no folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; name the folder of a release")
    _check_sums(folder)
    predictor = Predictor.load(folder / ADAPTER)
    stored = safetensors.torch.load_file(folder / CLASSES)["text_features"]
    _check(stored, _class_matrix(predictor), f"{folder / CLASSES} and the adapter's classes")
    expected = read_json(folder / EXAMPLES / EXPECTED, made_by="mmrl flow release", keys=["probabilities"])
    session = onnx_session(folder / ONNX / MODEL)
    for path, prediction in _predictions(predictor, folder):
        wanted = expected["probabilities"][path.name]
        if list(wanted) != list(prediction.probabilities):
            raise Damaged(f"{folder} has other classes than its examples were labelled with; release it again")
        _check(list(wanted.values()), list(prediction.probabilities.values()), f"what PyTorch says of {path}")
        [row] = session.run(["probabilities"], {"images": _view(predictor, path)})[0]
        _check(list(wanted.values()), row, f"what onnxruntime says of {path}")


def _check_sums(folder: Path) -> None:
    try:
        lines = (folder / SUMS).read_text().splitlines()
    except OSError:
        raise Damaged(f"{folder} has no {SUMS}; name the folder of a release") from None
    sums = {name: sha256 for sha256, _, name in (line.partition("  ") for line in lines)}
    present = set(_files(folder))
    for name in sorted(sums.keys() | present):
        if name not in present or name not in sums:
            raise Damaged(f"{folder}: {name} is {'missing' if name in sums else 'no part of it'}; release it again")
        if sha256_file(folder / name) != sums[name]:
            raise Damaged(f"{folder}: {name} was altered (sha256 differs); release it again")


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != SUMS)


def _check(expected: ArrayLike, actual: ArrayLike, what: str) -> None:
    difference = float(np.abs(np.asarray(expected) - np.asarray(actual)).max())
    if not difference <= TOLERANCE:  # "not a number" does not pass either
        raise Damaged(f"{what} differ by {difference:.1e}, more than {TOLERANCE:.0e}; the release is not fit for use")


@torch.no_grad()
def _class_matrix(predictor: Predictor) -> torch.Tensor:
    return predictor.text_features(predictor.class_names).cpu().clone()


def _predictions(predictor: Predictor, folder: Path) -> Iterator[tuple[Path, Prediction]]:
    """The example images, with what the adapter says of each."""
    paths = sorted((folder / EXAMPLES).glob("*.png"))
    return zip(paths, predictor.predict(paths), strict=True)


def _view(predictor: Predictor, path: Path) -> np.ndarray:
    backbone = predictor.model.backbone
    view = test_view(decode(path.read_bytes(), str(path)), backbone.image_size, backbone.mean, backbone.std)
    return view[None].numpy()


def _pictures() -> Iterator[Image.Image]:
    """The example images: coloured waves, the same every time, since a data set's images may not be passed on."""
    y, x = np.mgrid[0:EXAMPLE_SIZE, 0:EXAMPLE_SIZE] / EXAMPLE_SIZE
    for index in range(N_EXAMPLES):
        waves = [np.sin((index + 1) * (x + channel * y) * np.pi + channel) for channel in range(3)]
        yield Image.fromarray(((np.stack(waves, axis=-1) + 1) * 127.5).astype(np.uint8))


def model_card(card: AdapterCard, facts: Mapping[str, Any]) -> str:
    """Markdown: what was trained on what, and `facts` (measured figures, digests, licences), a row each."""
    settings = card["adapter"]
    head = {
        "method": settings["method"],
        "classes": f"{len(card['class_names'])}: {', '.join(card['class_names'][:20])}",
        "prompt": card["template"],
        "backbone": f"{card['backbone']['name']}, weights {card['backbone']['weights'] or 'bundled'}",
        "backbone sha256": card["backbone"]["sha256"],
        "adapter sha256": card["sha256"],
        "trainable parameters": card["trainable"],
        "data digest": card["data"]["digest"],
    }
    rows = [f"| {name} | {str(value).replace('|', chr(92) + '|')} |" for name, value in {**head, **facts}.items()]
    title = f"# {facts.get('model', 'Adapter')}, version {facts.get('version', '-')}"
    return "\n".join([title, "", "| | |", "| --- | --- |", *rows, "", USE])


USE = """`adapter/` loads with `mmrl_core.predict.Predictor.load`, `onnx/model.onnx` with any ONNX runtime, and
`onnx/model.json` says how an image becomes its input. `python -m mmrl_core.bundle .` checks all of this folder,
`sha256sum -c SHA256SUMS` its files.
"""


def main() -> None:
    """Exit 0 when the bundle is sound, BAD when it is damaged, 2 where the user can put something right, each of the
    last two with one line on stderr. Any other end says nothing about the bundle."""
    try:
        if len(sys.argv) != 2:
            raise UserError("name the folder of a release")
        check_bundle(sys.argv[1])
    except UserError as error:
        print(f"mmrl_core.bundle: {error}", file=sys.stderr)
        sys.exit(BAD if isinstance(error, Damaged) else 2)


if __name__ == "__main__":
    main()
