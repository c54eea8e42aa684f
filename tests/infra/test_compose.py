"""infra/compose.yaml, as far as no engine is needed; `make policy` holds it against the Compose Specification."""

import os
import re
import subprocess
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from flows.settings.sections import ServingSection
from tests.support.compose import FILE, resolved, variables

ROOT = FILE.parents[1]
OWN = "mmrl-ops"
UNCHECKED = {"release"}  # it listens on no port, and ends when it fails
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|KEY")


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return {name: f"value0of0{name}" for name, kinds in variables().items() if "?" in kinds}


@pytest.fixture(scope="module")
def services(settings) -> dict[str, dict]:
    return resolved(settings)["services"]


def test_commands_and_variables_are_words(services):
    for name, service in services.items():
        strings = [*service.get("command", []), *service.get("environment", {}).values()]
        assert all(isinstance(one, str) for one in strings), f"{name}: quote what YAML reads as a number"


def test_services_start_after_what_they_need_is_healthy(services):
    needs = {name: service.get("depends_on", {}) for name, service in services.items()}
    list(TopologicalSorter(needs).static_order())  # raises for a cycle
    for name, needed in needs.items():
        for other, how in needed.items():
            assert how["condition"] == "service_healthy" and "healthcheck" in services[other], (name, other)
        addressed = addresses(services[name])
        assert addressed <= needed.keys(), name
        for other in addressed:
            assert set(services[name]["networks"]) & set(services[other]["networks"]), (name, other)


def addresses(service: dict) -> set[str]:
    """The services that its variables name."""
    variables = service.get("environment", {})
    return set(re.findall(r"//(?:\S+@)?([a-z]\w*):\d", str(variables))) | set(variables.get("PGHOST", "").split())


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
        image, _, digest = service["image"].partition("@")
        name, _, tag = image.rpartition(":")
        assert name and re.match(r"\d+\.\d+", tag), image
        assert ("build" in service) == (name == OWN) == (not digest)
        assert not digest or re.fullmatch(r"value0of0[A-Z]+_DIGEST", digest), image
        if name == OWN:
            assert tag == version
            assert (FILE.parent / service["build"]["context"] / service["build"]["dockerfile"]).exists()
            assert service["build"]["args"]["PYTHON_DIGEST"] == "value0of0PYTHON_DIGEST"


def test_the_digests_that_are_asked_for_are_printed(tmp_path):
    """By the lines of infra/digests.sh; what a registry says is what `docker`, standing for it here, prints."""
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\n[ "$1 $2 $3" = "buildx imagetools inspect" ] && echo "digest-of-$6"\n')
    docker.chmod(0o755)
    command, path = ["sh", str(FILE.parent / "digests.sh")], f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(command, env={"PATH": path}, capture_output=True, text=True, check=True)
    printed = dict(line.split("=") for line in done.stdout.splitlines())
    assert printed.keys() == {name for name in variables() if name.endswith("_DIGEST")}
    assert all(re.fullmatch(r"digest-of-[a-z/]+:\d+\.\d+\S*", value) for value in printed.values()), printed
    docker.write_text("#!/bin/sh\nexit 1\n")
    assert subprocess.run(command, env={"PATH": path}).returncode != 0


def test_services_may_do_no_more_than_they_need(services):
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"] and "no-new-privileges:true" in service["security_opt"], name
        assert service["mem_limit"] and 0 < service["pids_limit"] <= 10000, name
    assert {name for name, one in services.items() if one.get("cap_add")} == {"s3"}
    assert {name for name, one in services.items() if one.get("read_only")} == {
        "postgres",
        "mlflow",
        "prefect",
        "serving",
    }


def test_predictions_are_given_the_time_for_their_last_answers(services):
    assert int(services["serving"]["stop_grace_period"].removesuffix("s")) > ServingSection().request_seconds


def test_networks_keep_apart_what_needs_nothing_of_each_other(services, settings):
    members: dict[str, set[str]] = {}
    for name, service in services.items():
        for network in service["networks"]:
            members.setdefault(network, set()).add(name)
    declared = resolved(settings)["networks"]
    assert members == {
        "database": {"postgres", "mlflow", "prefect"}, "store": {"s3", "mlflow"}, "registry": {"mlflow", "serving"},
        "flows": {"mlflow", "prefect", "worker", "release"}, "ray": {"ray", "worker"}, "predictions": {"serving"}
    }  # fmt: skip
    assert {name for name, one in declared.items() if one.get("internal")} == {"database", "store", "registry"}
    for name, service in services.items():  # an internal network has no way to a port of this machine
        assert not service.get("ports") or any(not declared[one].get("internal") for one in service["networks"]), name


def test_what_runs_in_the_checkout_does_not_see_the_file_of_secrets(services):
    for name, service in services.items():
        assert "env_file" not in service, name
        folders = [volume.split(":")[1] for volume in service.get("volumes", []) if volume.startswith("..:")]
        hidden = [f"/dev/null:{folder}/infra/.env:ro" for folder in folders]
        assert set(hidden) <= set(service.get("volumes", [])), name
    secrets = {
        name: {key for key in one.get("environment", {}) if SECRET.search(key)} for name, one in services.items()
    }
    assert secrets["serving"] == {"MLFLOW_TRACKING_PASSWORD", "MMRL_API_KEY"}
    assert secrets["release"] == {"MLFLOW_TRACKING_PASSWORD"} and secrets["ray"] == {"RAY_AUTH_TOKEN"}


def test_predictions_have_the_account_that_reads(services):
    accounts = {name: one["environment"].get("MLFLOW_TRACKING_USERNAME") for name, one in services.items()}
    assert accounts["serving"] == "serving" and accounts["worker"] == accounts["release"] == "mmrl"
    passwords = {name: services[name]["environment"]["MLFLOW_TRACKING_PASSWORD"] for name in ("serving", "worker")}
    made = services["mlflow"]["environment"]
    assert passwords["serving"] == made["MMRL_MLFLOW_READER_PASSWORD"] != made["MMRL_MLFLOW_PASSWORD"]
    assert passwords["worker"] == made["MMRL_MLFLOW_PASSWORD"]


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
            if source == "/dev/null":
                continue
            if source.startswith("."):
                assert (FILE.parent / source).exists(), source
            else:
                used.add(source)
    assert declared == used
