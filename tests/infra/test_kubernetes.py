"""infra/kubernetes against the schemas of Kubernetes, and against what is promised of every pod."""

import re
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import typer
import yaml
from typer.core import TyperGroup

from tests.support.compose import resolved, variables

ROOT = Path(__file__).parents[2]
MANIFESTS = sorted((ROOT / "infra" / "kubernetes").glob("*.yaml"))
DOCUMENTS = [one for path in MANIFESTS for one in yaml.safe_load_all(path.read_text())]
DEPLOYMENTS = {one["metadata"]["name"]: one for one in DOCUMENTS if one["kind"] == "Deployment"}
SERVICES = {one["metadata"]["name"]: one for one in DOCUMENTS if one["kind"] == "Service"}
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|KEY|DATABASE|BACKEND")


def pod(name: str) -> dict:
    return DEPLOYMENTS[name]["spec"]["template"]["spec"]


def container(name: str) -> dict:
    (only,) = pod(name)["containers"]
    return only


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda one: f"{one['kind']} {one['metadata']['name']}")
def test_kubernetes_accepts_it(document):
    kubernetes_validate.validate(document, "1.33", strict=True)


def test_each_server_has_its_pods_and_no_secret_is_inside():
    assert DEPLOYMENTS.keys() == {"mlflow", "prefect", "worker", "release", "serving"}
    assert {one["kind"] for one in DOCUMENTS} == {
        "ConfigMap", "Deployment", "NetworkPolicy", "PersistentVolumeClaim", "Service"
    }  # fmt: skip
    for name in DEPLOYMENTS:
        for variable in container(name)["env"]:
            if SECRET.search(variable["name"]):
                assert variable["valueFrom"]["secretKeyRef"]["name"] == "mmrl-secrets", variable


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_pods_are_unprivileged_write_to_their_volumes_alone_and_are_watched(name):
    spec, one = pod(name), container(name)
    outside, inside = spec["securityContext"], one["securityContext"]
    assert outside["runAsNonRoot"] and outside["runAsUser"] and outside["seccompProfile"] == {"type": "RuntimeDefault"}
    assert inside == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                      "capabilities": {"drop": ["ALL"]}}  # fmt: skip
    assert spec["automountServiceAccountToken"] is spec["enableServiceLinks"] is False
    assert {"/home/mmrl", "/tmp"} <= {mount["mountPath"] for mount in one["volumeMounts"]}
    assert {mount["name"] for mount in one["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
    assert one["resources"].keys() == {"requests", "limits"}
    assert all(limits.keys() == {"cpu", "memory"} for limits in one["resources"].values())
    if name != "release":
        assert {"startupProbe", "livenessProbe", "readinessProbe"} <= one.keys()


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_selectors_find_their_pods_and_settings_exist(name):
    spec = DEPLOYMENTS[name]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()
    (settings,) = [one["data"] for one in DOCUMENTS if one["kind"] == "ConfigMap"]
    given = {variable["name"] for variable in container(name)["env"]}
    for variable in container(name)["env"]:
        reference = variable.get("valueFrom", {}).get("configMapKeyRef")
        assert not reference or reference == {"name": "mmrl-settings", "key": reference["key"]}
        assert not reference or reference["key"] in settings
    assert set(re.findall(r"\$\((\w+)\)", " ".join(container(name)["args"]))) <= given


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_of_the_cluster_alone_and_lead_to_a_port_of_their_pods(name):
    spec = SERVICES[name]["spec"]
    assert spec["type"] == "ClusterIP"
    assert spec["selector"].items() <= DEPLOYMENTS[name]["spec"]["template"]["metadata"]["labels"].items()
    (port,), (listens,) = spec["ports"], container(name)["ports"]
    assert (port["targetPort"], port["port"]) == (listens["name"], listens["containerPort"])
    assert str(listens["containerPort"]) in " ".join(container(name)["args"])


def test_pods_run_what_compose_runs_in_the_same_image():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    services = resolved(dict.fromkeys(variables(), "$(MMRL_MODEL)"))["services"]
    for name in DEPLOYMENTS:
        assert container(name)["image"] == services[name]["image"] == f"mmrl-ops:{version}"
        command = services[name]["command"]
        assert " ".join(container(name)["args"]) in " ".join(command), name


@pytest.mark.parametrize("name", ["release", "serving"])
def test_mmrl_knows_the_commands_and_options(name):
    from flows.cli.app import app

    words = [re.sub(r"\$\(\w+\)", "x", word) for word in container(name)["args"]][1:]
    command, context = typer.main.get_command(app), None
    while isinstance(command, TyperGroup):
        context = command.make_context("mmrl", list(words), parent=context)
        _, command, words = command.resolve_command(context, words)
    command.make_context(command.name, words, parent=context)  # raises for what it does not know
