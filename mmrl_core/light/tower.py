"""The image tower in NumPy, for one image at a time.

P patches, K representation tokens, L tokens, D width, H heads, d = D / H, S side of the view in pixels, p of a patch.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from mmrl_core.light.activations import ACTIVATIONS, softmax
from mmrl_core.method.shapes import TowerCard

Arrays = Mapping[str, np.ndarray]  # by the names of open_clip's visual tower, in float32


class LightTower:
    """The tower of `WholeTower` in method/folded.py."""

    def __init__(self, arrays: Arrays, facts: TowerCard, n_insert: int):
        self.arrays, self.facts = arrays, facts
        self.blocks = [f"transformer.resblocks.{index}." for index in range(layers_in(arrays))]
        self.first = len(self.blocks) - n_insert

    def trunk(self, pixels: np.ndarray) -> np.ndarray:
        """(3, S, S) -> input of the first token-carrying layer (1 + P, D)."""
        kernel = self.arrays["conv1.weight"]
        width, channels, side, _ = kernel.shape
        grid = pixels.shape[-1] // side
        patches = pixels[:, : grid * side, : grid * side].reshape(channels, grid, side, grid, side)
        patches = patches.transpose(1, 3, 0, 2, 4).reshape(grid * grid, -1)
        slots = np.concatenate([self.arrays["class_embedding"][None], patches @ kernel.reshape(width, -1).T])
        x = self._norm("ln_pre", slots + self.arrays["positional_embedding"])
        for block in self.blocks[: self.first]:
            x = self._run(block, x)
        return x

    def adapted(self, trunk: np.ndarray, tokens: np.ndarray, beta: float) -> tuple[np.ndarray, np.ndarray]:
        """That input, tokens (n_insert, K, D) -> ln_post of the class slot (D,) and of the K slots (K, D)."""
        n = len(trunk)
        x = np.concatenate([trunk, tokens[0]])
        for block, following in zip(self.blocks[self.first : -1], tokens[1:], strict=True):
            x = self._run(block, x)
            x[n:] = beta * following + (1 - beta) * x[n:]
        x = self._norm("ln_post", self._run(self.blocks[-1], x, [0, *range(n, len(x))]))
        return x[0], x[1:]

    def frozen(self, trunk: np.ndarray) -> np.ndarray:
        """That input -> the frozen CLIP's image features, L2-normalised (E,)."""
        x = trunk
        for block in self.blocks[self.first : -1]:
            x = self._run(block, x)
        return normalised(self._norm("ln_post", self._run(self.blocks[-1], x, [0]))[0] @ self.arrays["proj"])

    def _run(self, block: str, x: np.ndarray, rows: Sequence[int] | None = None) -> np.ndarray:
        """The block's output (L, D), or that of some rows alone, which attend to all."""
        width = x.shape[-1]
        packed = self._linear(f"{block}attn.in_proj_", self._norm(f"{block}ln_1", x))
        q, k, v = (packed[:, start : start + width] for start in range(0, 3 * width, width))
        if rows is not None:
            x, q = x[rows], q[rows]
        x = x + self._linear(f"{block}attn.out_proj.", self._attend(q, k, v))
        hidden = self._linear(f"{block}mlp.c_fc.", self._norm(f"{block}ln_2", x))
        return x + self._linear(f"{block}mlp.c_proj.", ACTIVATIONS[self.facts["activation"]](hidden))

    def _attend(self, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Queries (Q, D), keys and values (L, D) -> (Q, D)."""
        q, k, v = (part.reshape(len(part), self.facts["heads"], -1).swapaxes(0, 1) for part in (q, k, v))  # (H, L, d)
        weights = softmax(q @ k.swapaxes(1, 2) / np.float32(q.shape[-1] ** 0.5))
        return (weights @ v).swapaxes(0, 1).reshape(q.shape[1], -1)

    def _linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.arrays[f"{name}weight"].T + self.arrays[f"{name}bias"]

    def _norm(self, name: str, x: np.ndarray) -> np.ndarray:
        x = x - x.mean(axis=-1, keepdims=True)
        scale = np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.float32(self.facts["eps"]))
        return x / scale * self.arrays[f"{name}.weight"] + self.arrays[f"{name}.bias"]


def normalised(x: np.ndarray) -> np.ndarray:
    """The vector (E,) at length 1."""
    return x / max(float(np.linalg.norm(x)), 1e-12)


def layers_in(arrays: Arrays) -> int:
    """How many blocks the weights are of."""
    return sum(name.endswith(".attn.in_proj_weight") for name in arrays)


def tower_shapes(arrays: Arrays, size: int) -> dict[str, tuple[int, ...]]:
    """The shapes that weights of as many blocks, of that width and for images of `size` pixels have; of what is missing
    nothing can be known, and there is no tower."""
    width, _, side, _ = arrays["conv1.weight"].shape
    hidden = len(arrays["transformer.resblocks.0.mlp.c_fc.bias"])
    shapes = {
        "conv1.weight": (width, 3, side, side),
        "class_embedding": (width,),
        "positional_embedding": ((size // side) ** 2 + 1, width),
        "proj": (width, arrays["proj"].shape[-1]),
        **{f"{name}.{part}": (width,) for name in ("ln_pre", "ln_post") for part in ("weight", "bias")},
    }
    for index in range(layers_in(arrays)):
        block = f"transformer.resblocks.{index}."
        shapes |= {f"{block}{name}.{part}": (width,) for name in ("ln_1", "ln_2") for part in ("weight", "bias")}
        shapes |= {f"{block}attn.in_proj_weight": (3 * width, width), f"{block}attn.in_proj_bias": (3 * width,)}
        shapes |= {f"{block}attn.out_proj.weight": (width, width), f"{block}attn.out_proj.bias": (width,)}
        shapes |= {f"{block}mlp.c_fc.weight": (hidden, width), f"{block}mlp.c_fc.bias": (hidden,)}
        shapes |= {f"{block}mlp.c_proj.weight": (width, hidden), f"{block}mlp.c_proj.bias": (width,)}
    return shapes
