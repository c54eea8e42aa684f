"""Ray: join the cluster that params.yaml names, or start one for this process."""

import contextlib
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from flows.settings.sections import ClusterSection
from mmrl_core.errors import UserError

if TYPE_CHECKING:
    from ray.actor import ActorClass

THREAD_TIMEOUT = "TUNE_FUNCTION_THREAD_TIMEOUT_S"
ARENAS = "MALLOC_ARENA_MAX"  # glibc's

# Environment variables for Ray, where the environment does not say otherwise. They must be set before Ray is imported,
# which is when it reads some of them, and before a local cluster starts, whose processes inherit them.
VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # until an end or a death is seen
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",  # then an elastic training starts with fewer
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    THREAD_TIMEOUT: "60",  # Tune's 2 s for a trial to end are too few on a busy machine
    ARENAS: "1",  # a thread a trial: with arenas of their own each would keep what it has freed
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # it would pass a broken-off search for a finished one
    "RAY_worker_niceness": "0",  # of a cluster of our own: Ray would run workers at 15
    "RAY_prestart_worker_first_driver": "0",  # of ours too: each would import for nothing
    "RAY_AIR_NEW_OUTPUT": "0",  # the new reporter prints to stdout even when told to be silent
}
FOLDER = "MMRL_RAY_FOLDER"  # environment variable that tells the processes of a local cluster from others


class Needs(NamedTuple):
    """What one task takes, and how many tasks must run at a time."""

    cpus: float
    gpus: float = 0
    tasks: int = 1


@contextlib.contextmanager
def connected(cluster: ClusterSection, needs: Needs) -> Iterator[None]:
    """Connect to `cluster.address` for the block, whose tasks have these needs.

    A local cluster ends with the block, or with this process however it ends. To any other one the package's own code
    travels along; what it imports must be installed there. Raises UserError when no cluster answers, and when a local
    one cannot have what is needed; any other one may grow. Sets VARIABLES, for the rest of this process.
    """
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    _check_address(cluster.address)
    with _local_folder() if cluster.address == "local" else contextlib.nullcontext() as folder:
        options = {"include_dashboard": False, "_temp_dir": folder} if folder else {"runtime_env": _runtime_env()}
        try:
            ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR, **options)
        except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"cluster.address {cluster.address!r}: no Ray cluster answers ({reason})") from error
        with contextlib.redirect_stdout(sys.stderr):  # Ray tells of dying nodes on stdout, which belongs to --json
            try:
                _check_room(needs, may_grow=folder is None)
                yield
            finally:
                ray.shutdown()


def _check_address(address: str) -> None:
    """Raises UserError when nothing listens at HOST:PORT; Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon:
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, OverflowError, ValueError) as error:  # the latter two: a port that is none
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cluster.address {address!r}: no Ray cluster answers ({reason}); start it or correct it"
        ) from None


def _check_room(needs: Needs, may_grow: bool) -> None:
    """Raises UserError where no node has room, or says that the cluster has to grow: Ray itself would wait silently."""
    if (places := room(needs)) >= needs.tasks:
        return
    wanted = f"{needs.tasks} task{'s' * (needs.tasks > 1)} with {needs.cpus:g} CPUs and {needs.gpus:g} GPUs each"
    if not may_grow:
        raise UserError(f"the section cluster asks for {wanted}, but this machine has room for {places}; ask for less")
    print(f"the cluster has no room for {wanted} at present: waiting for it to grow", file=sys.stderr)


def room(needs: Needs) -> int:
    """How many tasks of those needs the cluster's nodes hold, were they idle."""
    import ray

    return sum(_tasks_on(node["Resources"], needs) for node in ray.nodes() if node["Alive"])


def _tasks_on(node: dict[str, float], needs: Needs) -> int:
    """How many tasks of those needs a node holds."""
    wants = {"CPU": needs.cpus, "GPU": needs.gpus}
    return int(
        min((node.get(name, 0) / amount + 1e-9 for name, amount in wants.items() if amount), default=needs.tasks)
    )


def on_this_node(actor: type) -> "ActorClass":
    """A class as a Ray actor on the driver's node; it takes no core, and Ray restarts its process when that dies."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)(actor)


def _runtime_env() -> dict[str, Any]:
    """What a worker on another node lacks: this project's packages, and variables about its threads and memory."""
    import flows
    import mmrl_core

    packages = [package.__path__[0] for package in (flows, mmrl_core)]
    variables = {"OMP_WAIT_POLICY": "PASSIVE", **{name: os.environ[name] for name in (THREAD_TIMEOUT, ARENAS)}}
    return {"py_modules": packages, "env_vars": variables, "excludes": ["__pycache__"]}


@contextlib.contextmanager
def _local_folder() -> Iterator[str]:
    """A folder for a cluster's logs and sockets; neither it nor a process that uses it outlives this process."""
    folder = tempfile.mkdtemp(prefix="mmrl-ray-", dir="/tmp")  # sockets need a short path
    read, write = os.pipe()
    command = [sys.executable, "-m", "flows.processes.reaper", str(read), folder]
    reaper = subprocess.Popen(command, pass_fds=[read], start_new_session=True)
    os.close(read)
    os.environ[FOLDER] = folder
    try:
        yield folder
    finally:
        del os.environ[FOLDER]
        os.write(write, b".")
        os.close(write)
        reaper.wait()
