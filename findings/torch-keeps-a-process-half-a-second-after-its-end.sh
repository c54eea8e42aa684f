#!/usr/bin/env bash
# torch 2.15.0, Python 3.11, CPU.
#
# Expected: a process that has imported torch and done nothing is gone when its last line has run.
# Seen: Python's finalization searches all that the import has made (several hundred thousand objects) for garbage, again
# and again while modules are cleared: about half a second of CPU time, a third of what the import itself takes. A
# pipeline of short processes pays it in each.
#
# With atexit.register(gc.freeze) these searches find nothing to go through, and most of that time is gone; unlike with
# os._exit everything else of the finalization happens.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.15.0 numpy

venv/bin/python - << 'EOF'
import resource
import subprocess
import sys

ENDS = {"as it is": "", "gc.freeze": "gc.freeze()", "os._exit": "os._exit(0)"}


def cpu(end: str) -> float:
    """Seconds of a process that imports torch, the least of five."""
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", f"import gc, os, torch\n{end}"], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(seconds)


found = {name: cpu(end) for name, end in ENDS.items()}
print({name: f"{seconds:.2f} s" for name, seconds in found.items()}, file=sys.stderr)
over = {name: found[name] - found["os._exit"] for name in ("as it is", "gc.freeze")}
print("gc.freeze spares most of the end:", over["gc.freeze"] < over["as it is"] / 2)
print("the end takes more than a tenth of the import:", over["as it is"] > found["os._exit"] / 10)
assert over["gc.freeze"] < over["as it is"] / 2 and over["as it is"] > found["os._exit"] / 10
EOF

# Output seen:
#   gc.freeze spares most of the end: True
#   the end takes more than a tenth of the import: True
