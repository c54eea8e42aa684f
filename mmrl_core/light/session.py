"""onnxruntime for the graph of `graph.py`."""

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as errors

from mmrl_core.light.graph import IMAGES

REFUSALS = (  # of an onnxruntime older than the graph's operators
    errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.NotImplemented, errors.RuntimeException,
)  # fmt: skip


class Session:
    """One thread's work a call; any number of threads may call at once. Holds no more memory after batches of many
    sizes than after the largest."""

    def __init__(self, graph: bytes):
        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # fatal ones: an error is raised, which is enough
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_mem_pattern = False  # one would be kept for every size of batch
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """What the graph gives (B, E) for (B, 3, S, S)."""
        return self._session.run(None, {IMAGES: images})


def session_of(graph: bytes) -> Session | None:
    """None where the installed onnxruntime does not know the graph's operators."""
    try:
        return Session(graph)
    except REFUSALS:
        return None
