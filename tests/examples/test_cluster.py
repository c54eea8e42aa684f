"""The Slurm script for real: two Ray nodes on this machine, and stand-ins for the two programs that Slurm has."""

import json
import shlex
import subprocess
import uuid
from pathlib import Path

import pytest

from tests.support.processes import TOKEN, end_all, processes_with
from tests.support.workspace import ROOT, environment, make_workspace, prepare_digits

SCRIPT = ROOT / "examples/cluster/adapt.sbatch"
RUN = ["--dataset", "digits", "--method", "mmrlpp", "--shots", "2", "--seed", "1"]
STAND_INS = {
    "scontrol": """[ "$1 $2" = "show hostnames" ] && tr , '\\n' <<< "$3" """,
    # Starts the command once for every node, all here, and ends them when it is ended.
    "srun": """nodes=
while [[ $1 = --* ]]; do
  [[ $1 = --nodelist=* ]] && nodes=${1#*=}
  shift
done
trap 'jobs -p | xargs -r kill; wait' EXIT TERM
for node in ${nodes//,/ }; do "$@" & done
wait
""",
}


@pytest.fixture
def slurm(tmp_path):
    """The environment of a job with two nodes of a core each. Whatever it starts ends with the test."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, script in STAND_INS.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{script}")
        (programs / name).chmod(0o755)
    token, inherited = uuid.uuid4().hex, environment()
    yield inherited | {
        "PATH": f"{programs}:{inherited['PATH']}", TOKEN: token, "SLURM_JOB_ID": str(uuid.uuid4().int % 1_000_000),
        "SLURM_CPUS_PER_TASK": "1", "SLURM_JOB_NODELIST": "one,two",
    }  # fmt: skip
    end_all(token)


def sbatch(project: Path, job: dict[str, str], command: str) -> subprocess.CompletedProcess:
    arguments = ["bash", str(SCRIPT), "bash", "-c", command]
    return subprocess.run(arguments, cwd=project, env=job, text=True, capture_output=True, timeout=300)


def test_the_script_is_one_that_bash_can_read():
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)


@pytest.mark.slow
@pytest.mark.endurance  # tests/slow/test_two_nodes_training.py trains on two real nodes
def test_a_job_trains_on_all_its_nodes_ends_the_cluster_and_gives_the_commands_exit_code(slurm, tmp_path):
    cluster = {"address": "auto", "workers": 2, "storage": str(tmp_path / "shared")}
    project = make_workspace(tmp_path / "project", methods=["mmrlpp"], shots=[2], seeds=[1], train={"epochs": 2},
                             search={"enabled": False}, cluster=cluster)  # fmt: skip
    prepare_digits(project, shlex.join(["tune", *RUN[:4]]))
    done = sbatch(project, slurm, shlex.join(["mmrl", "train", *RUN, "--out", "here"]) + "; [ $? = 0 ] && exit 7")
    said = done.stdout + done.stderr
    assert done.returncode == 7, said
    assert "2 nodes have joined" in said
    assert json.loads((project / "here/adapter.json").read_text())["class_names"]
    assert processes_with(slurm[TOKEN]) == []
    assert "RAY_AUTH_TOKEN" not in said
