"""How much memory there is: a machine's, or what a control group leaves of it."""

import pytest
import torch

from mmrl_core.estimate.machine import _limits, multiplications, room_on

CPU = torch.device("cpu")


@pytest.fixture
def cgroups(tmp_path):
    """The folders of control groups as Linux shows them to a process in /jobs/one."""

    def make(lines: str, files: dict[str, str] = {}) -> list[int]:
        for name, content in files.items():
            file = tmp_path / "root" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        (tmp_path / "own").write_text(lines)
        return sorted(_limits(tmp_path / "root", tmp_path / "own"))

    return make


def test_the_limits_of_a_group_and_of_those_above_it_count(cgroups):
    files = {"jobs/one/memory.max": "4000\n", "jobs/memory.max": "max\n", "memory.max": "9000\n"}
    assert cgroups("0::/jobs/one\n", files) == [4000, 9000]


def test_the_first_version_of_control_groups_is_read_too(cgroups):
    assert cgroups("5:memory:/jobs\n", {"memory/jobs/memory.limit_in_bytes": "7000\n"}) == [7000]


def test_without_groups_there_is_no_limit(cgroups):
    assert cgroups("") == []


def test_a_cpu_has_the_memory_of_its_machine_at_most_and_more_than_this_process():
    room = room_on(CPU)
    assert room is not None and 2**29 < room.bytes < 2**50
    assert room_on(torch.device("meta")) is None


def test_a_machine_multiplies_at_a_rate_of_this_age():
    assert 1e8 < multiplications(CPU, "float32") < 1e15
