"""Export to ONNX: the folded model with its class list as one graph, compared with PyTorch before it counts as written.

B images, C classes, E embedding width, S side of the square view in pixels.
"""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from mmrl_core.clip.backbone import LOGIT_SCALE, Backbone
from mmrl_core.data.squares import LONG, ViewSettings
from mmrl_core.errors import UserError
from mmrl_core.files import sha256_file, write_json
from mmrl_core.method.folded import FoldedCLIP
from mmrl_core.method.joint_logits import joint_logits, mixed_logits, trained_logits
from mmrl_core.method.model import Output
from mmrl_core.predict import Predictor

MODEL, CARD = "model.onnx", "model.json"
OUTPUTS = ("logits", "probabilities", "image_features")
OPSET = 18  # the exporter's own: a later one would be made from it by conversion
BATCH_SIZES = (1, 3)  # compared at these; traced at 2
TOLERANCE = 1e-4  # of max|onnx - torch| / max|torch|, for each output
COLUMNS = "column i belongs to class_names[i]; of a name that is there more than once, add the probabilities up"
STEPS = ("tracing", "writing", "comparing")
DECODING = {  # what `data/images.py` does, for a program to follow with Pillow; in this order
    "frame": 0,
    "deep_grey": "value * 255 / (2 ** bits - 1)",
    "deep_grey_rounding": "nearest",
    "white_is_zero": "inverted",
    "background": [255, 255, 255],
    "exif_orientation": "applied",
}


