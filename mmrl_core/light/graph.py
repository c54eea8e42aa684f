"""The image tower as an ONNX graph, made of its weights as they are. The files that other programs get, with a class
list, are export.py's.

B images, P patches, K representation tokens, L rows of an image, D width, E embedding width, S side of the view in
pixels.
"""

from typing import NamedTuple

import numpy as np

from mmrl_core.light.nodes import END, Nodes
from mmrl_core.light.tower import Arrays, layers_in, tower_shapes
from mmrl_core.method.shapes import TowerCard

IMAGES, OUTPUTS = "images", ("adapted", "rep", "frozen")  # the fields of ImageFeatures in method/model.py
QUICK_GELU = np.array(1.702, np.float32)


class Tokens(NamedTuple):
    """What FoldedCLIP has beside the tower."""

    tokens: np.ndarray  # (n_insert, K, D)
    projection: np.ndarray  # P_r (D, E)
    beta: float
    frozen: bool  # whether a head reads the frozen CLIP's features too


def feature_graph(arrays: Arrays, facts: TowerCard, tokens: Tokens | None) -> bytes | None:
    """A file for onnxruntime that computes what `FoldedCLIP.encode` does: images (B, 3, S, S) -> OUTPUTS (B, E), of
    which a baseline, without tokens, has the first alone, and the last is there where a head reads it.

    None for weights of another kind of image tower.
    """
    if {name: array.shape for name, array in arrays.items()} != tower_shapes(arrays, facts["size"]):
        return None
    tower = GraphTower(arrays, facts)
    found = [tower.frozen(tower.embed(), 0)] if tokens is None else _with_tokens(tower, tokens)
    outputs, size = dict(zip(OUTPUTS, found, strict=False)), facts["size"]
    return tower.nodes.model(IMAGES, ["batch", 3, size, size], outputs, ["batch", arrays["proj"].shape[1]])


def _with_tokens(tower: "GraphTower", tokens: Tokens) -> list[str]:
    first = tower.depth - len(tokens.tokens)
    trunk = tower.run(range(first), tower.embed())
    cls, slots = tower.adapted(trunk, first, tokens.tokens, tokens.beta)
    found = [tower.features(cls, tower.arrays["proj"]), tower.features(slots, tokens.projection)]
    return [*found, tower.frozen(trunk, first)] if tokens.frozen else found


