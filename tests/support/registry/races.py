"""Two machines that promote at once, and one that is killed with a lock; whichever store they share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.registry import promotion, versions
from flows.tracking.locks import exclusive
from flows.tracking.store import connect
from mmrl_core.errors import UserError
from tests.support.processes import PATIENCE
from tests.support.serving import NAME, register, settings
from tests.support.workspace import ROOT

RACE = """
import sys
from flows.registry import promotion
from tests.support.serving import settings
promotion.promote(settings(), "digits", int(sys.argv[1]), force="race")
"""
HOLD = """
import sys, time
from flows.tracking.locks import exclusive
with exclusive(sys.argv[1], "x"):
    print("held", flush=True)
    time.sleep(600)
"""


def race_then_kill_a_holder(store: str, tmp_path: Path) -> None:
    """Promotions race in a store without a model, and a true history is left; then the holder of the lock `x`, which
    nobody else got while it lived, is killed."""
    for seed in range(3):
        register(seed)
    promotion.promote(settings(), "digits", 1, force="test")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    folders = [tmp_path / name for name in ("one", "other")]  # two machines have no lock file in common
    for folder in folders:
        folder.mkdir()
    racing = [subprocess.Popen([sys.executable, "-c", RACE, version], cwd=folder, env=environment)
              for version, folder in zip("23", folders, strict=True)]  # fmt: skip
    assert [one.wait(PATIENCE) for one in racing] == [0, 0]
    told = promotion.history(settings(), "digits")
    assert [one.champion for one in told] == [None, *(one.version for one in told[:-1])]
    aliases = versions.versions_by_alias(connect(store), NAME)
    assert aliases == {"champion": told[-1].version, "previous": told[-2].version}

    holder = subprocess.Popen([sys.executable, "-c", HOLD, store], env=environment, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="another process has been changing the registry"), exclusive(store, "x", 1):
        pass
    holder.kill()
    holder.wait()
