"""Most benchmarks are not run here; what they import from each other and from the project has to be there."""

import pkgutil
from importlib import import_module

import pytest

import benchmarks

SERVERS = {"benchmarks.serving.lit", "benchmarks.serving.plain"}  # made as they are imported, of a model that they get
MODULES = {module.name for module in pkgutil.walk_packages(benchmarks.__path__, "benchmarks.")}


@pytest.mark.parametrize("name", sorted(MODULES - SERVERS))
def test_it_is_importable(name):
    assert import_module(name)
