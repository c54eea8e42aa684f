#!/usr/bin/env bash
# onnxruntime 1.32.0 (onnx 1.23.2, numpy 2.4.6), Python 3.11, Linux (glibc), CPU.
#
# Expected: `enable_cpu_mem_arena = False` makes a session keep less memory between questions: the arena is what holds
# on to it, and without it each tensor goes back to the system. That is what is advised where memory grows.
# Seen: with batches of 1 to 32 images from four threads a small network keeps about three times as much without the
# arena as with it. Its tensors, of up to 2 MiB, come from glibc's own heaps once one of that size has been freed: glibc
# then raises the size from which it asks the system, up to 32 MiB. It has several heaps for several threads, and keeps
# most of what is freed there.
#
# MALLOC_MMAP_THRESHOLD_ in the environment holds that size where it is: then nothing is kept, as one would expect. Or
# the arena stays on.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6

cat > kept.py << 'EOF'
"""Prints the MiB that the process has more than after its first question, once all questions are answered."""

import random
import sys
from pathlib import Path
from threading import Thread

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

IMAGES, THREADS, QUESTIONS = 32, 4, 100  # at most in a batch; and of each thread
generator = np.random.default_rng(0)
weights = {"w0": generator.random((64, 3, 4, 4), np.float32), "w1": generator.random((64, 64, 3, 3), np.float32)}
nodes = [
    helper.make_node("Conv", ["x", "w0"], ["c0"], strides=[4, 4]),
    helper.make_node("Relu", ["c0"], ["r0"]),
    helper.make_node("Conv", ["r0", "w1"], ["c1"], pads=[1, 1, 1, 1]),
    helper.make_node("Add", ["c1", "r0"], ["a1"]),
    helper.make_node("GlobalAveragePool", ["a1"], ["y"]),
]
x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 64, 64])
y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64, 1, 1])
graph = helper.make_graph(nodes, "graph", [x], [y], [numpy_helper.from_array(w, name) for name, w in weights.items()])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()

options = onnxruntime.SessionOptions()
options.enable_cpu_mem_arena = sys.argv[1] == "arena"
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
images = generator.random((IMAGES, 3, 64, 64), np.float32)


def ask(seed: int) -> None:
    sizes = random.Random(seed)
    for _ in range(QUESTIONS):
        session.run(None, {"x": images[: sizes.randint(1, IMAGES)]})


def held() -> float:
    """MiB that the process has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) / 256


session.run(None, {"x": images[:1]})
before = held()
threads = [Thread(target=ask, args=(seed,)) for seed in range(THREADS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(round(held() - before))
EOF
export ORT_DISABLE_TELEMETRY=1
kept() { env -u MALLOC_ARENA_MAX -u MALLOC_MMAP_THRESHOLD_ "${@:2}" venv/bin/python kept.py "$1"; }
with=$(kept arena) without=$(kept none) held=$(kept none MALLOC_MMAP_THRESHOLD_=131072)
echo "MiB kept with the arena: $with, without: $without, without and MALLOC_MMAP_THRESHOLD_=131072: $held" >&2
echo "it keeps at least twice as much without the arena: $((without >= 2 * with))"
echo "with glibc's threshold held it keeps less than the arena does: $((held < with))"
((without >= 2 * with && held < with))

# Output seen:
#   it keeps at least twice as much without the arena: 1
#   with glibc's threshold held it keeps less than the arena does: 1