class GraphTower:
    """The tower of `LightTower`, for B images at once. An image's rows are its patches, the class slot, the tokens.

    Between the layers those of all images lie one below the other (B L, D): a product then adds its bias in passing.
    """

    def __init__(self, arrays: Arrays, facts: TowerCard):
        self.arrays, self.facts, self.nodes = arrays, facts, Nodes()
        self.depth, self.width = layers_in(arrays), arrays["conv1.weight"].shape[0]
        self.n = len(arrays["positional_embedding"])  # 1 + P

    def embed(self) -> str:
        """The input of the first layer (B n, D)."""
        kernel, positions = self.arrays["conv1.weight"], self.arrays["positional_embedding"]
        x = self.nodes.add("Conv", IMAGES, kernel, strides=kernel.shape[2:])
        x = self.nodes.add("Transpose", self.nodes.reshape(x, 0, self.width, self.n - 1), perm=[0, 2, 1])
        first = positions[0] + self.arrays["class_embedding"]
        x = self.nodes.add("Add", self.nodes.padded(x, 1), np.concatenate([positions[1:], first[None]]))
        return self._norm("ln_pre", self._flat(x))

    def run(self, layers: range, x: str) -> str:
        """The input of the first of these layers (B n, D) -> the output of the last."""
        for index in layers:
            x = self._block(index, x, self.n)
        return x

    def frozen(self, x: str, first: int) -> str:
        """The input of layer `first` (B n, D) -> the frozen CLIP's image features, L2-normalised (B, E)."""
        x = self._block(self.depth - 1, self.run(range(first, self.depth - 1), x), self.n, (self.n - 1, END))
        return self.features(self._norm("ln_post", x), self.arrays["proj"])

    def adapted(self, trunk: str, first: int, tokens: np.ndarray, beta: float) -> tuple[str, str]:
        """That input, tokens (n_insert, K, D) -> ln_post of the class slot (B, D), and of the K slots the mean."""
        length = self.n + tokens.shape[1]
        x = self._insert(trunk, tokens[0])
        for index, following in zip(range(first, self.depth - 1), tokens[1:], strict=True):
            if beta == 1:  # what the layer leaves in the slots is dropped
                x = self._insert(self._block(index, x, length, (0, self.n)), following)
            else:
                x = self._compose(self._block(index, x, length), following, np.float32(beta))
        x = self._norm("ln_post", self._block(self.depth - 1, x, length, (self.n - 1, END)))
        x = self._by_image(x, length - self.n + 1)
        slots = self.nodes.add("ReduceMean", self.nodes.rows(x, 1, END), np.array([1]), keepdims=0)
        return self._flat(self.nodes.rows(x, 0, 1)), slots

    def features(self, x: str, projection: np.ndarray) -> str:
        """(B, D) -> L2-normalised (B, E)."""
        return self.nodes.normalised(self.nodes.add("MatMul", x, projection))

    def _insert(self, x: str, tokens: np.ndarray) -> str:
        """(B n, D), tokens (K, D) -> (B (n + K), D)."""
        x = self.nodes.padded(self._by_image(x, self.n), len(tokens))
        return self._flat(self.nodes.add("Add", x, self._below(tokens)))

    def _compose(self, x: str, tokens: np.ndarray, beta: np.float32) -> str:
        """(B (n + K), D) with the last K renewed: beta * tokens (K, D) + (1 - beta) * what is there."""
        kept = np.ones((self.n + len(tokens), 1), np.float32)
        kept[self.n :] -= beta
        x = self.nodes.add("Mul", self._by_image(x, len(kept)), kept)
        return self._flat(self.nodes.add("Add", x, self._below(beta * tokens)))

    def _below(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens (K, D) below n rows of zeros."""
        return np.pad(tokens, [(self.n, 0), (0, 0)])

    def _block(self, index: int, x: str, length: int, rows: tuple[int, int] | None = None) -> str:
        """(B L, D) -> the layer's output, or that of the rows from one to another alone, which attend to all."""
        name, heads = f"transformer.resblocks.{index}.", self.facts["heads"]
        packed = self._linear(f"{name}attn.in_proj_", self._norm(f"{name}ln_1", x))
        packed = self.nodes.reshape(packed, -1, length, 3 * self.width)
        q, k, v = self.nodes.split("Split", (packed,), 3, axis=-1, num_outputs=3)
        if rows:
            q, x = self.nodes.rows(q, *rows), self._flat(self.nodes.rows(self._by_image(x, length), *rows))
        attended = self._flat(self.nodes.add("Attention", q, k, v, q_num_heads=heads, kv_num_heads=heads))
        x = self.nodes.add("Add", x, self._linear(f"{name}attn.out_proj.", attended))
        hidden = self._activated(self._linear(f"{name}mlp.c_fc.", self._norm(f"{name}ln_2", x)))
        return self.nodes.add("Add", x, self._linear(f"{name}mlp.c_proj.", hidden))

    def _activated(self, x: str) -> str:
        if self.facts["activation"] == "GELU":
            return self.nodes.add("Gelu", x)
        return self.nodes.add("Mul", x, self.nodes.add("Sigmoid", self.nodes.add("Mul", x, QUICK_GELU)))

    def _linear(self, name: str, x: str) -> str:
        return self.nodes.add("Gemm", x, self._weight(f"{name}weight"), self._weight(f"{name}bias"), transB=1)

    def _norm(self, name: str, x: str) -> str:
        weight, bias = self._weight(f"{name}.weight"), self._weight(f"{name}.bias")
        return self.nodes.add("LayerNormalization", x, weight, bias, axis=-1, epsilon=self.facts["eps"])

    def _weight(self, name: str) -> str:
        return self.nodes.hold(name, self.arrays[name])

    def _flat(self, x: str) -> str:
        """(B, L, D) -> (B L, D)."""
        return self.nodes.reshape(x, -1, self.width)

    def _by_image(self, x: str, length: int) -> str:
        """(B L, D) -> (B, L, D)."""
        return self.nodes.reshape(x, -1, length, self.width)
