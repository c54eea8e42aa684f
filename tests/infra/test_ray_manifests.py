"""Manifests against schemas: Ray's own for its cluster launcher, Kubernetes' for pods, KubeRay's documented fields."""

from pathlib import Path

import kubernetes_validate
import pytest
import yaml

RAY = Path(__file__).parents[2] / "infra" / "ray"
# The fields of KubeRay 1.6's API reference that are in use here; anything else is a mistake.
CLUSTER = {"rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec",
           "workerGroupSpecs"}  # fmt: skip
JOB = {"entrypoint", "submissionMode", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit",
       "submitterPodTemplate", "rayClusterSpec"}  # fmt: skip
HEAD, WORKERS = {"rayStartParams", "template"}, {"groupName", "replicas", "minReplicas", "maxReplicas"}


def test_rays_launcher_accepts_its_file():
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(yaml.safe_load((RAY / "cluster.yaml").read_text())))


def clusters() -> dict[str, dict]:
    standing = yaml.safe_load((RAY / "raycluster.yaml").read_text())
    job = yaml.safe_load((RAY / "rayjob.yaml").read_text())
    assert (
        (standing["apiVersion"], standing["kind"]) == (job["apiVersion"], "RayCluster") == ("ray.io/v1", "RayCluster")
    )
    assert job["kind"] == "RayJob" and job["spec"].keys() <= JOB
    return {"standing": standing["spec"], "job": job["spec"]["rayClusterSpec"]}


@pytest.mark.parametrize("name", ["standing", "job"])
def test_pods_are_what_kubernetes_accepts_and_the_rest_what_kuberay_knows(name):
    spec = clusters()[name]
    assert spec.keys() <= CLUSTER and spec["authOptions"] == {"mode": "token"}
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    assert groups[0].keys() == HEAD and all(group.keys() == HEAD | WORKERS for group in groups[1:])
    for group in groups:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        kubernetes_validate.validate(pod(group["template"]), "1.33", strict=True)


def pod(template: dict) -> dict:
    return {"apiVersion": "v1", "kind": "Pod", **template, "metadata": {"name": "x", **template["metadata"]}}


def templates() -> dict[str, dict]:
    """Of each kind of pod that KubeRay starts from these files."""
    found = {"submitter": yaml.safe_load((RAY / "rayjob.yaml").read_text())["spec"]["submitterPodTemplate"]}
    for name, spec in clusters().items():
        found[f"{name} head"] = spec["headGroupSpec"]["template"]
        found |= {f"{name} {group['groupName']}": group["template"] for group in spec["workerGroupSpecs"]}
    return found


def test_the_job_is_handed_over_by_a_pod_that_kubernetes_accepts():
    kubernetes_validate.validate(pod(templates()["submitter"]), "1.33", strict=True)


@pytest.mark.parametrize("name", ["submitter", "standing head", "standing gpu", "job head", "job gpu"])
def test_pods_are_unprivileged_and_know_kubernetes_where_they_ask_it_for_pods(name):
    template = templates()[name]
    spec, (only,) = template["spec"], template["spec"]["containers"]
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert only["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert spec.get("automountServiceAccountToken", True) is (name == "standing head")
    assert template["metadata"]["labels"]["app.kubernetes.io/component"] == "ray"  # by which the network knows them
    assert all("ephemeral-storage" in limits for limits in only["resources"].values())


def test_the_autoscaler_is_unprivileged():
    options = clusters()["standing"]["autoscalerOptions"]
    assert options["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


@pytest.mark.parametrize("name", ["standing", "job"])
def test_the_cluster_runs_the_locked_version_of_ray(name):
    from importlib.metadata import version

    assert clusters()[name]["rayVersion"] == version("ray")
