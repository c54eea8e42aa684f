"""infra/compose.yaml against the Compose Specification, as far as no engine is needed."""

import re
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.support.compose import FILE, resolved, variables

ROOT = FILE.parents[1]
# The fields of the Compose Specification that are in use here; anything else is a mistake.
TOP = {"name", "services", "volumes"}
SERVICE = {"build", "cap_drop", "command", "depends_on", "environment", "healthcheck", "image", "init", "logging",
           "ports", "restart", "security_opt", "shm_size", "volumes"}  # fmt: skip
BUILD, LOGGING = {"context", "dockerfile", "args"}, {"driver", "options"}
CHECK = {"test", "interval", "timeout", "retries", "start_period"}
DEPENDENCY = {"condition", "restart"}
OWN = "mmrl-ops"
UNCHECKED = {"release"}  # it listens on no port, and ends when it fails
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|KEY")


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return {name: f"value0of0{name}" for name, kinds in variables().items() if "?" in kinds}


@pytest.fixture(scope="module")
def services(settings) -> dict[str, dict]:
    return resolved(settings)["services"]


def test_every_field_is_one_of_the_specification(settings):
    found = resolved(settings)
    assert {name for name in found if not name.startswith("x-")} == TOP
    for name, service in found["services"].items():
        assert service.keys() <= SERVICE, name
        assert service.get("build", {}).keys() <= BUILD and service["logging"].keys() == LOGGING, name
        assert service.get("healthcheck", {}).keys() <= CHECK, name
        assert all(one.keys() <= DEPENDENCY for one in service.get("depends_on", {}).values()), name
        strings = [*service.get("command", []), *service.get("environment", {}).values()]
        assert all(isinstance(one, str) for one in strings), f"{name}: quote what YAML reads as a number"


def test_services_start_after_what_they_need_is_healthy(services):
    needs = {name: service.get("depends_on", {}) for name, service in services.items()}
    list(TopologicalSorter(needs).static_order())  # raises for a cycle
    for name, needed in needs.items():
        for other, how in needed.items():
            assert how["condition"] == "service_healthy" and "healthcheck" in services[other], (name, other)
        addressed = set(re.findall(r"//(?:\S+@)?([a-z]\w*):\d", str(services[name].get("environment", {}))))
        assert addressed <= needed.keys(), name


def test_every_service_restarts_and_says_whether_it_is_well(services):
    for name, service in services.items():
        assert service["restart"] == "unless-stopped", name
        if name not in UNCHECKED:
            assert service["healthcheck"]["test"][0] == "CMD" and service["healthcheck"]["retries"], name


def test_ports_are_of_this_machine_alone(services):
    taken = []
    for name, service in services.items():
        for port in service.get("ports", []):
            host, outside, inside = port.split(":")
            assert host == "127.0.0.1", name
            assert inside in " ".join(service["command"]), f"{name} does not listen there"
            taken.append(outside)
    assert len(taken) == len(set(taken))


def test_images_are_pinned_and_the_projects_own_is_of_this_version(services):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for service in services.values():
        name, _, tag = service["image"].rpartition(":")
        assert name and re.match(r"\d+\.\d+", tag), service["image"]
        assert ("build" in service) == (name == OWN)
        if name == OWN:
            assert tag == version
            assert (FILE.parent / service["build"]["context"] / service["build"]["dockerfile"]).exists()
            assert service["cap_drop"] == ["ALL"] and "no-new-privileges:true" in service["security_opt"]


def test_secrets_come_from_the_environment_and_nothing_starts_without_them(settings):
    example = dict(re.findall(r"^(\w+)=(.*)$", (FILE.parent / ".env.example").read_text(), flags=re.MULTILINE))
    assert example.keys() == variables().keys() and not any(example.values())
    assert {name for name in variables() if SECRET.search(name)} <= settings.keys()
    for name in settings:
        with pytest.raises(KeyError, match=name):
            resolved({**settings, name: ""})
    for name, service in resolved(settings)["services"].items():
        for key, value in service.get("environment", {}).items():
            assert not SECRET.search(key) or value.startswith("value0of0"), f"{name}: {key} is written out"


def test_the_file_of_secrets_is_not_for_git():
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


def test_volumes_are_named_or_exist_in_the_project(services, settings):
    declared, used = resolved(settings)["volumes"].keys(), set()
    for service in services.values():
        for volume in service.get("volumes", []):
            source, target = volume.split(":")[:2]
            assert Path(target).is_absolute()
            if source.startswith("."):
                assert (FILE.parent / source).exists(), source
            else:
                used.add(source)
    assert declared == used
