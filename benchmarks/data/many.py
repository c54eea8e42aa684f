"""Very many images of one's own, by this build and by another commit: whole processes, seconds and peak memory.

    python -m benchmarks.data.many --against COMMIT [--images 100000] [--side 32] [--out OUT.json]

Each build fingerprints the same drawn JPEGs, checks them, and prepares the pool and three few-shot sets, in a project
of its own with the settings that its own checkout ships. The commands of the builds take turns. What was prepared must
be the same bytes. The `check` of 9c42261 decoded no image; today's decodes each, so that its time holds more work.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from benchmarks.support.processes import Build, Cost
from benchmarks.support.table import Column, Table
from tests.core.data.many import fill
from tests.support.workspace import BIN, ROOT

SHOTS, SEEDS, CLASSES = 16, (1, 2, 3), 100
COMMANDS = {
    "fingerprint": ["fingerprint"], "check": ["check"], "prepare the pool": ["prepare"],
    **{f"prepare seed {seed}": ["prepare", "--shots", str(SHOTS), "--seed", str(seed)] for seed in SEEDS},
}  # fmt: skip
COLUMNS = [
    Column("command", "command", width=30),
    Column("then s", "then_wall", ".2f"),
    Column("now s", "now_wall", ".2f"),
    Column("then / now", "wall", ".2f", 12),
    Column("then CPU s", "then_seconds", ".2f", 12),
    Column("now CPU s", "now_seconds", ".2f", 11),
    Column("then MB", "then_peak", ".0f", 9),
    Column("now MB", "now_peak", ".0f"),
    Column("now / then", "peak", ".2f", 12),
]


def project_of(source: Path, folder: Path, images: Path) -> Build:
    """A project with the settings of a checkout, changed to these images."""
    folder.mkdir()
    params = yaml.safe_load((source / "params.yaml").read_text())
    params |= {"datasets": ["many"], "shots": [SHOTS], "seeds": list(SEEDS)}
    params["data"] |= {"own": {"many": {"images": str(images)}}, "protocol": "few-shot"}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    for name in ("dvc.yaml", "versions.yaml"):
        if (source / name).exists():
            (folder / name).write_bytes((source / name).read_bytes())
    return Build(source, folder)


def prepared(build: Build) -> str:
    """A digest of all that was prepared."""
    files = sorted((build.project / "data").rglob("*"))
    parts = [f"{path.relative_to(build.project)} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files
             if path.is_file()]  # fmt: skip
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def row(command: str, then: Cost, now: Cost) -> dict:
    found = {"command": command, "wall": then.wall / now.wall, "peak": now.peak / then.peak}
    for name in Cost._fields:
        found |= {f"then_{name}": getattr(then, name), f"now_{name}": getattr(now, name)}
    return found


def together(costs: list[Cost]) -> Cost:
    """The sum of times, the largest peak."""
    return Cost(sum(one.wall for one in costs), sum(one.seconds for one in costs), max(one.peak for one in costs))


def measure(then: Build, now: Build, table: Table) -> None:
    costs = []
    for command, words in COMMANDS.items():
        line = [str(BIN / "mmrl"), words[0], "--dataset", "many", *words[1:]]
        costs.append((then.cost(line), now.cost(line)))
        table.add(row(command, *costs[-1]))
    table.add(row("check, pool and three seeds", *(together(list(one)) for one in zip(*costs[1:], strict=True))))
    assert prepared(then) == prepared(now), "the two builds prepared other bytes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", required=True, help="the other commit")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--side", type=int, default=32, help="pixels of an image's sides")
    parser.add_argument("--out", type=Path, help="a JSON file for what was measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, source = Path(name), Path(name, "source")
        images = fill(folder / "images", options.images, CLASSES, options.side)
        subprocess.run(["git", "worktree", "add", "-q", "--detach", source, options.against], cwd=ROOT, check=True)
        try:
            builds = project_of(source, folder / "then", images), project_of(ROOT, folder / "now", images)
            machine = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
            title = f"{options.images} images of {options.side} pixels, {machine}"
            table = Table(f"{options.against} and this build: {title}", COLUMNS)
            measure(*builds, table)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", source], cwd=ROOT, check=True)
    if options.out:
        options.out.write_text(
            json.dumps({"images": options.images, "side": options.side, "rows": table.rows}, indent=2)
        )


if __name__ == "__main__":
    sys.exit(main())
