#!/usr/bin/env bash
# torchvision 0.29.2 (torch 2.15.0), Python 3.11, CPU.
#
# Expected: torchvision.transforms.functional and torchvision.transforms.v2.functional scale a uint8 tensor alike; v2's
# guide says that it is a drop-in replacement.
# Seen: v1 scales it as float32 and rounds at the end, v2 hands the bytes to torch's own kernel for them, which rounds
# and clips after each direction. A fifth of the values differ, of noise by up to a dozen levels (of 40 photographs by at most 7),
# and v2 is faster by half and more. So an evaluation whose transforms were moved to v2 sees other pixels.
#
# Both are Pillow's algorithm; Pillow itself rounds between the directions as v2 does.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torchvision==0.29.2 torch==2.15.0 numpy==2.4.6

cat > scaled.py << 'EOF'
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as v1
from torchvision.transforms.v2 import functional as v2


class Scaled(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.types = []

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        if "upsample" in str(function):
            self.types.append(str(arguments[0].dtype))
        return function(*arguments, **(named or {}))


image = torch.randint(0, 256, (3, 375, 500), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
found = {}
for name, way in (("v1", v1), ("v2", v2)):
    with Scaled() as scaled:
        found[name] = way.resized_crop(image, 10, 20, 300, 300, [224, 224], InterpolationMode.BICUBIC, antialias=True)
    print(name, *scaled.types, found[name].dtype)
apart = (found["v1"].int() - found["v2"].int()).abs()
print("apart", bool((apart > 0).any()), int(apart.max()), float((apart>0).float().mean()))
EOF
said=$(venv/bin/python scaled.py)
echo "$said"
grep -qx "v1 torch.float32 torch.uint8" <<< "$said"
grep -qx "v2 torch.uint8 torch.uint8" <<< "$said"
grep -q "^apart True" <<< "$said"
