"""A hundred thousand images of one's own go through fingerprint, check, pool and three seeds in bounded memory, each
read once to be known. Every command is a process of its own, as the pipeline starts it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.core.data.many import fill
from tests.support.workspace import environment, make_workspace

pytestmark = [pytest.mark.slow, pytest.mark.endurance]

IMAGES, CLASSES, SHOTS, SEEDS = 100_000, 100, 4, (1, 2, 3)
PEAK = 140 * 2**20  # bytes; half of what a build that kept every path, digest and future held
# What a process read, in bytes, and the most memory it held: from the kernel, not from what is tested. (ru_maxrss would
# have begun with what the process held that started it.)
COUNTED = """
import pathlib, sys
from flows.cli import main
def read():
    return int(pathlib.Path("/proc/self/io").read_text().split()[1])
def peak():
    return int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
before, sys.argv = read(), ["mmrl", *sys.argv[1:]]
try:
    main()
finally:
    print("USED", read() - before, peak(), file=sys.stderr)
"""
OVERHEAD = 36 * 2**20  # bytes read of modules and of what is known; all images are more than twice as many


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("very many") / "images", IMAGES, CLASSES)


@pytest.fixture(scope="module")
def project(tmp_path_factory, images):
    own = {"own": {"many": {"images": str(images)}}, "protocol": "few-shot"}
    return make_workspace(tmp_path_factory.mktemp("project"), datasets=["many"], shots=[SHOTS], data=own)


def used(project: Path, *command: str) -> tuple[int, int]:
    """Bytes that a command read, and its peak of memory."""
    done = subprocess.run([sys.executable, "-c", COUNTED, *command], cwd=project, env=environment(), check=True,
                          stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)  # fmt: skip
    _, read, peak = done.stderr.splitlines()[-1].split()
    return int(read), int(peak)


def test_very_many_images_are_read_once_and_memory_is_bounded(project, images):
    total = sum(entry.stat().st_size for folder in os.scandir(images) for entry in os.scandir(folder))
    walked, peak = used(project, "fingerprint", "--dataset", "many")
    assert walked < OVERHEAD and peak < PEAK
    checked, peak = used(project, "check", "--dataset", "many")
    assert total <= checked < total + OVERHEAD and peak < PEAK
    pooled, peak = used(project, "prepare", "--dataset", "many")
    shards = sum(path.stat().st_size for path in (project / "data/many/pool").glob("*.tar"))
    # Half of the images, the shards to hash them, and what is known, of which a part is looked up again.
    assert pooled < total // 2 + shards + 2 * OVERHEAD and peak < PEAK
    for seed in SEEDS:
        read, peak = used(project, "prepare", "--dataset", "many", "--shots", str(SHOTS), "--seed", str(seed))
        assert read < OVERHEAD + total * 4 * SHOTS * CLASSES // IMAGES and peak < PEAK
