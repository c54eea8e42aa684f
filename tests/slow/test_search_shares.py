"""The backbone's weights lie once in a node's memory, however many processes search there."""

import json
import subprocess
import sys

import pytest

from flows.cluster import Needs, connected
from mmrl_core.sections import ClusterSection
from tests.workspace import ROOT

pytestmark = pytest.mark.slow


def look(reference: list) -> tuple[int, bool, bool]:
    """Which process this is, whether its weights lie in Ray's shared memory, and whether its features are right."""
    import os

    import torch

    from flows.tuning.trial import share_weights
    from mmrl_core.backbone import load_backbone

    backbone, other = load_backbone("tiny"), load_backbone("tiny")
    share_weights(backbone, reference[0])
    place = backbone.image_blocks[0].mlp[0].weight.data_ptr()
    with open("/proc/self/maps") as file:
        lines = [line.split() for line in file]
    [around] = [line for line in lines if int(line[0].split("-")[0], 16) <= place < int(line[0].split("-")[1], 16)]
    images = torch.zeros(1, 3, backbone.image_size, backbone.image_size)
    same = torch.equal(backbone.encode_image(images), other.encode_image(images))
    return os.getpid(), any("plasma" in part or "/dev/shm" in part for part in around), same


def main(address: str) -> None:
    import ray

    from mmrl_core.backbone import load_backbone

    with connected(ClusterSection(address=address), Needs(1)):
        reference, task = ray.put(load_backbone("tiny").arrays()), ray.remote(num_cpus=1)(look)
        found = ray.get([task.remote([reference]) for _ in range(2)])
    print(json.dumps(found))


def test_two_workers_of_a_node_read_the_same_weights_from_shared_memory(ray_cluster):
    command = [sys.executable, "-m", "tests.slow.test_search_shares", ray_cluster.address]
    done = subprocess.run(command, cwd=ROOT, env=ray_cluster.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [one[1:] for one in json.loads(done.stdout)] == [[True, True]] * 2


if __name__ == "__main__":
    main(sys.argv[1])
