"""Ray: join the cluster that params.yaml names, or start one for this process."""

import contextlib
import logging
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator

from mmrl_core.config import ClusterSection
from mmrl_core.errors import UserError

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # it would pass a broken-off search for a finished one
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new reporter prints to stdout even when told to be silent


MARK = "MMRL_RAY_CLUSTER"  # environment variable by which the processes of a local cluster are told


@contextlib.contextmanager
def connected(cluster: ClusterSection) -> Iterator[None]:
    """Connect to `cluster.address` for the block. Raises UserError when no cluster answers there.

    A local cluster ends with the block, or with this process however it ends.
    """
    import ray

    local = {"include_dashboard": False} if cluster.address == "local" else {}
    logging.getLogger("ray").setLevel(logging.ERROR)
    with _reaped() if local else contextlib.nullcontext():
        try:
            ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR, **local)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"cluster.address {cluster.address!r}: no Ray cluster answers ({reason})") from error
        try:
            _check_gpus(cluster)
            yield
        finally:
            ray.shutdown()


def _check_gpus(cluster: ClusterSection) -> None:
    """Ray would wait for ever for what no node has."""
    import ray

    found = ray.cluster_resources().get("GPU", 0)
    if cluster.gpus_per_worker > found:
        raise UserError(f"cluster.gpus_per_worker is {cluster.gpus_per_worker:g}, but the cluster has {found:g} GPUs")


@contextlib.contextmanager
def _reaped() -> Iterator[None]:
    """Mark the processes started in the block, and see to it that none outlives this one."""
    mark = uuid.uuid4().hex
    read, write = os.pipe()
    command = [sys.executable, "-m", "flows.reaper", str(read), MARK, mark]
    reaper = subprocess.Popen(command, pass_fds=[read], start_new_session=True)
    os.close(read)
    os.environ[MARK] = mark
    try:
        yield
    finally:
        del os.environ[MARK]
        os.write(write, b".")
        os.close(write)
        reaper.wait()
