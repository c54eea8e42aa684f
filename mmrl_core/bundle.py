"""A release as a folder: all that a program needs to serve an adapter, and all that is needed to check the release.

    adapter/            adapter.safetensors and adapter.json
    onnx/               model.onnx and model.json, for programs without PyTorch
    classes.safetensors the class matrix w (C, E)
    examples/           drawn pictures, and expected.json, what the adapter says of them
    README.md           the model card
    SHA256SUMS          of every other file, as sha256sum writes it

`python -m mmrl_core.bundle FOLDER` checks one in a process of its own.
"""

import contextlib
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import ArrayLike
from onnxruntime.capi import onnxruntime_pybind11_state as onnx_errors
from PIL import Image

from mmrl_core.clip.backbone import LOGIT_SCALE
from mmrl_core.data.images import decode
from mmrl_core.errors import BAD, Damaged, UserError
from mmrl_core.export import CARD as MODEL_CARD
from mmrl_core.export import MODEL, OUTPUTS, Scorer, earlier_facts, export_onnx, file_facts, onnx_session
from mmrl_core.files import read_json, sha256_file, write_json
from mmrl_core.method.adapter_card import CARD as ADAPTER_CARD
from mmrl_core.method.adapter_card import TENSORS, AdapterCard, is_number
from mmrl_core.method.tensor_file import read_tensors
from mmrl_core.predict import Predictor

ADAPTER, ONNX, CLASSES, EXAMPLES = "adapter", "onnx", "classes.safetensors", "examples"
EXPECTED, CARD, SUMS = "expected.json", "README.md", "SHA256SUMS"
MATRIX = "text_features"  # the tensor in CLASSES
N_EXAMPLES, EXAMPLE_SIZE = 6, 96
PICTURES = [f"{index}.png" for index in range(N_EXAMPLES)]
REQUIRED = {
    f"{ADAPTER}/{ADAPTER_CARD}", f"{ADAPTER}/{TENSORS}", f"{ONNX}/{MODEL}", f"{ONNX}/{MODEL_CARD}", CLASSES, CARD,
    *(f"{EXAMPLES}/{name}" for name in [EXPECTED, *PICTURES]),
}  # fmt: skip
TOLERANCE = 1e-3  # of a probability or a cosine: another machine's sums have another order
COMPARED_IN = ("onnxruntime", "torch")  # whose versions model.json has under "compared"
MADE_BY = "mmrl flow release"
BAD_MODEL = (  # what onnxruntime raises for a file that it cannot run
    onnx_errors.Fail, onnx_errors.InvalidArgument, onnx_errors.InvalidGraph, onnx_errors.InvalidProtobuf,
    onnx_errors.NoModel, onnx_errors.NoSuchFile, onnx_errors.NotImplemented, onnx_errors.RuntimeException,
    UnicodeDecodeError,  # in place of one of these, whose text names something of the file that is no text
)  # fmt: skip
NO_ROOM = re.compile("alloc|system error number", re.IGNORECASE)  # in a message of these: the machine's, not the file's


