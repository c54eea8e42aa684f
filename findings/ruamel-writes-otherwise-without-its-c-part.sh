#!/usr/bin/env bash
# ruamel.yaml 0.19.1 and ruamel.yaml.clib 0.2.15, Python 3.11.
#
# Expected: YAML(typ="safe") writes the same text whether the C part is installed or not: it is said to be faster, and
# `pip install ruamel.yaml` no longer brings it, so that what else an environment holds decides.
# Seen: within a list in flow style a mapping of one entry has braces from the C writer and none from the other, and a
# URL there has quotes from the C writer alone. Both are YAML and mean the same; a program that takes a piece out of the
# text, or a test that compares text, works in one environment and not in the other.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check ruamel.yaml==0.19.1

cat > write.py << 'EOF'
from io import StringIO

from ruamel.yaml import YAML

for value in ([{"images": "photos"}], ["https://host/folder/"]):
    writer, written = YAML(typ="safe"), StringIO()
    writer.default_flow_style = True
    writer.dump(value, written)
    print(written.getvalue().strip())
EOF
venv/bin/python write.py | tee without.txt
venv/bin/python -m pip install --quiet --disable-pip-version-check ruamel.yaml.clib==0.2.15
venv/bin/python write.py | tee with.txt
[ "$(cat without.txt)" = "$(printf '[images: photos]\n[https://host/folder/]')" ]
[ "$(cat with.txt)" = "$(printf "[{images: photos}]\n['https://host/folder/']")" ]

# Output seen:
#   [images: photos]
#   [https://host/folder/]
#   [{images: photos}]
#   ['https://host/folder/']
