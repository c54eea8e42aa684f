"""Imports that put the `__init__` of packages off: of small packages written here, and of open_clip's."""

import importlib
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mmrl_core.deferred import import_deferring
from mmrl_core.errors import UserError


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write modules by path; what a test imported of them is forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)

    def write(**files: str) -> None:
        for path, content in files.items():
            file = tmp_path / f"{path.replace('__', '/')}.py"
            file.parent.mkdir(exist_ok=True)
            file.write_text(textwrap.dedent(content))
        importlib.invalidate_caches()

    # `ready` says what ran; the package `heavy` says so too, and has a name from a part and one of its own.
    write(ready="ran = []", heavy__init="", heavy__part="import ready\nready.ran.append('part')\nthing = object()\n")
    (tmp_path / "heavy" / "init.py").rename(tmp_path / "heavy" / "__init__.py")
    (tmp_path / "heavy" / "__init__.py").write_text(
        "import ready\nready.ran.append('init')\nown = object()\nfrom .part import thing as name\n"
    )
    yield write
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("ready", "heavy", "user"):
            del sys.modules[name]


def ran() -> list[str]:
    return sys.modules["ready"].ran


def test_a_submodule_is_imported_without_its_packages_init_which_runs_when_asked_for(write):
    write(user="import heavy.part")
    user = import_deferring("user", "heavy")
    part = user.heavy.part if ran() == ["part"] else None
    assert ran() == ["part", "init"] and part is sys.modules["heavy.part"]  # an attribute of the package asked for it
    assert sys.modules["heavy"] is user.heavy and user.heavy.name is part.thing


@pytest.mark.parametrize(
    "ask",
    ["import heavy", "import heavy.part", "from heavy import own", "from heavy import part", "import heavy.other"],
)
def test_whoever_imports_the_package_afterwards_has_it_whole(write, ask):
    write(user="from heavy.part import thing", heavy__other="from heavy import own")
    user = import_deferring("user", "heavy")
    assert ran() == ["part"] and "heavy" not in sys.modules
    exec(ask, {})
    heavy = sys.modules["heavy"]
    assert ran() == ["part", "init"] and heavy.name is user.thing and "own" in dir(heavy)


def test_a_name_of_the_package_comes_from_the_part_that_has_it(write):
    write(user="from heavy import name")
    assert import_deferring("user", "heavy").name is sys.modules["heavy.part"].thing
    assert ran() == ["part"]


@pytest.mark.parametrize("what", ["own", "name, own", "*"])
def test_a_name_that_only_the_init_makes_runs_it(write, what):
    write(user=f"from heavy import {what}")
    user = import_deferring("user", "heavy")
    assert user.own is sys.modules["heavy"].own
    assert sorted(ran()) == ["init", "part"]


def test_a_name_that_the_init_may_have_made_anew_comes_from_the_init(write):
    with open(Path(sys.path[0], "heavy", "__init__.py"), "a") as init:
        init.write("name = 'another'\n")
    write(user="from heavy import name")
    assert import_deferring("user", "heavy").name == "another"


def test_a_part_that_cannot_do_without_the_init_is_not_taken_for_absent(write):
    write(
        heavy__other="import ready\nif 'init' not in ready.ran:\n    raise ImportError\nthing = 'there'\n",
        user="try:\n    from heavy.other import thing\nexcept ImportError:\n    thing = None\n",
    )
    assert import_deferring("user", "heavy").thing == "there"


def test_an_import_that_fails_without_the_init_is_made_plainly(write):
    write(heavy__other="import ready\nassert 'init' in ready.ran\n", user="import heavy.other")
    assert import_deferring("user", "heavy").heavy.other is sys.modules["heavy.other"]


def test_what_fails_plainly_too_fails_so_and_leaves_nothing_behind(write):
    write(user="import heavy.absent")
    with pytest.raises(ModuleNotFoundError, match=r"heavy\.absent"):
        import_deferring("user", "heavy")
    assert "user" not in sys.modules
    exec("import heavy", {})
    assert sys.modules["heavy"].own and ran().count("init") == 1


def test_a_package_that_is_not_there_is_absent(write):
    write(user="try:\n    import heavier\nexcept ImportError:\n    heavier = None\n")
    assert import_deferring("user", "heavier", "heavier.still").heavier is None


def test_a_package_that_was_imported_before_is_as_it_was(write):
    write(user="from heavy.part import thing")
    heavy = importlib.import_module("heavy")
    import_deferring("user", "heavy")
    assert sys.modules["heavy"] is heavy and ran() == ["init", "part"]


NAMES = """
import json, sys, torch, torchvision, timm, open_clip
assert len(torch.ops.torchvision.nms(torch.zeros(1, 4), torch.ones(1), 0.5)) == 1
kind = lambda value: [type(value).__name__, str(getattr(value, '__module__', '')), str(getattr(value, '__name__', ''))]
kinds = lambda module: {name: kind(value) for name, value in vars(module).items() if not name.startswith('__')}
packages = ['timm', 'timm.layers', 'timm.models', 'torchvision', 'torchvision.models', 'torchvision.ops',
            'torchvision.transforms', 'open_clip', 'open_clip.timm_model', 'open_clip.utils']
print(json.dumps({name: kinds(sys.modules[name]) for name in packages}))
"""


def test_after_the_backbone_timm_torchvision_and_open_clip_are_what_they_are_without_it():
    children = [
        subprocess.Popen([sys.executable, "-c", before + NAMES], stdout=subprocess.PIPE)
        for before in ("import mmrl_core.data.views, mmrl_core.clip.backbone", "")
    ]
    after, plain = (json.loads(child.communicate()[0]) for child in children)
    assert after == plain


def test_a_model_of_timm_that_has_no_reader_is_refused_by_its_name(tmp_path):
    from mmrl_core.clip.backbone import load_backbone
    from mmrl_core.clip.openclip import open_clip

    shape = {"timm_model_name": "test_vit", "image_size": 160, "timm_model_pretrained": False}
    text = {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1}
    (tmp_path / "of-timm.json").write_text(json.dumps({"embed_dim": 8, "vision_cfg": shape, "text_cfg": text}))
    open_clip.add_model_config(tmp_path)
    with pytest.raises(UserError, match="its image tower is timm's test_vit, not a plain ViT"):
        load_backbone("of-timm", "random")