def write_bundle(adapter: str | Path, folder: str | Path, facts: Mapping[str, Any]) -> None:
    """Fill `folder` with the release of an adapter folder; `facts` go into its card, by name, as they are.

    Raises Damaged when the adapter is not sound, UserError when its ONNX file differs from PyTorch.
    """
    folder = Path(folder)
    shutil.copytree(adapter, folder / ADAPTER)
    predictor = Predictor.load(folder / ADAPTER)
    predictor.check_answers()
    export_onnx(predictor, folder / ONNX)
    safetensors.torch.save_file({MATRIX: _class_matrix(predictor)}, folder / CLASSES)
    (folder / EXAMPLES).mkdir()
    pictures = dict(zip(PICTURES, _drawn(), strict=True))
    for name, picture in pictures.items():
        picture.save(folder / EXAMPLES / name)
    predictions = zip(pictures, predictor.predict(list(pictures.values())), strict=True)
    probabilities = {name: prediction.probabilities for name, prediction in predictions}
    write_json(folder / EXAMPLES / EXPECTED, {"probabilities": probabilities})
    (folder / CARD).write_text(model_card(predictor.card, facts), encoding="utf-8")
    lines = [f"{sha256_file(folder / name)}  {name}\n" for name in _files(folder)]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def check_bundle(folder: str | Path) -> None:
    """Raises Damaged naming what is missing, altered, or not as expected. Anything else that it raises says nothing of
    the bundle: UserError for a folder that does not exist or weights that are not to be had, MemoryError, OSError."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; name the folder of a release")
    _check_sums(folder)
    pictures, expected = _read_pictures(folder / EXAMPLES), _read_expected(folder / EXAMPLES / EXPECTED)
    predictor = Predictor.load(folder / ADAPTER)
    matrix = _class_matrix(predictor)
    stored = read_tensors(folder / CLASSES, {MATRIX: tuple(matrix.shape)})[MATRIX]
    _check(matrix, stored, f"{folder / CLASSES} and the adapter's classes")
    _check_model_card(folder / ONNX, predictor)
    _check_predictions(folder / EXAMPLES, predictor, pictures, expected)
    _check_model(folder / ONNX / MODEL, predictor, pictures)


def _check_sums(folder: Path) -> None:
    files = set(_files(folder))
    if SUMS not in files:
        raise Damaged(f"{folder} has no {SUMS}; name the folder of a release")
    sums, present = _read_sums(folder / SUMS), files - {SUMS}
    for name in sorted(sums.keys() | present | REQUIRED):
        foreign = name not in sums or (name.startswith(f"{EXAMPLES}/") and name not in REQUIRED)
        if name not in present or foreign:
            raise Damaged(f"{folder}: {name} is {'no part of it' if name in present else 'missing'}; release it again")
        if sha256_file(folder / name) != sums[name]:
            raise Damaged(f"{folder}: {name} was altered (sha256 differs); release it again")


def _read_sums(path: Path) -> dict[str, str]:
    """The sha256 of each file by its name."""
    try:
        *lines, rest = path.read_bytes().decode().split("\n")
    except UnicodeDecodeError as error:
        raise Damaged(f"{path} is no text ({error}); release it again") from None
    entries = [match for line in lines if (match := re.fullmatch("([0-9a-f]{64})  (.+)", line))]
    sums = {entry[2]: entry[1] for entry in entries}
    if rest or len(sums) < len(lines):
        raise Damaged(f"{path} does not name every file once, with its sha256; release it again")
    return sums


def _files(folder: Path) -> list[str]:
    """The files below a folder, relative to it. Raises Damaged for a link and all else that is no file or folder."""

    def fail(error: OSError) -> None:
        raise error

    names = []
    for parent, folders, files in os.walk(folder, onerror=fail):
        for path in (Path(parent, name) for name in folders + files):
            mode, name = path.lstat().st_mode, path.relative_to(folder).as_posix()
            if stat.S_ISREG(mode):
                names.append(name)
            elif not stat.S_ISDIR(mode):
                raise Damaged(f"{folder}: {name} is a link or no regular file; release it again")
    return sorted(names)


def _check(expected: ArrayLike, actual: ArrayLike, what: str) -> None:
    difference = float(np.abs(np.asarray(expected) - np.asarray(actual)).max())
    if not difference <= TOLERANCE:  # "not a number" does not pass either
        raise Damaged(f"{what} differ by {difference:.1e}, more than {TOLERANCE:.0e}; the release is not fit for use")


def _check_model_card(folder: Path, predictor: Predictor) -> None:
    """What follows from adapter and files has to be there as it is; what was measured on another machine, as a type."""
    path, document = folder / MODEL_CARD, read_json(folder / MODEL_CARD, made_by=MADE_BY)
    facts = file_facts(predictor, predictor.class_names, folder)
    if not document.keys() & {"decoding", "resizing"}:
        facts = earlier_facts(facts)
    wrong = [key for key, value in facts.items() if key not in document or document[key] != value]
    if not isinstance(document.get("opset"), int):
        wrong.append("opset")
    if not is_number(document.get("largest_relative_difference")):
        wrong.append("largest_relative_difference")
    compared = document.get("compared")
    if not isinstance(compared, dict) or not all(isinstance(compared.get(name), str) for name in COMPARED_IN):
        wrong.append("compared")
    if wrong:
        raise Damaged(f"{path} does not say {wrong[0]} as adapter and files have it; release it again")


def _read_pictures(folder: Path) -> list[Image.Image]:
    """The example images. Raises Damaged where they are not those that are drawn."""
    pictures = []
    for name, drawn in zip(PICTURES, _drawn(), strict=True):
        path = folder / name
        try:
            picture = decode(path.read_bytes(), str(path))
        except UserError as error:
            cause = error.__cause__
            if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno):  # the machine's
                raise cause from None
            raise Damaged(str(error)) from None
        if picture.size != drawn.size or np.abs(_pixels(picture) - _pixels(drawn)).max() > 1:  # a sine's last bit
            raise Damaged(f"{path} is not the picture that is drawn for every release; release it again")
        pictures.append(picture)
    return pictures


def _pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, np.int16)


def _read_expected(path: Path) -> dict[str, Any]:
    """What was said of each picture. Raises Damaged unless it names just these."""
    expected = read_json(path, made_by=MADE_BY, keys=["probabilities"])["probabilities"]
    if not isinstance(expected, dict) or expected.keys() != set(PICTURES):
        raise Damaged(f"{path} does not name the pictures beside it; release it again")
    return expected


def _check_predictions(
    folder: Path, predictor: Predictor, pictures: Sequence[Image.Image], expected: dict[str, Any]
) -> None:
    """What PyTorch says of the pictures against expected.json."""
    path = folder / EXPECTED
    for name, prediction in zip(PICTURES, predictor.predict(pictures), strict=True):
        wanted = expected[name]
        if not isinstance(wanted, dict) or list(wanted) != list(prediction.probabilities):
            raise Damaged(f"{path} has other classes for {name} than the adapter; release it again")
        if not all(is_number(value) and abs(value) <= 1 + TOLERANCE for value in wanted.values()):
            raise Damaged(f"{path} has probabilities for {name} that are none; release it again")
        _check(list(wanted.values()), list(prediction.probabilities.values()), f"what PyTorch says of {folder / name}")


@torch.no_grad()
def _check_model(path: Path, predictor: Predictor, pictures: Sequence[Image.Image]) -> None:
    """What onnxruntime says of the pictures against PyTorch."""
    names = predictor.class_names
    scorer = Scorer(predictor.model, predictor.text_features(names), predictor.columns(names)).eval()
    images = torch.stack([predictor.view(picture, str(path)) for picture in pictures])
    expected = dict(zip(OUTPUTS, (output.numpy() for output in scorer.reference(images)), strict=True))
    with _verdicts(path):
        session = onnx_session(path)
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if [port.name for port in inputs] != ["images"] or [port.name for port in outputs] != list(OUTPUTS):
            raise Damaged(f"{path} has other inputs or outputs than images and {', '.join(OUTPUTS)}; release it again")
        answers = session.run(list(OUTPUTS), {"images": images.numpy()})
    for (name, wanted), answer in zip(expected.items(), answers, strict=True):
        if not isinstance(answer, np.ndarray) or (answer.dtype, answer.shape) != (wanted.dtype, wanted.shape):
            raise Damaged(f"{path} gives {name} of another type or shape than PyTorch; release it again")
        unit = LOGIT_SCALE if name == "logits" else 1
        _check(wanted / unit, answer / unit, f"{name} of {path} and PyTorch's")


@contextlib.contextmanager
def _verdicts(path: Path) -> Iterator[None]:
    """Turns onnxruntime's errors into Damaged, but for those of a machine without room, which become MemoryError."""
    try:
        yield
    except BAD_MODEL as error:
        message = str(error).replace(str(path), MODEL)
        if NO_ROOM.search(message):
            raise MemoryError(f"onnxruntime had no room for {path}: {message}") from None
        raise Damaged(f"{path} cannot be run ({message[-300:]}); release it again") from None


