"""How Ray Train's workers find each other: over the network interface that carries the node's Ray address.

Left to itself gloo asks what the host name resolves to, which on many machines is loopback.
"""

import os
from dataclasses import dataclass

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend


def use_interface_of_ray() -> None:
    """In a worker, before its process group is made; what the environment already says stays."""
    import psutil
    import ray

    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


class Backend(_TorchBackend):
    def on_start(self, worker_group, backend_config) -> None:
        worker_group.execute(use_interface_of_ray)
        super().on_start(worker_group, backend_config)


@dataclass
class OverRaysNetwork(TorchConfig):
    """TorchConfig: nccl for GPUs, else gloo."""

    @property
    def backend_cls(self):
        return Backend
