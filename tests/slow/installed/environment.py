"""The package as its users have it: a wheel in an environment of its own, nothing of this repository on the path."""

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from tests.support.workspace import BIN, ROOT

UV = [str(BIN / "uv"), "pip", "install", "--quiet", "--system-certs", "--no-deps"]
# What pip and this test process would bring in from outside, or look for in the user's own folders.
OURS = ("PYTHONPATH", "PYTHONSAFEPATH", "VIRTUAL_ENV", "MLFLOW_TRACKING_URI", "MMRL_TEST_DATA")


class Environment:
    """A virtual environment with the packages of a lock, by their hashes, and the wheel of this tree."""

    def __init__(self, folder: Path, lock: str, python: str):
        self.folder = folder
        done(interpreter(python), "-m", "venv", "--without-pip", str(folder))
        done(*UV, "--require-hashes", "-r", str(ROOT / "locks" / f"{lock}.lock"), "--python", self.python)
        done(*UV, "--python", self.python, str(wheel()))

    @property
    def python(self) -> str:
        return str(self.folder / "bin/python")

    @property
    def variables(self) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if name not in OURS}
        path = f"{self.folder / 'bin'}{os.pathsep}{os.defpath}{os.pathsep}{Path(shutil.which('git')).parent}"
        return own | {"PATH": path, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

    def run(self, folder: Path, *command: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """A command of the environment in a folder; it must end with `code`."""
        found = shutil.which(command[0], path=self.variables["PATH"])
        assert found, command
        ended = subprocess.run([found, *command[1:]], cwd=folder, env=self.variables, capture_output=True, text=True)
        assert ended.returncode == code, f"{command}: {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
        return ended


@cache
def wheel() -> Path:
    """Built from the tracked files alone, so that what is missing there is missing here."""
    folder = Path(mkdtemp(prefix="mmrl-wheel-"))
    for name in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines():
        if (ROOT / name).is_file() and name.partition("/")[0] not in ("tests", "docs", "findings", "benchmarks"):
            (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "tree" / name)
    build = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", ".")
    done(sys.executable, *build, "--wheel-dir", str(folder), cwd=folder / "tree")
    [built] = folder.glob("*.whl")
    return built


def interpreter(version: str) -> str:
    """That Python where the machine has it, else the one that runs the tests."""
    candidates = [shutil.which(f"python{version}"), *sorted(map(str, _of_pyenv().glob(f"{version}.*/bin/python")))]
    for candidate in filter(None, candidates):
        said = subprocess.run([candidate, "-c", "import sys; print(*sys.version_info[:2], sep='.')"],
                              capture_output=True, text=True)  # fmt: skip
        if said.stdout.strip() == version:
            return candidate
    return sys.executable


def _of_pyenv() -> Path:
    return Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"


def done(*command: str, cwd: Path | None = None) -> None:
    ended = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert ended.returncode == 0, f"{command}: {ended.stdout}\n{ended.stderr}"
