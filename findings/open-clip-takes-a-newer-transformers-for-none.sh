#!/usr/bin/env bash
# open_clip_torch 3.3.0, transformers 5.24.0, timm 1.0.31, torch 2.15.0, Python 3.11.
#
# Expected: with transformers installed, CoCa's `generate` writes a caption, or open_clip's requirements or its error
# say which transformers it wants.
# Seen: "Please install transformers for generate functionality. `pip install transformers`.", with the newest one
# installed. open_clip imports ten names in one `try` and takes any ImportError for an absent transformers; one of them,
# BeamSearchScorer, is gone since transformers 4.57. So `generation_type="top_k"` and "top_p" are refused too, which
# make no use of it. open_clip's requirements name no version of transformers.
#
# With transformers 4.56.2 all three write.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
cat > seen.py << 'EOF'
import importlib.metadata
import sys

import open_clip
import torch

layer = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
text = {**layer, "embed_cls": True, "output_tokens": True}
image = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1, "attentional_pool": True, "output_tokens": True}
pool = {"attn_pooler_queries": 4, "attn_pooler_heads": 2}
torch.manual_seed(0)
model = open_clip.CoCa(16, {**layer, "attn_pooler_heads": 2}, text, {**image, **pool}).eval()
torch.nn.init.normal_(model.text_decoder.text_projection)  # open_clip leaves it as torch.empty does
tokens = {"sot_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def generated(kind: str) -> str:
    settings = {"generation_type": kind, "min_seq_len": 2, "seq_len": 7, "max_seq_len": 8, **tokens}
    try:
        return f"{model.generate(torch.zeros(1, 3, 32, 32), **settings).shape[0]} caption"
    except AssertionError as error:
        return str(error)


installed = f"transformers {importlib.metadata.version('transformers')}"
seen = {kind: generated(kind) for kind in ("beam_search", "top_k", "top_p")}
for kind, what in seen.items():
    print(f"{installed}, {kind}: {what}")
assert all(what.startswith(sys.argv[1]) for what in seen.values())
EOF
install() {
    venv/bin/python -m pip install --quiet --disable-pip-version-check open_clip_torch==3.3.0 timm==1.0.31 \
        torch==2.15.0 "transformers==$1"
}
install 5.24.0
venv/bin/python -W ignore seen.py "Please install transformers"
venv/bin/python - << 'EOF'
import inspect
import re

import open_clip.coca_model
import transformers

wanted = re.search(r"from transformers import \((.*?)\)", inspect.getsource(open_clip.coca_model), re.DOTALL)[1]
names = [*re.findall(r"\w+", wanted), "BeamSearchScorer"]
missing = [name for name in names if not any(hasattr(where, name) for where in (transformers, transformers.generation))]
print(f"of {len(names)} names that open_clip imports, missing: {missing}")
assert missing == ["BeamSearchScorer"]
EOF
install 4.56.2
venv/bin/python -W ignore seen.py "1 caption"

# Output seen:
#   transformers 5.24.0, beam_search: Please install transformers for generate functionality.
#       `pip install transformers`.
#   transformers 5.24.0, top_k: Please install transformers for generate functionality. `pip install transformers`.
#   transformers 5.24.0, top_p: Please install transformers for generate functionality. `pip install transformers`.
#   of 10 names that open_clip imports, missing: ['BeamSearchScorer']
#   transformers 4.56.2, beam_search: 1 caption
#   transformers 4.56.2, top_k: 1 caption
#   transformers 4.56.2, top_p: 1 caption
