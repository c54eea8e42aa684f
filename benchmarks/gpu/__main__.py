"""Whether this project computes what it should on one card, and how fast: at most 8 minutes, no network.

    python -m benchmarks.gpu [PART...] [--device cuda] [--quick] [--out FOUND.json] [--markdown]

A part that fails is a line with its error; the others go on, and the exit code is 1. Without a GPU it runs toy sizes on
the CPU and says so: that it runs, not how fast a card is.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.run import Found, here, in_process
from benchmarks.gpu.told import headline, lines, markdown

MINUTES = 8
ASK = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
DRIVER = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    parser.add_argument("--quick", action="store_true", help="toy sizes: does it run? On a CPU always")
    parser.add_argument("--out", type=Path, help="a JSON file for all that was found")
    parser.add_argument("--markdown", action="store_true", help="the table for docs/performance.md, at the end")
    parser.add_argument("--one-process", action="store_true", help="no process for each part, and no limits")
    options = parser.parse_args(words)
    for part in set(options.parts) - set(PARTS):
        parser.error(f"no part {part}; there are {', '.join(PARTS)}")
    return options


def card() -> str:
    """The GPU's name, asked in another process: one that has asked cannot fork for CUDA any more. Empty: there is
    none."""
    return subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True).stdout.strip()


def settled(options: argparse.Namespace) -> tuple[str, str, bool]:
    """The device, what it is called, and whether sizes are toys. Exits where a device is named that is not there."""
    name = card() if options.device in ("auto", "cuda") else ""
    if options.device == "cuda" and not name:
        sys.exit("--device cuda: PyTorch finds no CUDA device here; leave it, or name cpu")
    if name:
        return "cuda", name, options.quick
    if options.device == "mps":
        return "mps", "an Apple GPU (mps)", options.quick
    if options.device == "auto":
        print("There is no CUDA device here: toy sizes on the CPU, which say that it runs and not how fast a card is.")
    return "cpu", "the CPU", True


def machine(device: str) -> dict[str, Any]:
    from importlib.metadata import version

    from flows.project.machine import processor

    return {"processor": processor(), "torch": version("torch"), "driver": driver() if device == "cuda" else None}


def driver() -> str | None:
    try:
        return subprocess.run(DRIVER, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def run(name: str, device: str, toy: bool, left: float, one_process: bool) -> Found:
    if one_process:
        with tempfile.TemporaryDirectory() as folder:
            return here(PARTS[name], device, toy, Path(folder, "rows"))
    if left < 1:
        return Found([], 0.0, error=f"not begun: the {MINUTES} minutes are over")
    return in_process(PARTS[name], min(left, PARTS[name].seconds), device, toy)


def main(words: Sequence[str] | None = None) -> int:
    options = parsed(words)
    device, called, toy = settled(options)
    found: dict[str, Any] = {"device": called, "kind": device, "toy": toy, "machine": machine(device), "parts": {}}
    print(headline(found), flush=True)
    start = time.monotonic()
    for name in options.parts or PARTS:
        left = 60 * MINUTES - (time.monotonic() - start)
        part = run(name, device, toy, left, options.one_process)
        found["parts"][name] = part._asdict()
        print("\n".join(lines(name, part)), flush=True)
        if options.out:
            options.out.write_text(json.dumps(found, indent=2))
    failed = [name for name, part in found["parts"].items() if part["error"]]
    print(f"{time.monotonic() - start:.0f} s; {'failed: ' + ', '.join(failed) if failed else 'no part failed'}")
    if options.markdown:
        print("\n" + markdown(found))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
