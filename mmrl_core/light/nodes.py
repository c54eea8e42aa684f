"""A graph in the making: ONNX's operators in their order, and the arrays that they read."""

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

OPSET, IR_VERSION = 23, 11  # the first with an operator for attention
END = np.iinfo(np.int64).max  # of a slice


class Nodes:
    """What adds a node gives the name of its output; an operator's input is such a name, or an array."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.held: dict[str, onnx.TensorProto] = {}  # by name
        self._constants: dict[tuple[Any, ...], str] = {}  # names of those without one, by content

    def add(self, operator: str, *inputs: str | np.ndarray, **attributes: Any) -> str:
        return self.split(operator, inputs, 1, **attributes)[0]

    def split(self, operator: str, inputs: tuple[str | np.ndarray, ...], count: int, **attributes: Any) -> list[str]:
        """The names of so many outputs."""
        names = [read if isinstance(read, str) else self._constant(read) for read in inputs]
        outputs = [f"{len(self.nodes)}.{index}" for index in range(count)]
        self.nodes.append(helper.make_node(operator, names, outputs, **attributes))
        return outputs

    def hold(self, name: str, array: np.ndarray) -> str:
        """The array under this name, once."""
        if name not in self.held:
            self.held[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def _constant(self, array: np.ndarray) -> str:
        key = array.dtype.str, array.shape, array.tobytes()
        return self.hold(self._constants.setdefault(key, f"constant.{len(self._constants)}"), array)

    def reshape(self, x: str, *shape: int) -> str:
        return self.add("Reshape", x, np.array(shape))

    def rows(self, x: str, start: int, stop: int, axis: int = 1) -> str:
        """Those from one to another."""
        return self.add("Slice", x, *(np.array([bound]) for bound in (start, stop, axis)))

    def padded(self, x: str, count: int) -> str:
        """(B, L, D) with so many rows of zeros behind it: (B, L + count, D)."""
        return self.add("Pad", x, np.array([0, 0, 0, 0, count, 0]))

    def normalised(self, x: str) -> str:
        """(B, E), each row at length 1."""
        length = self.add("ReduceL2", x, np.array([-1]), keepdims=1)
        return self.add("Div", x, self.add("Max", length, np.array(1e-12, np.float32)))

    def model(
        self, images: str, shape: list[str | int], outputs: dict[str, str], output_shape: list[str | int]
    ) -> bytes:
        """The file that takes `images` of that shape, and gives what `outputs` name, of another."""
        float32 = onnx.TensorProto.FLOAT
        nodes = self.nodes + [helper.make_node("Identity", [value], [name]) for name, value in outputs.items()]
        given = [helper.make_tensor_value_info(name, float32, output_shape) for name in outputs]
        taken = [helper.make_tensor_value_info(images, float32, shape)]
        graph = helper.make_graph(nodes, "graph", taken, given, list(self.held.values()))
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION).SerializeToString()
