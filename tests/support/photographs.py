"""The mark of tests that need the real photographs; conftest.py lists those that may skip without them."""

import os

import pytest

needs_photographs = pytest.mark.skipif(
    "MMRL_TEST_DATA" not in os.environ, reason="MMRL_TEST_DATA names no folder of photographs"
)
