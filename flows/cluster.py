"""Ray: join the cluster that params.yaml names, or start one for this process."""

import contextlib
import logging
import os
from collections.abc import Iterator

from mmrl_core.config import ClusterSection
from mmrl_core.errors import UserError

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new reporter prints to stdout even when told to be silent


@contextlib.contextmanager
def connected(cluster: ClusterSection) -> Iterator[None]:
    """Connect to `cluster.address` for the block. Raises UserError when no cluster answers there."""
    import ray

    local = {"include_dashboard": False} if cluster.address == "local" else {}
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"cluster.address {cluster.address!r}: no Ray cluster answers ({reason}); use local") from error
    try:
        yield
    finally:
        ray.shutdown()
