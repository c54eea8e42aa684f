#!/usr/bin/env bash
# torch 2.15.0, onnx 1.23.2, onnxscript 0.7.2, onnxruntime 1.32.0, Python 3.11, CPU.
#
# Expected: `torch.onnx.export(model, args, dynamic_shapes=({0: Dim("batch")},))`, whose documentation refers to
# `torch.export.export` for that argument, does as that does: it leaves the axis open or raises.
# Seen: of a module that asks for `len(x)`, torch.export.export refuses ("You marked batch as dynamic but your code
# specialized it to be a constant (3)"), and torch.onnx.export writes a file that takes batches of 3 alone, without a
# warning: it applies the error's "suggested fix", batch = 3, and exports again. With the axis given as "batch" or
# Dim.DYNAMIC, for which there is no such fix, it goes on to tracing with strict=True, and the axis is open.
# `x.shape[0]`, which is the same number, leaves it open each time.
#
# So a model that is exported asks for `x.shape[0]`, and its file is run at other sizes than it was traced at.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.15.0 onnx==1.23.2 onnxscript==0.7.2 \
    onnxruntime==1.32.0 numpy

venv/bin/python - << 'EOF' 2> errors.txt || { cat errors.txt; exit 1; }
import logging
import warnings

import onnxruntime
import torch
from torch.export import Dim

said = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: said.append(record.getMessage())
for logger in (None, "torch", "torch.onnx", "torch.export"):
    logging.getLogger(logger).addHandler(handler)


class ByLen(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(len(x), -1) * 2


class ByShape(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0], -1) * 2


def alone(module: torch.nn.Module) -> str:
    try:
        torch.export.export(module, (x,), dynamic_shapes=({0: Dim("batch")},))
    except Exception as error:
        return "refused: " + str(error).splitlines()[1].split(". ")[0].strip(" -")
    return "exported"


def batches(module: torch.nn.Module, size: object) -> list[int]:
    """Which of the batches of 1, 3 and 5 the file takes."""
    torch.onnx.export(module, (x,), "model.onnx", dynamic_shapes=({0: size},), dynamo=True, verbose=False)
    session, taken = onnxruntime.InferenceSession("model.onnx"), []
    for n in (1, 3, 5):
        try:
            [y] = session.run(None, {"x": torch.ones(n, 2, 4).numpy()})
            assert y.shape == (n, 8)
            taken.append(n)
        except onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument:
            pass
    return taken


x = torch.ones(3, 2, 4)
exported, files = {}, {}
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    for module in (ByLen().eval(), ByShape().eval()):
        name = type(module).__name__
        exported[name] = alone(module)
        print(f"{name}: torch.export.export: {exported[name]}")
        for label, size in {'Dim("batch")': Dim("batch"), '"batch"': "batch", "Dim.DYNAMIC": Dim.DYNAMIC}.items():
            files[name, label] = batches(module, size)
            print(f"{name}: torch.onnx.export, {label}: of batches of 1, 3 and 5 the file takes {files[name, label]}")
said += [str(warning.message) for warning in warned]
told = [line for line in said if any(word in line.lower() for word in ("batch", "dynamic", "special", "constant"))]
print("warnings of it:", told)
assert exported["ByLen"].startswith("refused: You marked batch as dynamic") and exported["ByShape"] == "exported"
assert files.pop(("ByLen", 'Dim("batch")')) == [3]
assert set(map(tuple, files.values())) == {(1, 3, 5)} and not told
EOF

# Output seen:
#   ByLen: torch.export.export: refused: You marked batch as dynamic but your code specialized it to be a constant (3)
#   ByLen: torch.onnx.export, Dim("batch"): of batches of 1, 3 and 5 the file takes [3]
#   ByLen: torch.onnx.export, "batch": of batches of 1, 3 and 5 the file takes [1, 3, 5]
#   ByLen: torch.onnx.export, Dim.DYNAMIC: of batches of 1, 3 and 5 the file takes [1, 3, 5]
#   ByShape: torch.export.export: exported
#   ByShape: torch.onnx.export, Dim("batch"): of batches of 1, 3 and 5 the file takes [1, 3, 5]
#   ByShape: torch.onnx.export, "batch": of batches of 1, 3 and 5 the file takes [1, 3, 5]
#   ByShape: torch.onnx.export, Dim.DYNAMIC: of batches of 1, 3 and 5 the file takes [1, 3, 5]
#   warnings of it: []
