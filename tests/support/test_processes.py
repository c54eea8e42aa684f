import os
import subprocess
import uuid

from tests.support.processes import TOKEN, end_all, processes_with, wait_until

STARTS_MORE = "i=0; while [ $i -lt 2000 ]; do sleep 60 & i=$((i+1)); done"


def test_ending_all_processes_ends_those_that_they_start_meanwhile():
    token = uuid.uuid4().hex
    first = subprocess.Popen(["sh", "-c", STARTS_MORE], env={**os.environ, TOKEN: token})
    wait_until(lambda: len(processes_with(token)) > 20, 20, lambda: "processes")
    end_all(token)
    assert not processes_with(token)
    first.wait()
