"""One real Ray cluster a test process, for every test that is not about the death of a cluster of its own.

A test takes the fixture `ray_cluster` and gives its driver the cluster's `address` (`--set cluster.address=...`) and
`environment`. Workers inherit the cluster's environment, not the driver's, and see this machine's files.
"""

import contextlib
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from typing import NamedTuple

from tests.support.processes import TOKEN, end_all
from tests.support.workspace import environment

# A head node that says its address once it is up, and ends when its standard input closes: at the latest with pytest.
HEAD = """
import sys
import ray

ray.init(num_cpus=int(sys.argv[1]), num_gpus=int(sys.argv[2]), _temp_dir=sys.argv[3], include_dashboard=False,
         log_to_driver=False, logging_level="ERROR")
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


class RayCluster(NamedTuple):
    """`environment`: what a driver needs. `token`: of all the cluster's processes; see tests/support/processes.py."""

    address: str
    environment: dict[str, str]
    token: str


@contextlib.contextmanager
def started(cpus: int = 2, gpus: int = 0, **variables: str) -> Iterator[RayCluster]:
    """A cluster of one node, which asks its drivers for a token; its processes have these environment variables, too.

    It ends with the block. Ray takes one's word for the GPUs.
    """
    token, folder = uuid.uuid4().hex, tempfile.mkdtemp(prefix="mmrl-test-", dir="/tmp")  # sockets need a short path
    variables = {**environment(), **variables, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}
    command = [sys.executable, "-c", HEAD, str(cpus), str(gpus), folder]
    head = subprocess.Popen(command, cwd="/", env={**variables, TOKEN: token}, stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, text=True)  # fmt: skip
    try:
        address = head.stdout.readline().strip()
        assert address, "Ray did not start: see above"
        yield RayCluster(address, variables, token)
    finally:
        head.communicate()
        end_all(token)
        shutil.rmtree(folder, ignore_errors=True)
