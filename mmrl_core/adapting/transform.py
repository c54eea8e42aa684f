"""The preprocessing as a callable; light to import, since every worker of a DataLoader that is started anew does."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mmrl_core.adapting.images import open_image
from mmrl_core.data.views import ViewSettings, test_view


@dataclass(frozen=True)
class Transform:
    """An image to what the model sees of it: a callable (image) -> (3, S, S) float32, S the side in pixels. It can be
    pickled, for torch's and torchvision's datasets and the workers of a DataLoader."""

    settings: ViewSettings

    def __call__(self, image: Any) -> Tensor:
        return test_view(open_image(image, "to transform"), self.settings)
