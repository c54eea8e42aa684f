"""The image, as far as it can be known without an engine: what goes in, what does not, versions, user, telemetry."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "infra" / "docker" / "Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What each tool's own switch is called, and what turns its reports off.
SILENT = {"DO_NOT_TRACK": "1", "DVC_NO_ANALYTICS": "1", "MLFLOW_DISABLE_TELEMETRY": "true",
          "ORT_DISABLE_TELEMETRY": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
          "RAY_USAGE_STATS_ENABLED": "0"}  # fmt: skip


def instructions() -> list[tuple[str, str]]:
    """(FROM, python:...), ... with continued lines joined and comments gone."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def arguments(name: str) -> list[str]:
    return [rest for instruction, rest in instructions() if instruction == name]


def sources() -> list[str]:
    return [source for copied in arguments("COPY") for source in copied.split()[:-1]]


def ignored(path: str) -> bool:
    """By .dockerignore, whose last pattern that matches the path or a folder above it decides."""
    parts = Path(path).parts
    above = ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
    found = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!")
            names = (one.rpartition("/")[2] if pattern.startswith("**/") else one for one in above)
            if any(matches(name, pattern.removeprefix("**/")) for name in names):
                found = not line.startswith("!")
    return found


def matches(name: str, pattern: str) -> bool:
    return name.count("/") == pattern.count("/") and fnmatch(name, pattern)


def test_what_is_copied_exists_and_nothing_else_reaches_the_builder():
    assert sources()
    for source in sources():
        assert (ROOT / source).exists() and not ignored(source), source
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    sent = {Path(path).parts[0] for path in tracked.splitlines() if not ignored(path)}
    assert sent == {Path(source).parts[0] for source in sources()}
    for other in ("locks/development.lock", "data/digits/pool", ".venv/bin/python"):
        assert ignored(other), other
    for secret in (".git/config", "infra/.env", ".env", "mlflow.db"):
        assert ignored(secret), secret
    assert ignored("flows/cli/__pycache__/x.pyc")


def test_what_is_copied_installs_whole(tmp_path):
    for source in sources():
        origin = ROOT / source
        shutil.copytree(origin, tmp_path / source) if origin.is_dir() else shutil.copy(origin, tmp_path)
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "."]
    subprocess.run([*wheel, "--wheel-dir", str(tmp_path / "out")], cwd=tmp_path, check=True)
    packed = set(zipfile.ZipFile(next((tmp_path / "out").glob("*.whl"))).namelist())
    tracked = subprocess.run(["git", "ls-files", "mmrl_core", "flows"], cwd=ROOT, capture_output=True, text=True)
    assert set(tracked.stdout.split()) <= packed


def test_the_base_is_pinned_and_of_a_python_that_the_lock_was_made_for():
    (base,) = arguments("FROM")
    version = re.fullmatch(r"python:(\d+)\.(\d+)\.\d+-slim-bookworm@\$\{PYTHON_DIGEST\}", base)
    assert version, base
    lowest, highest = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["requires-python"]).groups()
    assert version[1] == "3" and int(lowest) <= int(version[2]) < int(highest)


def test_packages_come_from_the_lock_by_their_hashes_and_from_no_named_index():
    installs = [run for run in arguments("RUN") if "pip install" in run]
    assert len(installs) == 2
    assert "--require-hashes -r /build/pipeline.lock" in installs[0]
    assert "--no-deps" in installs[1] and "--no-index" in installs[1]
    assert not re.search(r"https?://|--(extra-)?index-url|--trusted-host", DOCKERFILE.read_text())


def names_in(lock: str) -> set[str]:
    return set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "locks" / lock).read_text(), re.M))


def test_it_holds_no_tool_of_development():
    assert names_in("pipeline.lock").isdisjoint({"pytest", "moto", "cfn-lint", "mypy", "ruff", "hypothesis"})
    assert names_in("core.lock") < names_in("pipeline.lock") < names_in("development.lock")


def test_locks_have_what_the_project_asks_for_and_agree_with_each_other():
    pins = {lock: dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / "locks" / f"{lock}.lock").read_text(), re.M))
            for lock in ("core", "pipeline", "development")}  # fmt: skip
    for lock in ("core", "pipeline"):
        assert pins[lock].items() <= pins["development"].items()
    asked = {"core": PROJECT["dependencies"], "pipeline": PROJECT["optional-dependencies"]["pipeline"]}
    for lock, requirements in asked.items():
        named = {re.match(r"[\w.-]+", one)[0].lower().replace("_", "-").replace(".", "-") for one in requirements}
        assert named <= pins[lock].keys()


def test_the_core_is_small():
    """Without CUDA's libraries, which torch's wheel for Linux asks for."""
    assert len([name for name in names_in("core.lock") if not re.match("nvidia-|cuda-|triton$", name)]) <= 60


def test_it_runs_as_an_unprivileged_user():
    assert arguments("ARG") == ["PYTHON_DIGEST", "UID=1000"] and arguments("USER") == ["${UID}"]
    last_run = max(number for number, (name, _) in enumerate(instructions()) if name == "RUN")
    assert [name for name, _ in instructions()].index("USER") > last_run


def test_telemetry_is_off_and_no_secret_is_inside():
    variables = dict(re.findall(r"(\w+)=(\S+)", arguments("ENV")[0]))
    assert variables.items() >= SILENT.items()
    assert not re.search(r"(?i)password|secret|token|api_key", DOCKERFILE.read_text())


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml", "cluster.yaml"])
def test_rays_manifests_name_the_image_of_this_version(name):
    text = (ROOT / "infra" / "ray" / name).read_text()
    assert set(re.findall(r"image: (mmrl-ops\S*)", text)) == {f"mmrl-ops:{PROJECT['version']}"}
    assert f"mmrl-ops:{PROJECT['version']}" in DOCKERFILE.read_text()
