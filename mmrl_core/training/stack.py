"""Several adapters in one pass over the frozen towers: R runs, each with images and classes of its own.

The runs share the towers' shape: method, depth, tokens, ranks, beta and prompt template. Their losses' weights may
differ. R runs, B images of each, C classes of each, K tokens, D a tower's width, E embedding width.
"""

from collections.abc import Sequence
from itertools import chain

from torch import Tensor

from mmrl_core.clip.backbone import Backbone
from mmrl_core.clip.text_tower import text_tower
from mmrl_core.clip.towers import ImageTower
from mmrl_core.method.adapter import Adapter
from mmrl_core.method.adapter_stack import AdapterStack
from mmrl_core.method.model import AdaptedCLIP


class StackedCLIP(AdaptedCLIP):
    """The frozen CLIP with the adapters of a stack, each for its own list of equally many classes.

    Trunks (R, B, n, D) give logits (R, B, C); `zero_shot_text` is (R, C, E).
    """

    adapter: AdapterStack

    def __init__(
        self, backbone: Backbone, adapters: Sequence[Adapter], class_names: Sequence[list[str]], template: str,
        precision: str = "float32",
    ):  # fmt: skip
        self.class_lists = class_names
        super().__init__(backbone, AdapterStack(adapters), list(chain.from_iterable(class_names)), template, precision)

    def _build_towers(self) -> None:
        n_insert, runs = self.adapter.n_insert, len(self.class_lists)
        self.image_tower = ImageTower(self.backbone, n_insert, self.dtype)
        self.text_tower = text_tower(self.backbone, self.class_names, self.template, n_insert, self.dtype, runs=runs)
        self.register_buffer("zero_shot_text", self._of_runs(self.text_tower.zero_shot()), persistent=False)

    def _of_runs(self, features: Tensor) -> Tensor:
        """(R C, E) -> (R, C, E)."""
        return features.unflatten(0, (len(self.class_lists), -1))

    def text_features(self) -> Tensor:
        """Adapted class features (R, C, E)."""
        return self._of_runs(self.text_tower.adapted(self.adapter.text_tokens(), self.adapter.config.composition))
