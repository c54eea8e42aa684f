#!/usr/bin/env bash
# open_clip_torch 3.3.0, timm 1.0.31, torch 2.15.0, Python 3.11.
#
# Expected: the `image_size` of an open_clip configuration is that of the tower, as it is where the tower is open_clip's
# own, and the preprocessing that comes with a model is of the size that the model's tower is for.
# Seen: where the tower is timm's, `image_size` is kept as `visual.image_size` and not passed to timm: the tower has the
# size that timm's name of it stands for. The preprocessing is of `visual.image_size`, and towers that take any size
# compute at the wrong one without a warning. So it is with a configuration that open_clip ships, of an architecture
# with published weights: ViTamin-XL-384 says 256, and its images are shrunk to 256 x 256 pixels for a tower of 384.
#
# `force_image_size`, given to create_model_and_transforms, does reach the tower. Whoever makes a configuration for
# timm's tower states the size that the tower has, `trunk.patch_embed.img_size`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check open_clip_torch==3.3.0 timm==1.0.31 torch==2.15.0

venv/bin/python - << 'EOF'
import json
import logging
import warnings
from pathlib import Path

import open_clip
import torch
from PIL import Image

said = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: said.append(record.getMessage())
logging.getLogger().addHandler(handler)

vision = {"image_size": 32, "timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear"}
text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
own = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text, "custom_text": True}
Path("own-32.json").write_text(json.dumps(own))
open_clip.add_model_config("own-32.json")


def sizes(name: str, force: int | None = None) -> tuple[int, int, int]:
    """`visual.image_size`, the size of timm's tower and that of preprocessed images; the tower takes such images."""
    with torch.device("meta"):
        model, _, preprocess = open_clip.create_model_and_transforms(name, device="meta", force_image_size=force)
    with torch.device("cpu"):
        image = preprocess(Image.new("RGB", (500, 500)))
    assert model.encode_image(image[None].to("meta")).shape[0] == 1
    found = model.visual.image_size[0], model.visual.trunk.patch_embed.img_size[0], image.shape[1]
    print(f"{name}, force_image_size={force}: visual.image_size {found[0]}, tower {found[1]}, images {found[2]}")
    return found


with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    assert sizes("own-32") == (32, 160, 32)
    assert sizes("ViTamin-XL-384") == (256, 384, 256)
    assert sizes("ViTamin-L-384") == (384, 384, 384)
    told = [line for line in [*said, *(str(warning.message) for warning in warned)] if "size" in line]
    assert sizes("own-32", force=32) == (32, 32, 32)
    assert sizes("ViTamin-XL-384", force=384) == (384, 384, 384)
print("warnings of it:", told)
assert not told and open_clip.list_pretrained_tags_by_model("ViTamin-XL-384") == ["datacomp1b"]
EOF

# Output seen:
#   own-32, force_image_size=None: visual.image_size 32, tower 160, images 32
#   ViTamin-XL-384, force_image_size=None: visual.image_size 256, tower 384, images 256
#   ViTamin-L-384, force_image_size=None: visual.image_size 384, tower 384, images 384
#   own-32, force_image_size=32: visual.image_size 32, tower 32, images 32
#   ViTamin-XL-384, force_image_size=384: visual.image_size 384, tower 384, images 384
#   warnings of it: []
