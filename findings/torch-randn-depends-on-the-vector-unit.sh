#!/usr/bin/env bash
# torch 2.15.0, Python 3.11, an x86-64 CPU with AVX2.
#
# Expected: with the same seed, the CPU's generator gives the same numbers on every x86-64 machine, or at least either
# all functions that draw from it do, or none. (PyTorch promises the same numbers on one platform only.)
# Seen: torch.rand, randint, randperm and bernoulli_ do. randn, normal_, trunc_normal_ and what is built upon them, as
# nn.Embedding is, have other last bits where PyTorch computes without AVX2, as on an older CPU or with
# ATEN_CPU_CAPABILITY=default, which shows it here; but only in float32 and from 16 elements on. uniform_(low, high) can
# have other last bits at any length, and nn.init.kaiming_uniform_ with it. So the weights that two machines start a
# training from are not quite the same, and a checksum of them is good for one kind of machine only.
#
# Drawn in float64 and then made float32, randn's and rand's numbers are the same on both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.15.0 numpy

cat > draw.py << 'EOF'
import sys

import torch
from torch import nn

draws = {
    "rand(1000)": lambda: torch.rand(1000),
    "randint(9, (1000,))": lambda: torch.randint(9, (1000,)),
    "randperm(1000)": lambda: torch.randperm(1000),
    "bernoulli_, 1000": lambda: torch.empty(1000).bernoulli_(0.3),
    "randn(15)": lambda: torch.randn(15),
    "randn(1000, float64)": lambda: torch.randn(1000, dtype=torch.float64),
    "randn(16)": lambda: torch.randn(16),
    "randn(1000)": lambda: torch.randn(1000),
    "normal_, 1000": lambda: torch.empty(1000).normal_(0, 0.02),
    "trunc_normal_, 1000": lambda: nn.init.trunc_normal_(torch.empty(1000), std=0.02),
    "nn.Embedding(64, 64)": lambda: nn.Embedding(64, 64).weight.detach(),
    "uniform_(-0.3, 0.3), 15": lambda: torch.empty(15).uniform_(-0.3, 0.3),
    "kaiming_uniform_, 1000": lambda: nn.init.kaiming_uniform_(torch.empty(10, 100)),
    "rand(1000, float64) scaled, as float32": lambda: (torch.rand(1000, dtype=torch.float64) * 0.6 - 0.3).float(),
}
drawn = {}
for name, draw in draws.items():
    torch.manual_seed(0)
    drawn[name] = draw()
torch.save((torch.backends.cpu.get_cpu_capability(), drawn), sys.argv[1])
EOF
venv/bin/python draw.py usual
ATEN_CPU_CAPABILITY=default venv/bin/python draw.py plain

venv/bin/python - << 'EOF'
import torch

(usual, drawn), (plain, again) = torch.load("usual"), torch.load("plain")
assert usual in ("AVX2", "AVX512") and plain == "DEFAULT"
other = []
for name, numbers in drawn.items():
    differ = (numbers != again[name]).sum().item()
    most = (numbers - again[name]).abs().max().item()
    print(f"{name}: " + (f"{differ} of {numbers.numel()} differ, by up to {most:.0e}" if differ else "the same"))
    other += [name] if differ else []
assert other == list(drawn)[6:-1]
EOF

# Output seen:
#   rand(1000): the same
#   randint(9, (1000,)): the same
#   randperm(1000): the same
#   bernoulli_, 1000: the same
#   randn(15): the same
#   randn(1000, float64): the same
#   randn(16): 5 of 16 differ, by up to 5e-07
#   randn(1000): 387 of 1000 differ, by up to 1e-06
#   normal_, 1000: 368 of 1000 differ, by up to 3e-08
#   trunc_normal_, 1000: 368 of 1000 differ, by up to 3e-08
#   nn.Embedding(64, 64): 1597 of 4096 differ, by up to 2e-06
#   uniform_(-0.3, 0.3), 15: 9 of 15 differ, by up to 3e-08
#   kaiming_uniform_, 1000: 542 of 1000 differ, by up to 1e-08
#   rand(1000, float64) scaled, as float32: the same
