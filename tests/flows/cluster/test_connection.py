"""What joining a Ray cluster does to this process, and what importing the module does not."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.workspace import ROOT

IMPORTED = """
import os
before = dict(os.environ)
import flows.cluster.connection
assert os.environ == before, set(os.environ.items()) ^ set(before.items())
"""
REFUSED = """
import json, os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "ray":
            seen.update(os.environ)

seen = {}
sys.meta_path.insert(0, Watch())
from flows.cluster.connection import VARIABLES, Needs, connected
from flows.settings.sections import ClusterSection
from mmrl_core.errors import UserError
try:
    with connected(ClusterSection(address="127.0.0.1:1"), Needs(1)):
        pass
except UserError:
    print(json.dumps([VARIABLES, seen]))
"""


def python(code: str, folder: Path, **variables: str) -> str:
    """What a process of its own prints, which has nothing of Ray's in its environment and may write below `folder`."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TUNE_", "MALLOC_"))}
    places = {"HOME": str(folder), "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env={**plain, **places, **variables},
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_module_changes_neither_the_environment_nor_the_disk(tmp_path):
    python(IMPORTED, tmp_path)
    assert not list(tmp_path.iterdir())


def test_rays_variables_are_set_before_ray_is_imported_and_what_was_said_already_stays(tmp_path):
    variables, seen = json.loads(python(REFUSED, tmp_path, RAY_worker_niceness="7"))
    assert {name: seen[name] for name in variables} == {**variables, "RAY_worker_niceness": "7"}
