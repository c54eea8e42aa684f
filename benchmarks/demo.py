"""What a person waits for, of this build and of another commit: the whole demo, its searches, a search of a ViT-B/16.

    python -m benchmarks.demo --against COMMIT [--only demo,search,vit]

Each runs in a checkout of its own, in the environment of this one, one after the other, with the threads that it takes
where OMP_NUM_THREADS is not set. `demo`: `mmrl flow adapt` with params.yaml as it is, and its searches, side by side.
`search`: this build's `mmrl tune` against a bare loop in one process over the same rounds of the same steps. `vit`:
`mmrl tune` of 24 trials on a random ViT-B/16 whose features an earlier search has kept. Memory is the largest sum of
what all processes of a command hold alone or share in proportion (PSS), looked at twice a second.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import NamedTuple

from benchmarks.support.table import Column, Table
from tests.support.processes import TOKEN, end_all, processes_with
from tests.support.workspace import BIN, ROOT, environment

COLUMNS = [
    Column("what", "what", width=44),
    Column("then s", "then_seconds", ".1f"),
    Column("now s", "now_seconds", ".1f"),
    Column("then / now", "ratio", ".2f", 12),
    Column("then MB", "then_peak", ".0f", 9),
    Column("now MB", "now_peak", ".0f"),
]
ADAPT = [str(BIN / "mmrl"), "flow", "adapt"]
TUNE = [str(BIN / "mmrl"), "tune", "--dataset", "digits", "--method", "mmrlpp"]
ITEM = re.compile(r"^(tune@\S+)  ([0-9.]+) s$", re.M)
# Few steps and images of a large model: 24 trials of six partitions, as params.yaml has them.
VIT = {
    "shots": "[1]", "backbone.name": "ViT-B-16", "backbone.weights": "random", "train.epochs": "1",
    "train.warmup_epochs": "0", "search.trials": "24",
    "search.space": "{adapter.reg_weight: {loguniform: [0.1, 30]}, train.lr: {loguniform: [0.0001, 0.01]}}",
}  # fmt: skip


class Cost(NamedTuple):
    """Seconds, MB, and what the command said."""

    seconds: float
    peak: float
    said: str


class Checkout:
    """A commit's files in a folder, where its commands run."""

    def __init__(self, folder: Path, commit: str):
        self.folder = folder
        subprocess.run(["git", "clone", "-q", ROOT, folder], check=True)
        subprocess.run(["git", "checkout", "-q", commit], cwd=folder, check=True)

    def cost(self, command: list[str]) -> Cost:
        token = uuid.uuid4().hex
        variables = {**as_found(), "PYTHONPATH": str(self.folder), "PYTHONWARNINGS": "ignore", TOKEN: token}
        start = time.monotonic()
        child = subprocess.Popen(command, cwd=self.folder, env=variables, stdout=subprocess.DEVNULL,
                                 stderr=subprocess.PIPE, text=True)  # fmt: skip
        watch = Watch(token)
        try:
            _, said = child.communicate()
        finally:
            seconds, peak = time.monotonic() - start, watch.end()
            end_all(token)
        assert child.returncode == 0, f"{command} in {self.folder} ended with {child.returncode}: {said[-2000:]}"
        return Cost(seconds, peak, said)

    def set(self, settings: dict[str, str]) -> list[str]:
        """Options of a stage's command."""
        out = [f"{uuid.uuid4().hex}.json"]
        return [*(part for name, value in settings.items() for part in ("--set", f"{name}={value}")), "--out", *out]


class Watch(threading.Thread):
    """The most memory that the processes of a token held together, in MB."""

    def __init__(self, token: str):
        super().__init__(daemon=True)
        self.token, self.peak, self.over = token, 0.0, threading.Event()
        self.start()

    def run(self) -> None:
        while not self.over.wait(0.5):
            self.peak = max(self.peak, sum(map(held, processes_with(self.token))) / 1024)

    def end(self) -> float:
        self.over.set()
        self.join()
        return self.peak


def held(process: int) -> float:
    """A process's share of memory in kB; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return float(next(line for line in lines if line.startswith("Pss:")).split()[1])


def as_found() -> dict[str, str]:
    """The environment of a person who sets no number of threads."""
    return {name: value for name, value in environment().items() if not name.startswith("OMP_")}


def row(what: str, then: Cost, now: Cost) -> dict:
    return {"what": what, "then_seconds": then.seconds, "now_seconds": now.seconds, "ratio": then.seconds / now.seconds,
            "then_peak": then.peak, "now_peak": now.peak}  # fmt: skip


def demo(then: Checkout, now: Checkout, table: Table) -> None:
    before, after = then.cost(ADAPT), now.cost(ADAPT)
    table.add(row("mmrl flow adapt, the whole demo", before, after))
    searches = [max(float(seconds) for _, seconds in ITEM.findall(one.said)) for one in (before, after)]
    table.add({"what": "the two searches in it, the longer one", "then_seconds": searches[0],
               "now_seconds": searches[1], "ratio": searches[0] / searches[1]})  # fmt: skip


def search(then: Checkout, now: Checkout, table: Table) -> None:
    prepare(now, {})
    forget(now)
    tuned = now.cost([*TUNE, *now.set({})])
    forget(now)
    looped = now.cost([sys.executable, "-m", "benchmarks.demo", "--loop"])
    table.add(row("mmrl tune (then: a bare loop of its steps)", looped, tuned))


def vit(then: Checkout, now: Checkout, table: Table) -> None:
    costs = []
    for checkout in (then, now):
        prepare(checkout, VIT)
        checkout.cost([*TUNE, *checkout.set({**VIT, "search.seed": "1", "search.trials": "1"})])  # keeps the features
        checkout.cost([*TUNE, *checkout.set({**VIT, "search.trials": "1"})])
        forget(checkout, features=False)
        costs.append(checkout.cost([*TUNE, *checkout.set(VIT)]))
    table.add(row("mmrl tune, 24 trials on a random ViT-B/16", *costs))


def prepare(checkout: Checkout, settings: dict[str, str]) -> None:
    stage = [str(BIN / "mmrl"), "prepare", "--dataset", "digits"]
    shots, seeds = settings.get("shots", "[16]").strip("[]"), settings.get("seeds", "[1, 2, 3]").strip("[]")
    for seed in seeds.split(", "):
        checkout.cost([*stage, "--shots", shots, "--seed", seed])


def forget(checkout: Checkout, features: bool = True) -> None:
    """Trials of searches, and the features that were kept."""
    for name in ("searches", *(["features"] if features else [])):
        shutil.rmtree(checkout.folder / ".mmrl" / name, ignore_errors=True)


def loop() -> None:
    """The rounds of `mmrl tune` in this process: no cluster, no MLflow, no progress."""
    from benchmarks.race import BareSearch
    from flows.settings.params import load_params

    print(BareSearch(load_params(), "digits", "mmrlpp").run(is_race=True).chosen["params"])


SECTIONS = {"demo": demo, "search": search, "vit": vit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", help="the other commit")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections")
    parser.add_argument("--loop", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.loop:
        loop()
        return
    with tempfile.TemporaryDirectory() as folder:
        then, now = (Checkout(Path(folder, name), commit) for name, commit in
                     (("then", options.against), ("now", "HEAD")))  # fmt: skip
        table = Table(f"what a person waits for: {options.against} and this build", COLUMNS)
        for name in options.only.split(","):
            SECTIONS[name](then, now, table)


if __name__ == "__main__":
    main()