class Scorer(nn.Module):
    """What the file computes: images (B, 3, S, S) -> logits (B, C), probabilities (B, C) and f_c (B, E).

    The logits are those of `joint_logits`, whose conditions on the columns are settled here: a graph cannot hold them.
    """

    text_features: Tensor  # w (C, E)
    columns: Tensor  # (C,), places among the trained classes, -1 for others
    indices: Tensor  # of the trained classes

    def __init__(self, model: FoldedCLIP, text_features: Tensor, columns: Tensor):
        super().__init__()
        trained = columns >= 0
        self.model, self.mixed = model, bool(trained.any() and not trained.all())
        self.register_buffer("text_features", text_features)
        self.register_buffer("columns", columns)
        self.register_buffer("indices", trained.nonzero()[:, 0])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output = self.model.score(self.model.encode(images), self.text_features)
        logits = self._joint(output)
        return logits, logits.softmax(-1), output.image_features

    def _joint(self, output: Output) -> Tensor:
        if self.mixed:
            return mixed_logits(output, self.columns, self.indices, self.model.weights)
        if len(self.indices):
            return trained_logits(output, self.columns, self.model.weights)
        return self.model.weights.other * output.logits_class

    def reference(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same outputs in the way that Predictor takes."""
        output = self.model(images, self.text_features)
        logits = joint_logits(output, self.columns, self.model.weights)
        return logits, logits.softmax(-1), output.image_features


def export_onnx(
    predictor: Predictor, folder: str | Path, class_names: list[str] | None = None,
    report: Callable[..., None] = lambda done, note: None,
) -> dict[str, Any]:  # fmt: skip
    """Write model.onnx and model.json for the trained classes or others; returns the JSON document.

    A file may hold 2 GB: from 1.5 GB on, the weights lie beside it in model.onnx.data. Raises UserError for a bad class
    list, and when onnxruntime and PyTorch differ; the folder then holds no model.json.
    """
    folder, names = Path(folder), predictor.class_names if class_names is None else class_names
    scorer = Scorer(predictor.model, predictor.text_features(names), predictor.columns(names)).eval()
    folder.mkdir(parents=True, exist_ok=True)
    report(0, note=STEPS[0])
    program = trace(scorer)
    report(1, note=STEPS[1])
    with _quiet():
        program.save(folder / MODEL)
    report(2, note=STEPS[2])
    difference = compare(folder / MODEL, scorer)
    card = _card(predictor, names, folder, program.model.opset_imports[""], difference)
    write_json(folder / CARD, card)
    return card


@torch.no_grad()
def trace(scorer: Scorer) -> torch.onnx.ONNXProgram:
    """The graph, for batches of any size, without the exporter's notes of where in which source each node arose."""
    from onnxscript.ir.passes.common import ClearMetadataAndDocStringPass  # 0.7 s, which a bundle's check does not need

    size = scorer.model.backbone.image_size
    with _quiet():
        program = torch.onnx.export(
            scorer,
            (torch.zeros(2, 3, size, size),),
            input_names=["images"],
            output_names=OUTPUTS,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            verbose=False,
        )
        ClearMetadataAndDocStringPass()(program.model)
    return program


@torch.no_grad()
def compare(path: str | Path, scorer: Scorer) -> float:
    """Largest max|onnx - torch| / max|torch| of any output at any of BATCH_SIZES, on normally distributed images.

    Raises UserError, naming the output, beyond TOLERANCE.
    """
    session, differences = onnx_session(path), []
    for batch in BATCH_SIZES:
        images = _images(scorer.model.backbone, batch)
        outputs = session.run(list(OUTPUTS), {"images": images.numpy()})
        for name, onnx, expected in zip(OUTPUTS, outputs, scorer.reference(images), strict=True):
            differences.append(_relative(onnx, expected.numpy()))
            _check(differences[-1], f"{name} of {Path(path).name} at batch size {batch}")
    return max(differences)


def _relative(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def _check(difference: float, what: str) -> None:
    if not difference <= TOLERANCE:  # "not a number" does not pass either
        raise UserError(
            f"{what} differ from PyTorch's by {difference:.1e}, more than {TOLERANCE:.0e}, in onnxruntime "
            f"{onnxruntime.__version__}; install the versions in locks/core.lock and export again"
        )


def onnx_session(path: str | Path) -> onnxruntime.InferenceSession:
    """A file ready to run on the CPU, without the runtime's telemetry."""
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal ones: an error is raised, which is enough
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _images(backbone: Backbone, batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, 3, backbone.image_size, backbone.image_size, generator=generator)


def _card(predictor: Predictor, names: list[str], folder: Path, opset: int, difference: float) -> dict[str, Any]:
    """All that a program needs to use the file, and where it came from."""
    return {
        **file_facts(predictor, names, folder),
        "columns": COLUMNS,
        "opset": opset,
        "largest_relative_difference": difference,
        "compared": {
            "onnxruntime": onnxruntime.__version__,
            "torch": torch.__version__,
            "batch_sizes": list(BATCH_SIZES),
        },
    }


def file_facts(predictor: Predictor, names: list[str], folder: Path) -> dict[str, Any]:
    """What model.json says that follows from the adapter and the files, on whatever machine it was exported."""
    backbone, card = predictor.model.backbone, predictor.card
    return {
        "kind": "onnx",
        "class_names": names,
        "template": card["template"],
        "image_size": backbone.image_size,
        "mean": list(backbone.mean),
        "std": list(backbone.std),
        "decoding": DECODING,
        "resizing": resizing(backbone.view_settings),
        "preprocessing": preprocessing(backbone.view_settings),
        "logit_scale": LOGIT_SCALE,
        "adapter": {"sha256": card["sha256"]},
        "backbone": {"name": backbone.name, "sha256": card["backbone"]["sha256"]},
        "files": {path.name: sha256_file(path) for path in sorted(folder.glob(f"{MODEL}*"))},
    }


def resizing(settings: ViewSettings) -> dict[str, Any]:
    """How `views.test_view` makes the square, for a program to follow with Pillow's `Image.resize`."""
    rounded: dict[str, dict[str, Any]] = {
        "shortest": {"long_side_rounding": "floor", "crop_offset_rounding": "half to even"},
        "squash": {},
        "longest": {"short_side_rounding": "half to even", "pad_offset_rounding": "floor", "fill": [0, 0, 0]},
    }
    how = {"mode": settings.resize_mode, "interpolation": settings.interpolation, "antialias": True}
    return how | rounded[settings.resize_mode]


def preprocessing(settings: ViewSettings) -> list[str]:
    """The steps from an image file to a row of `images`, in order, in words."""
    return [
        "decode the first frame or page",
        "scale grey of more than 8 bits: value * 255 / (2 ** bits - 1), rounded to the nearest; where a TIFF says that "
        "white is zero, 255 minus that",
        "lay what is transparent (alpha, entries of a palette, the colour or level that a PNG names) over white",
        "convert to RGB as Pillow's Image.convert",
        "turn it upright as its EXIF orientation says, as Pillow's ImageOps.exif_transpose",
        *_to_square(settings),
        "scale to [0, 1] as float32, channels first: (3, height, width)",
        "subtract mean and divide by std, channel by channel",
    ]


def _to_square(settings: ViewSettings) -> list[str]:
    size, filtered = settings.size, f"{settings.interpolation} with antialiasing as Pillow's Image.resize"
    if settings.resize_mode == "squash":
        return [f"resize, {filtered}, to {size} x {size} whatever the aspect ratio"]
    if settings.resize_mode == "longest":
        return [
            f"resize, {filtered}: the long side to {size} pixels, the short one to {size} * short / long, rounded to "
            "the nearest, halves to even, and at least 1",
            f"put it on black, {size} x {size}: left and top are half of what is missing, rounded down",
        ]
    return [
        f"resize, {filtered}: the short side to {size} pixels, the long one to {size} * long / short, rounded down",
        f"crop {size} x {size}: left and top are half of what is beyond, rounded to the nearest, halves to even (of an "
        f"image longer than {LONG} : 1 the part may be cut out first: the same but for rounding)",
    ]


def earlier_facts(facts: dict[str, Any]) -> dict[str, Any]:
    """What model.json said in place of these facts before it said how images are decoded and cropped."""
    size, since = facts["image_size"], ("decoding", "resizing")
    steps = [
        "decode to RGB",
        f"resize the short side to {size} pixels, bicubic with antialiasing, keeping the aspect ratio",
        f"crop the centre {size} x {size}",
        "scale to [0, 1] as float32, channels first: (3, height, width)",
        "subtract mean and divide by std, channel by channel",
    ]
    return {key: value for key, value in facts.items() if key not in since} | {"preprocessing": steps}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's warnings and log lines, which concern its developers; errors are raised anyway."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
