"""Memory where a search runs: a node has the weights once, and a process one place for all that its threads free."""

import json
import subprocess
import sys
import threading

import pytest

from flows.cluster.connection import Needs, connected
from flows.settings.sections import ClusterSection
from tests.support.workspace import ROOT

pytestmark = pytest.mark.slow


def look(reference: list) -> tuple[int, bool, bool]:
    """Which process this is, whether its weights lie in Ray's shared memory, and whether its features are right."""
    import os

    import torch

    from flows.tuning.trainable import share_weights
    from mmrl_core.clip.backbone import load_backbone

    backbone, other = load_backbone("tiny"), load_backbone("tiny")
    share_weights(backbone, reference[0])
    place = backbone.image_blocks[0].mlp[0].weight.data_ptr()
    with open("/proc/self/maps") as file:
        lines = [line.split() for line in file]
    [around] = [line for line in lines if int(line[0].split("-")[0], 16) <= place < int(line[0].split("-")[1], 16)]
    images = torch.zeros(1, 3, backbone.image_size, backbone.image_size)
    same = torch.equal(backbone.encode_image(images), other.encode_image(images))
    return os.getpid(), any("plasma" in part or "/dev/shm" in part for part in around), same


def arenas() -> int:
    """In how many places glibc keeps what this process frees, once eight threads have taken memory side by side."""
    import ctypes
    from tempfile import NamedTemporaryFile

    libc, together = ctypes.CDLL(None), threading.Barrier(8)
    libc.fopen.restype = ctypes.c_void_p

    def take() -> None:
        kept = [bytearray(10_000) for _ in range(100)]
        together.wait()
        del kept

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with NamedTemporaryFile() as file:
        stream = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
        libc.malloc_info(0, stream)
        libc.fclose(stream)
        return file.read().count(b"<heap nr=")


def main(address: str) -> None:
    import ray

    from mmrl_core.clip.backbone import load_backbone

    with connected(ClusterSection(address=address), Needs(1)):
        reference, task = ray.put(load_backbone("tiny").arrays()), ray.remote(num_cpus=1)(look)
        found = ray.get([task.remote([reference]) for _ in range(2)])
        heaps = ray.get(ray.remote(num_cpus=1)(arenas).remote())
    print(json.dumps([found, heaps]))


def test_workers_of_a_node_share_the_weights_and_keep_freed_memory_in_one_place(ray_cluster):
    command = [sys.executable, "-m", "tests.slow.search.test_shares", ray_cluster.address]
    done = subprocess.run(command, cwd=ROOT, env=ray_cluster.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, heaps = json.loads(done.stdout)
    assert [one[1:] for one in found] == [[True, True]] * 2
    assert heaps == 1


if __name__ == "__main__":
    main(sys.argv[1])
