"""The test view, made without PyTorch."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as F

from mmrl_core.data.squares import INTERPOLATIONS, RESIZE_MODES, ViewSettings, square
from mmrl_core.data.squares import test_pixels as pixels_of
from mmrl_core.data.views import test_view as view_of


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("resize_mode", RESIZE_MODES)
@pytest.mark.parametrize("size", [(40, 30), (31, 47), (16, 16), (9, 50), (5, 9), (1, 300)])
def test_pixels_are_those_of_pytorchs_view_to_the_bit(size, resize_mode, interpolation):
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image, settings = (
        Image.fromarray(values),
        ViewSettings(
            16, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), resize_mode, interpolation
        ),
    )
    found, view = pixels_of(image, settings), view_of(image, settings)
    expected = F.normalize(F.to_tensor(square(image, settings)), settings.mean, settings.std)
    assert found.dtype == np.float32 and np.array_equal(found, expected.numpy()) and torch.equal(view, expected)
