#!/usr/bin/env bash
# ruamel.yaml 0.19.1 with ruamel.yaml.clib 0.2.15, dvc 3.67.1, Python 3.11; PyYAML 6.0.3 as another parser.
#
# Expected: `hosts: [https://example.org/]` is a list of one URL, as YAML says: a colon begins a value only if a space
# follows. Whether a C parser is installed changes how fast ruamel.yaml reads it, not whether it does.
# Seen: the C parser of ruamel.yaml.clib, which YAML(typ="safe") takes where it is installed, refuses a colon in a plain
# scalar between brackets or braces ("found unexpected ':'"). ruamel's own parser (pure=True, or typ="rt") takes it, and
# both of PyYAML's do. DVC needs ruamel.yaml without the C parser, and runs with such a params.yaml; once something else
# brings the C parser into the same environment, as Prefect 3.8.8 does, DVC says that params.yaml is corrupted.
#
# Quoted, or with one item a line, it is the same list for all of them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check dvc==3.67.1 ruamel.yaml==0.19.1 pyyaml==6.0.3

cat > look.py << 'EOF'
import sys

import yaml
from ruamel.yaml import YAML

parsers = {
    'ruamel, typ="safe"': YAML(typ="safe").load,
    'ruamel, typ="safe", pure=True': YAML(typ="safe", pure=True).load,
    'ruamel, typ="rt"': YAML(typ="rt").load,
    "PyYAML": yaml.safe_load,
    "PyYAML, C": lambda text: yaml.load(text, yaml.CSafeLoader),
}
refusals = []
for text in ("hosts: [https://example.org/]", 'hosts: ["https://example.org/"]', "hosts:\n- https://example.org/"):
    for name, load in parsers.items():
        try:
            assert load(text) == {"hosts": ["https://example.org/"]}
        except Exception as error:
            refusals.append((text, name))
            print(f"  {text!r} is refused by {name}: {type(error).__name__}, {error.problem}")
print("  refusals:", len(refusals))
expected = [("hosts: [https://example.org/]", 'ruamel, typ="safe"')] if sys.argv[1] == "clib" else []
assert refusals == expected
EOF

export DVC_NO_ANALYTICS=1 DVC_SITE_CACHE_DIR="$folder/site" DVC_GLOBAL_CONFIG_DIR="$folder/global"
mkdir repository
(cd repository && ../venv/bin/dvc init --quiet --no-scm)
printf 'stages:\n  fetch:\n    cmd: echo the stage runs\n    params:\n    - hosts\n' > repository/dvc.yaml

reproduce() {
    status=0
    echo "$1" > repository/params.yaml
    (cd repository && ../venv/bin/dvc repro --force > ../said.txt 2>&1) || status=$?
    echo "  dvc repro with $1: exit status $status, $(grep -m 1 -E "^the stage|^ERROR" said.txt)"
}

echo "without ruamel.yaml.clib:"
venv/bin/python look.py none
reproduce 'hosts: [https://example.org/]'
test "$status" = 0

venv/bin/python -m pip install --quiet --disable-pip-version-check ruamel.yaml.clib==0.2.15
echo "with it:"
venv/bin/python look.py clib
reproduce 'hosts: ["https://example.org/"]'
test "$status" = 0
reproduce 'hosts: [https://example.org/]'
test "$status" = 255
grep -q "structure is corrupted" said.txt

# Output seen:
#   without ruamel.yaml.clib:
#     refusals: 0
#     dvc repro with hosts: [https://example.org/]: exit status 0, the stage runs
#   with it:
#     'hosts: [https://example.org/]' is refused by ruamel, typ="safe": ScannerError, found unexpected ':'
#     refusals: 1
#     dvc repro with hosts: ["https://example.org/"]: exit status 0, the stage runs
#     dvc repro with hosts: [https://example.org/]: exit status 255, ERROR: unable to read: 'params.yaml', YAML file
#     structure is corrupted: while scanning a plain scalar
