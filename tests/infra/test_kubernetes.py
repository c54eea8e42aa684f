"""infra/kubernetes against the schemas of Kubernetes, and against what is promised of every pod."""

import re
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import typer
import yaml
from typer.core import TyperGroup

from flows.settings.sections import ServingSection
from tests.support.compose import resolved, variables

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "infra" / "kubernetes"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
DOCUMENTS = [one for name in KUSTOMIZATION["resources"] for one in yaml.safe_load_all((FOLDER / name).read_text())]
DEPLOYMENTS = {one["metadata"]["name"]: one for one in DOCUMENTS if one["kind"] == "Deployment"}
SERVICES = {one["metadata"]["name"]: one for one in DOCUMENTS if one["kind"] == "Service"}
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|KEY|DATABASE")


def pod(name: str) -> dict:
    return DEPLOYMENTS[name]["spec"]["template"]["spec"]


def container(name: str) -> dict:
    (only,) = pod(name)["containers"]
    return only


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda one: f"{one['kind']} {one['metadata']['name']}")
def test_kubernetes_accepts_it(document):
    kubernetes_validate.validate(document, "1.33", strict=True)


def containers(name: str) -> list[dict]:
    return [*pod(name).get("initContainers", []), container(name)]


def test_each_server_has_its_pods_and_no_secret_is_inside():
    assert DEPLOYMENTS.keys() == {"mlflow", "prefect", "worker", "release", "serving"}
    assert {one["kind"] for one in DOCUMENTS} == {
        "ConfigMap", "Deployment", "NetworkPolicy", "PersistentVolumeClaim", "PodDisruptionBudget", "Service"
    }  # fmt: skip
    for name in DEPLOYMENTS:
        for variable in (one for each in containers(name) for one in each["env"]):
            if SECRET.search(variable["name"]):
                assert variable["valueFrom"]["secretKeyRef"]["name"] == "mmrl-secrets", variable


def test_what_is_applied_is_all_there_is_and_names_its_image_by_a_digest():
    assert sorted(KUSTOMIZATION["resources"]) == sorted(
        path.name for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml"
    )
    (image,) = KUSTOMIZATION["images"]
    assert image["name"] == "mmrl-ops" and image["digest"].startswith("sha256:") and "newTag" not in image


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_pods_are_unprivileged_write_to_their_volumes_alone_and_are_watched(name):
    spec, outside = pod(name), pod(name)["securityContext"]
    assert outside["runAsNonRoot"] and outside["runAsUser"] and outside["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is spec["enableServiceLinks"] is False
    for one in containers(name):
        assert one["securityContext"] == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                                          "capabilities": {"drop": ["ALL"]}}  # fmt: skip
        assert {"/home/mmrl", "/tmp"} <= {mount["mountPath"] for mount in one["volumeMounts"]}
        assert one["resources"].keys() == {"requests", "limits"}
        assert all(limits.keys() == {"cpu", "memory", "ephemeral-storage"} for limits in one["resources"].values())
    assert {mount["name"] for mount in one["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
    if name != "release":
        assert {"startupProbe", "livenessProbe", "readinessProbe"} <= one.keys()


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_folders_have_a_size_that_fits_into_what_the_pod_may_keep(name):
    volumes = [volume["emptyDir"] for volume in pod(name)["volumes"] if "emptyDir" in volume]
    sizes = [int(one["sizeLimit"].removesuffix("Gi")) for one in volumes if one.get("medium") != "Memory"]
    assert all("sizeLimit" in one for one in volumes)
    assert sum(sizes) < int(container(name)["resources"]["limits"]["ephemeral-storage"].removesuffix("Gi"))


def test_predictions_end_after_their_last_answer_and_never_all_at_once():
    spec, longest = pod("serving"), ServingSection().request_seconds
    pause = container("serving")["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pause >= container("serving")["readinessProbe"]["periodSeconds"]
    assert spec["terminationGracePeriodSeconds"] > pause + longest
    (budget,) = [one["spec"] for one in DOCUMENTS if one["kind"] == "PodDisruptionBudget"]
    assert budget["selector"] == DEPLOYMENTS["serving"]["spec"]["selector"]
    assert budget["minAvailable"] < DEPLOYMENTS["serving"]["spec"]["replicas"]


def test_predictions_have_the_account_that_reads():
    accounts = {name: {one["name"]: one for one in container(name)["env"]} for name in ("serving", "worker", "release")}
    assert {name: env["MLFLOW_TRACKING_USERNAME"]["value"] for name, env in accounts.items()} == {
        "serving": "serving", "worker": "mmrl", "release": "mmrl"
    }  # fmt: skip
    assert (
        accounts["serving"]["MLFLOW_TRACKING_PASSWORD"]["valueFrom"]["secretKeyRef"]["key"] == "mlflow-reader-password"
    )


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_selectors_find_their_pods_and_settings_exist(name):
    spec = DEPLOYMENTS[name]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()
    (settings,) = [one["data"] for one in DOCUMENTS if one["kind"] == "ConfigMap"]
    given = {variable["name"] for each in containers(name) for variable in each["env"]}
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
        for one in containers(name):
            assert " ".join(one["args"]) in " ".join(services[name]["command"]), name


@pytest.mark.parametrize("name", ["release", "serving"])
def test_mmrl_knows_the_commands_and_options(name):
    from flows.cli.app import app

    words = [re.sub(r"\$\(\w+\)", "x", word) for word in container(name)["args"]][1:]
    command, context = typer.main.get_command(app), None
    while isinstance(command, TyperGroup):
        context = command.make_context("mmrl", list(words), parent=context)
        _, command, words = command.resolve_command(context, words)
    command.make_context(command.name, words, parent=context)  # raises for what it does not know
