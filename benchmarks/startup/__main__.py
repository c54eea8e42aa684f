"""What starting costs, of this build and of another commit: time, processor time and peak memory of whole processes.

    python -m benchmarks.startup --against COMMIT [--flow]

imports the backbone's module; with --flow it also adapts a small project once for each build, and then measures
`dvc repro` and `mmrl flow adapt` with nothing to do. The builds take turns in one environment.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.support.processes import Build, Cost
from benchmarks.support.table import Column, Table
from tests.support.workspace import BIN, QUICK, ROOT, make_workspace

COLUMNS = [
    Column("process", "process", width=36),
    Column("then s", "then_wall", ".2f"),
    Column("now s", "now_wall", ".2f"),
    Column("ratio", "wall", ".2f"),
    Column("then CPU s", "then_seconds", ".2f", 11),
    Column("now CPU s", "now_seconds", ".2f", 10),
    Column("ratio", "seconds", ".2f"),
    Column("then MB", "then_peak", ".0f", 9),
    Column("now MB", "now_peak", ".0f"),
    Column("ratio", "peak", ".2f"),
]
BACKBONE = "try: import mmrl_core.clip.backbone\nexcept ImportError: import mmrl_core.backbone"  # where it once lay
IMPORT = [sys.executable, "-P", "-c", BACKBONE]  # -P: a project has a folder of that name
ADAPT = [str(BIN / "mmrl"), "flow", "adapt"]
REPRO = [str(BIN / "dvc"), "repro"]


def compare(then: Build, now: Build, command: list[str], repeats: int) -> dict:
    """Medians of both builds in turn, after one run of each that is not counted."""
    costs = [(then.cost(command), now.cost(command)) for _ in range(repeats + 1)][1:]
    medians = [Cost(*map(statistics.median, zip(*one, strict=True))) for one in zip(*costs, strict=True)]
    before, after = medians
    row = {"process": " ".join([Path(command[0]).name, *command[1:]])}
    for name, then_is, now_is in zip(Cost._fields, before, after, strict=True):
        row |= {f"then_{name}": then_is, f"now_{name}": now_is, name: now_is / then_is}
    return row


def build_of(source: Path, project: Path, adapted: bool) -> Build:
    build = Build(source, project)
    if not adapted:
        project.mkdir()
        return build
    make_workspace(project, dvc=True, **QUICK, shots=[2])
    build.cost(ADAPT)
    return build


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", required=True, help="the other commit")
    parser.add_argument("--flow", action="store_true", help="the pipeline with nothing to do as well")
    parser.add_argument("--repeats", type=int, default=7, help="measured runs of each build")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source")
        subprocess.run(["git", "worktree", "add", "-q", "--detach", source, options.against], cwd=ROOT, check=True)
        try:
            then = build_of(source, Path(folder, "then"), options.flow)
            now = build_of(ROOT, Path(folder, "now"), options.flow)
            table = Table(f"starting: {options.against} and this build, medians of {options.repeats} runs", COLUMNS)
            for command in [IMPORT, *([REPRO, ADAPT] if options.flow else [])]:
                table.add(compare(then, now, command, options.repeats))
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", source], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
