"""Checks compose.yaml, the image and the manifests by tools that others keep; exit status 1 and what is wrong if any.

compose-spec reads Compose files by the specification, hadolint Dockerfiles, checkov has rules for pods and images. Run
by `make policy`, in the environment of locks/policy.lock. Asks no network.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml
from compose_spec import PyCompose

INFRA = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
DOCKERFILE = INFRA / "docker" / "Dockerfile"
# What Ray's pods need not: reasons.
RAY = {
    "CKV_K8S_8": "KubeRay adds the probes",
    "CKV_K8S_9": "KubeRay adds the probes",
    "CKV_K8S_22": "Ray writes its sessions, and what it unpacks of a job, below /tmp",
}
TOKEN = {"CKV_K8S_38": "the autoscaler beside the head asks Kubernetes for pods"}


def compose() -> str:
    """What is wrong with compose.yaml, or nothing."""
    filled = re.sub(r"\$\{MMRL_UID[^}]*\}", "1000", (INFRA / "compose.yaml").read_text())
    filled = re.sub(r"@\$\{\w+_DIGEST[^}]*\}", "", filled)  # compose-spec takes a tag or a digest
    read = yaml.safe_load(re.sub(r"\$\{\w+[^}]*\}", "x", filled))
    known = {name: value for name, value in read.items() if not name.startswith("x-")}
    try:
        PyCompose.from_yaml(yaml.safe_dump(known)).validate()
    except ValueError as error:
        return f"infra/compose.yaml: {error}"
    return ""


def templates() -> dict[str, dict]:
    """The pods that KubeRay starts from infra/ray."""
    job = yaml.safe_load((INFRA / "ray" / "rayjob.yaml").read_text())["spec"]
    standing = yaml.safe_load((INFRA / "ray" / "raycluster.yaml").read_text())["spec"]
    found = {"job-submitter": job["submitterPodTemplate"]}
    for name, spec in (("job", job["rayClusterSpec"]), ("cluster", standing)):
        found[f"{name}-head"] = spec["headGroupSpec"]["template"]
        found |= {f"{name}-{group['groupName']}": group["template"] for group in spec["workerGroupSpecs"]}
    return found


def pod(name: str, template: dict) -> dict:
    skipped = RAY | (TOKEN if name == "cluster-head" else {})
    reasons = {f"checkov.io/skip{number}": f"{rule}={why}" for number, (rule, why) in enumerate(skipped.items(), 1)}
    metadata = {"name": name, **template.get("metadata", {}), "annotations": reasons}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def main() -> int:
    told = compose()
    print(told or "infra/compose.yaml: as the Compose Specification has it")
    failed = bool(told) | bool(subprocess.run([BIN / "hadolint", "--no-color", DOCKERFILE]).returncode)
    with TemporaryDirectory() as folder:
        shutil.copytree(
            INFRA / "kubernetes", Path(folder, "kubernetes"), ignore=shutil.ignore_patterns("kustomization*")
        )
        shutil.copy(DOCKERFILE, folder)
        pods = [pod(name, template) for name, template in templates().items()]
        Path(folder, "ray.yaml").write_text(yaml.safe_dump_all(pods))
        checkov = [sys.executable, "-m", "checkov.main", "--directory", folder, "--config-file"]
        failed |= bool(subprocess.run([*checkov, INFRA / "policy" / "checkov.yaml"], cwd=folder).returncode)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
