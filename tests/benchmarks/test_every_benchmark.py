"""Most benchmarks are not run here; what they import from each other and from the project has to be there."""

import pkgutil
import sys
from importlib import import_module

import pytest

import benchmarks
from tests.support.workspace import ROOT

SERVERS = {"benchmarks.serving.lit", "benchmarks.serving.plain"}  # made as they are imported, of a model that they get
MODULES = {module.name for module in pkgutil.walk_packages(benchmarks.__path__, "benchmarks.")}
STARTED = {"benchmarks.startup.published"}  # by another, which knows how
COMMANDS = {
    name
    for name in MODULES - SERVERS - STARTED
    if (source := ROOT.joinpath(*name.split(".")).with_suffix(".py")).is_file()
    and "\n    main()\n" in source.read_text()
}


@pytest.mark.parametrize("name", sorted(MODULES - SERVERS))
def test_it_is_importable(name):
    assert import_module(name)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_each_that_is_a_command_says_how_it_is_called(name, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        import_module(name).main()
    assert ended.value.code == 0 and "usage: " in capsys.readouterr().out
    assert not list(tmp_path.iterdir())  # none takes the word for a file to write
