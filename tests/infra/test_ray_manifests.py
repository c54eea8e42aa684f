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
       "rayClusterSpec"}  # fmt: skip
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
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **group["template"]}
        kubernetes_validate.validate(pod, "1.33", strict=True)


@pytest.mark.parametrize("name", ["standing", "job"])
def test_the_cluster_runs_the_locked_version_of_ray(name):
    from importlib.metadata import version

    assert clusters()[name]["rayVersion"] == version("ray")
