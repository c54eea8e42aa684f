"""`mmrl train` as a whole against the published loop: whole processes in turn, what starts and ends them included.

    python -m benchmarks.startup.training [--epochs 2] [--shots 16] [--repeats 3]

ViT-B/16 with random weights from a file, the ten digits, batches of 4, no search, as many threads as torch takes. The
published loop (`published.py`) only trains; `mmrl train` also validates every epoch, fits a probe, temperatures and a
threshold, and tracks the run.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.startup.__main__ import BIN, Build, Cost
from benchmarks.support.table import Column, Table, notes
from tests.support.workspace import ROOT, environment, in_turn, make_workspace

BATCH = 4
COLUMNS = [
    Column("process", "process", "s", 24), Column("seconds", "wall", ".1f", 9), Column("ratio", "ratio", ".2f"),
    Column("CPU s", "seconds", ".1f", 9), Column("ratio", "cpu_ratio", ".2f"), Column("MB", "peak", ".0f"),
]  # fmt: skip


class Unbound(Build):
    """A build whose processes take as many threads as they like."""

    def start(self, command: list[str]) -> subprocess.Popen:
        kept = {name: value for name, value in environment().items() if not name.startswith("OMP_")}
        return subprocess.Popen(command, cwd=self.project, env={**kept, "PYTHONPATH": str(self.source)},
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip


def make_project(folder: Path, epochs: int, shots: int) -> Path:
    """A project with its few-shot set, and the weights beside it."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    weights, project = folder / "vit.safetensors", folder / "project"
    torch.manual_seed(0)
    save_file({key: one.contiguous() for key, one in open_clip.create_model("ViT-B-16").state_dict().items()}, weights)
    make_workspace(
        project, methods=["mmrl"], baselines=[], seeds=[1], shots=[shots], data={"protocol": "few-shot"},
        backbone={"name": "ViT-B-16", "weights": str(weights)}, train={"epochs": epochs, "batch_size": BATCH},
        search={"enabled": False},
    )  # fmt: skip
    few_shot = f"prepare --dataset digits --shots {shots} --seed 1"
    in_turn(project, "fingerprint --dataset digits", few_shot, "prepare --dataset digits",
            "tune --dataset digits --method mmrl")  # fmt: skip
    return project


def commands(project: Path, epochs: int, shots: int) -> dict[str, list[str]]:
    run = ["--dataset", "digits", "--method", "mmrl", "--shots", str(shots), "--seed", "1"]
    published = [str(project.parent / "vit.safetensors"), f"data/digits/{shots}shot-seed1", "a photo of the digit {}."]
    return {
        "the published loop": [sys.executable, "-P", "-m", "benchmarks.startup.published", *published, str(epochs),
                               str(BATCH)],
        "mmrl train": [str(BIN / "mmrl"), "train", *run],
    }  # fmt: skip


def measured(project: Path, epochs: int, shots: int, repeats: int) -> list[dict]:
    """The fastest of each, which take turns."""
    build, costs = Unbound(ROOT, project), dict[str, list[Cost]]()
    for _ in range(repeats):
        for name, command in commands(project, epochs, shots).items():
            shutil.rmtree(project / "models", ignore_errors=True)
            costs.setdefault(name, []).append(build.cost(command))
    fastest = {name: min(runs) for name, runs in costs.items()}
    first = next(iter(fastest.values()))
    return [
        {"process": name, **cost._asdict(), "ratio": first.wall / cost.wall, "cpu_ratio": first.seconds / cost.seconds}
        for name, cost in fastest.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        project = make_project(Path(folder), options.epochs, options.shots)
        table = Table(
            f"mmrl train as a whole: digits, {options.shots} shots, {options.epochs} epochs, ViT-B/16", COLUMNS
        )
        table.extend(measured(project, options.epochs, options.shots, options.repeats))
    notes(
        "ratio: the published loop's over it. The fastest run of each; processor time with that of waited-for children."
    )


if __name__ == "__main__":
    main()
