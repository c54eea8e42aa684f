"""NumPy's activations against PyTorch's."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmrl_core.light.activations import ACTIVATIONS, erf, softmax

X = np.linspace(-100, 100, 20_001, dtype=np.float32)


def test_the_error_function_is_right_to_seven_digits():
    near = np.linspace(-6, 6, 10_001, dtype=np.float32)
    assert np.abs(erf(near) - torch.erf(torch.from_numpy(near)).numpy()).max() < 2.5e-7
    assert (erf(np.array([-np.inf, np.inf], np.float32)) == [-1, 1]).all()


@pytest.mark.parametrize(
    ("name", "expected"), [("GELU", F.gelu), ("QuickGELU", lambda x: x * torch.sigmoid(1.702 * x))]
)
def test_activations_are_those_of_the_towers(name, expected):
    found = ACTIVATIONS[name](X)
    assert found.dtype == np.float32
    assert np.allclose(found, expected(torch.from_numpy(X)).numpy(), rtol=1e-6, atol=1e-6)


def test_softmax_of_large_logits_is_a_share():
    logits = np.array([[1000.0, 999.0, -1000.0]], np.float32)
    assert np.allclose(softmax(logits), torch.from_numpy(logits).softmax(-1).numpy(), atol=1e-7)
