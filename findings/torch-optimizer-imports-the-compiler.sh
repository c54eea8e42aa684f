#!/usr/bin/env bash
# torch 2.15.0, Python 3.11, CPU.
#
# Expected: making an optimizer in a program that compiles nothing imports nothing of torch's compiler.
# Seen: `torch.optim.AdamW(...)` imports torch._dynamo and sympy, over 800 modules, because methods such as
# add_param_group are wrapped so that a compiler would not trace them, and the wrapper imports the compiler to say so.
# `import torch` alone imports neither. Here it took 1.1 s of processor time in every process that trains.
#
# The methods inside of the wrappers (inspect.unwrap, in a subclass) take the same steps without it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.15.0 numpy

venv/bin/python - << 'EOF'
import sys
import time

import torch


def compiler() -> list[str]:
    return [name for name in ("torch._dynamo", "sympy") if name in sys.modules]


print("after `import torch`:", compiler())
before, start = len(sys.modules), time.process_time()
torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
print("after making an optimizer:", compiler())
print(f"{len(sys.modules) - before} more modules, {time.process_time() - start:.1f} s of processor time", file=sys.stderr)
assert compiler() == ["torch._dynamo", "sympy"] and len(sys.modules) - before > 800
EOF

# Output seen:
#   after `import torch`: []
#   after making an optimizer: ['torch._dynamo', 'sympy']
