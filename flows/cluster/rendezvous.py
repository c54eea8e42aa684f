"""How Ray Train's workers find each other: over the network interface that carries the node's Ray address.

Left to itself gloo asks what the host name resolves to, which on many machines is loopback.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

if TYPE_CHECKING:
    from ray.train._internal.base_worker_group import BaseWorkerGroup


def use_interface_of_ray() -> None:
    """Called in a worker before its process group is made; what the environment already says stays."""
    import psutil
    import ray

    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if address in [entry.address for entry in addresses]:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


class RayNetworkBackend(_TorchBackend):
    def on_start(self, worker_group: "BaseWorkerGroup", backend_config: TorchConfig) -> None:
        worker_group.execute(use_interface_of_ray)
        super().on_start(worker_group, backend_config)


@dataclass
class RayNetworkConfig(TorchConfig):
    """torch.distributed with nccl for GPUs, else gloo, over the interface that carries the node's Ray address."""

    @property
    def backend_cls(self) -> type[RayNetworkBackend]:
        return RayNetworkBackend
