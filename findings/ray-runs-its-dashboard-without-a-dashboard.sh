#!/usr/bin/env bash
# ray 2.60.0, Python 3.11.
#
# Expected: ray.init(include_dashboard=False) starts no dashboard, least of all with usage statistics switched off.
# Seen: dashboard.py runs all the same ("--disable-frontend --modules-to-load=UsageStatsHead"), without a port, as long as
# the cluster does, and each node has its dashboard agent: two of five helper processes of a cluster that is to run one
# task, and half of the CPU time of its start.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check ray==2.60.0

RAY_USAGE_STATS_ENABLED=0 venv/bin/python - << 'EOF'
from pathlib import Path

import ray

ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR", _temp_dir=str(Path("r").absolute()))
session = ray._private.worker._global_node.get_session_dir_path()
commands = []
for process in Path("/proc").iterdir():
    if process.name.isdigit():
        try:
            commands.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            pass
heads = [command for command in commands if session in command and "dashboard.py" in command]
print("dashboard processes:", len(heads))
print("it serves no page:", all("--disable-frontend" in command for command in heads))
print("what it loads:", *(part for command in heads for part in command.split() if part.startswith("--modules-to-load")))
ray.shutdown()
assert len(heads) == 1 and "--modules-to-load=UsageStatsHead" in heads[0]
EOF

# Output seen:
#   dashboard processes: 1
#   it serves no page: True
#   what it loads: --modules-to-load=UsageStatsHead