@torch.no_grad()
def _class_matrix(predictor: Predictor) -> torch.Tensor:
    return predictor.text_features(predictor.class_names).cpu().clone()


def _drawn() -> Iterator[Image.Image]:
    """The example images: coloured waves, the same every time, since a data set's images may not be passed on."""
    y, x = np.mgrid[0:EXAMPLE_SIZE, 0:EXAMPLE_SIZE] / EXAMPLE_SIZE
    for index in range(N_EXAMPLES):
        waves = [np.sin((index + 1) * (x + channel * y) * np.pi + channel) for channel in range(3)]
        yield Image.fromarray(((np.stack(waves, axis=-1) + 1) * 127.5).astype(np.uint8))


def model_card(card: AdapterCard, facts: Mapping[str, Any]) -> str:
    """Markdown: what was trained on what, and `facts` (measured figures, digests, licences), a row each."""
    settings = card["adapter"]
    head = {
        "method": settings["method"] + (" and a linear probe" if settings.get("probe") and card.get("head") else ""),
        "classes": f"{len(card['class_names'])}: {', '.join(card['class_names'][:20])}",
        "prompt": card["template"],
        "backbone": f"{card['backbone']['name']}, weights {card['backbone']['weights'] or 'bundled'}",
        "backbone sha256": card["backbone"]["sha256"],
        "adapter sha256": card["sha256"],
        "trainable parameters": card["trainable"],
        "data digest": card.get("data", {}).get("digest", "not recorded"),
    }
    rows = [f"| {name} | {str(value).replace('|', chr(92) + '|')} |" for name, value in {**head, **facts}.items()]
    title = f"# {facts.get('model', 'Adapter')}, version {facts.get('version', '-')}"
    return "\n".join([title, "", "| | |", "| --- | --- |", *rows, "", USE])


USE = """`adapter/` loads with `mmrl_core.predict.Predictor.load`, `onnx/model.onnx` with any ONNX runtime, and
`onnx/model.json` says how an image becomes its input. `python -m mmrl_core.bundle .` checks all of this folder,
`sha256sum -c SHA256SUMS` its files.
"""


def main() -> None:
    """Exit 0 when the bundle is sound, BAD with one line on stderr when it is not, 2 for a mistake of the caller's.

    However else it ends (out of memory, by a signal), that says nothing of the bundle.
    """
    try:
        if len(sys.argv) != 2:
            raise UserError("name the folder of a release")
        check_bundle(sys.argv[1])
    except UserError as error:
        print(f"mmrl_core.bundle: {error}", file=sys.stderr)
        sys.exit(BAD if isinstance(error, Damaged) else 2)


if __name__ == "__main__":
    main()
