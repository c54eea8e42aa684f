"""`mmrl train` as a whole against the published loop: whole processes in turn, what starts and ends them included.

    python -m benchmarks.startup.training [--epochs 2] [--shots 16] [--repeats 3]

ViT-B/16 with random weights from a file, the ten digits, batches of 4, no search, as many threads as torch takes. The
published loop (`published.py`) only trains; `mmrl train` also validates every epoch, fits a probe, temperatures and a
threshold, and tracks the run. Features are at hand when a search or an earlier training saw the same views, of another
method or with another weight of the regularisation.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.support.processes import Build, Cost
from benchmarks.support.table import Column, Table, notes
from tests.support.workspace import BIN, ROOT, in_turn, make_workspace, write_params

BATCH = 4
COLUMNS = [
    Column("process", "process", "s", 30), Column("seconds", "wall", ".1f", 9), Column("ratio", "ratio", ".2f"),
    Column("CPU s", "seconds", ".1f", 9), Column("ratio", "cpu_ratio", ".2f"), Column("MB", "peak", ".0f"),
]  # fmt: skip


def settings(folder: Path, epochs: int, shots: int, cache: str) -> dict:
    return {
        "methods": ["mmrl"], "baselines": [], "seeds": [1], "shots": [shots], "data": {"protocol": "few-shot"},
        "backbone": {"name": "ViT-B-16", "weights": str(folder / "vit.safetensors")},
        "train": {"epochs": epochs, "batch_size": BATCH}, "search": {"enabled": False}, "features": {"cache": cache},
    }  # fmt: skip


def make_project(folder: Path, epochs: int, shots: int) -> Path:
    """A project with its few-shot set, and the weights beside it."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    state = open_clip.create_model("ViT-B-16").state_dict()
    save_file({key: one.contiguous() for key, one in state.items()}, folder / "vit.safetensors")
    project = make_workspace(folder / "project", **settings(folder, epochs, shots, "never"))
    few_shot = f"prepare --dataset digits --shots {shots} --seed 1"
    in_turn(project, "fingerprint --dataset digits", few_shot, "prepare --dataset digits",
            "tune --dataset digits --method mmrl")  # fmt: skip
    return project


def published(project: Path, epochs: int, shots: int) -> list[str]:
    arguments = [str(project.parent / "vit.safetensors"), f"data/digits/{shots}shot-seed1", "a photo of the digit {}."]
    return [sys.executable, "-P", "-m", "benchmarks.startup.published", *arguments, str(epochs), str(BATCH)]


def measured(project: Path, epochs: int, shots: int, repeats: int) -> Iterator[dict]:
    """The fastest of each: the published loop and `mmrl train` in turn, then `mmrl train` with features at hand."""
    build, runs = Build(ROOT, project, unbound=True), dict[str, list[Cost]]()
    ours = [str(BIN / "mmrl"), "train", "--dataset", "digits", "--method", "mmrl", "--shots", str(shots), "--seed", "1"]

    def run(name: str, command: list[str]) -> None:
        shutil.rmtree(project / "models", ignore_errors=True)
        runs.setdefault(name, []).append(build.cost(command))

    for _ in range(repeats):
        run("the published loop", published(project, epochs, shots))
        run("mmrl train", ours)
    write_params(project, **settings(project.parent, epochs, shots, "always"))
    for name in ("mmrl train, keeping features", *["mmrl train, features at hand"] * repeats):
        run(name, ours)
    fastest = {name: min(costs) for name, costs in runs.items()}
    first = next(iter(fastest.values()))
    for name, cost in fastest.items():
        ratios = {"ratio": first.wall / cost.wall, "cpu_ratio": first.seconds / cost.seconds}
        yield {"process": name, **cost._asdict(), **ratios}


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
