#!/usr/bin/env bash
# pytest-xdist 3.8.0 with pytest 9.2.0, `-n 2 --dist loadfile` (loadscope and loadgroup share the scheduler).
#
# Expected: a file goes to a process when that process is free.
# Seen: a process that has at most two tests left, the running one among them, is handed its next file at once, and
# nothing takes it back. A file of one long test so has another file waiting behind it while the other process runs out
# of work and ends. By default files come in the order of their number of tests, so that such files come last, where it
# costs most: here the long test waits up to 8 s for the test behind it to start, in vain.
#
# A suite with few, long tests a file gains from --no-loadscope-reorder and an order of its own, dear files first, cheap
# ones behind them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check pytest==9.2.0 pytest-xdist==3.8.0

cat > test_a_long.py << 'EOF'
import pathlib, time


def test_long():
    end = time.monotonic() + 8
    while time.monotonic() < end and not pathlib.Path("c-started").exists():
        time.sleep(0.05)
    pathlib.Path("seen").write_text(str(pathlib.Path("c-started").exists()))
EOF
for name in b d; do
  echo 'def test_short(): pass' > "test_$name.py"
done
cat > test_c.py << 'EOF'
import pathlib


def test_short():
    pathlib.Path("c-started").touch()
EOF

venv/bin/python -m pytest -v -n 2 --dist loadfile test_a_long.py test_b.py test_c.py test_d.py | tee output | grep PASSED
echo "did the test of another file start while the long one ran and the other process had nothing to do? $(cat seen)"
[ "$(cat seen)" = False ]
[ "$(grep -E 'PASSED test_[ac]' output | cut -d' ' -f1 | sort -u | wc -l)" = 1 ] # both on one process

# Output seen:
#   [gw0] [ 25%] PASSED test_b.py::test_short
#   [gw0] [ 50%] PASSED test_d.py::test_short
#   [gw1] [ 75%] PASSED test_a_long.py::test_long
#   [gw1] [100%] PASSED test_c.py::test_short
#   did the test of another file start while the long one ran and the other process had nothing to do? False
