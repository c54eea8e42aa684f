#!/usr/bin/env bash
# open_clip_torch 3.3.0, timm 1.0.31, transformers 5.24.0, Python 3.11.
#
# Expected: Google's SigLIP weights have the same activation in open_clip and in transformers, which both publish them.
# Seen: transformers applies GELU's tanh approximation in both towers, as big_vision, where they were trained, does.
# open_clip passes no activation on to timm, and timm's SigLIP towers have exact GELU, all but those of sizes that came
# with SigLIP 2 (base with patches of 32, large of 512 pixels, SO400M with patches of 16, giant). Its text towers have
# exact GELU in SigLIP 1 and the approximation in SigLIP 2. Nothing is said, and features differ beyond rounding.
#
# So a checkpoint of transformers is given the activation that its config.json states, and an open_clip name open_clip's.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check open_clip_torch==3.3.0 timm==1.0.31 \
    transformers==5.24.0 torch==2.15.0

venv/bin/python - << 'EOF'
import open_clip
import torch
from transformers import SiglipConfig

config = SiglipConfig()
theirs = {"image": config.vision_config.hidden_act, "text": config.text_config.hidden_act}
print("transformers, SigLIP:", theirs)
found = {}
for name in ("ViT-B-16-SigLIP", "ViT-B-16-SigLIP2", "ViT-B-32-SigLIP2-256"):
    with torch.device("meta"):
        settings = open_clip.get_model_config(name)
        settings.pop("custom_text")
        model = open_clip.CustomTextCLIP(**settings)
    image, text = model.visual.trunk.blocks[0].mlp.act, model.text.transformer.resblocks[0].mlp.gelu
    found[name] = "tanh" if type(image).__name__ == "GELUTanh" else image.approximate, text.approximate
    print("open_clip, {}: image GELU({}), text GELU({})".format(name, *found[name]))
assert theirs == {"image": "gelu_pytorch_tanh", "text": "gelu_pytorch_tanh"}
assert found == {
    "ViT-B-16-SigLIP": ("none", "none"), "ViT-B-16-SigLIP2": ("none", "tanh"), "ViT-B-32-SigLIP2-256": ("tanh", "tanh")
}
EOF

# Output seen:
#   transformers, SigLIP: {'image': 'gelu_pytorch_tanh', 'text': 'gelu_pytorch_tanh'}
#   open_clip, ViT-B-16-SigLIP: image GELU(none), text GELU(none)
#   open_clip, ViT-B-16-SigLIP2: image GELU(none), text GELU(tanh)
#   open_clip, ViT-B-32-SigLIP2-256: image GELU(tanh), text GELU(tanh)
