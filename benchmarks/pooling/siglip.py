"""A small SigLIP on the data of the bundled backbone: no class token, attention pooling, text that is not causal.

Its towers are timm's and open_clip's own, of the size of `tiny` and started from its layers; loss, learned scale and
bias are SigLIP's. The token table holds what the captions use and nothing else: its tokenizer knows no other word.

B pictures, T captions of a batch, L context length.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torch.utils.data import DataLoader
from torchvision.transforms.functional import normalize

from mmrl_core.clip.backbone import OPENAI_MEAN, OPENAI_STD, load_backbone
from mmrl_core.clip.openclip import open_clip
from mmrl_core.data.squares import ViewSettings
from mmrl_core.pretrain import SIZE, RenderedBatches, caption_table

LAYERS, WIDTH, HEADS, PATCH, CONTEXT = 6, 128, 4, 8, 12
STEPS, HALVES, WARMUP, RATE, SCALE_RATE, DECAY = 1600, 2, 100, 1e-3, 1e-2, 0.1
SCALE, BIAS = 10.0, -10.0  # where SigLIP's paper starts them
VIEWS = ViewSettings(SIZE, OPENAI_MEAN, OPENAI_STD)


class Tokenizer:
    """CLIP's byte pairs, numbered anew among those of the captions; padding is attended, as in SigLIP."""

    def __init__(self) -> None:
        self.pairs = open_clip.SimpleTokenizer(context_length=CONTEXT)
        self.known = torch.unique(self.pairs(caption_table()[0]))

    def __call__(self, texts: list[str]) -> Tensor:
        """Ids (n, L). Raises ValueError for a word that no caption has."""
        ids = self.pairs(texts)
        if not torch.isin(ids, self.known).all():
            raise ValueError(f"not all of {texts} is made of the captions' words")
        return torch.searchsorted(self.known, ids)


def new_model(vocabulary: int) -> nn.Module:
    """An open_clip CustomTextCLIP as its SigLIP configurations make it, smaller; its weights drawn."""
    from timm.models.vision_transformer import VisionTransformer

    text = {
        "context_length": CONTEXT, "vocab_size": vocabulary, "width": WIDTH, "heads": HEADS, "layers": LAYERS,
        "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6},
    }  # fmt: skip
    image = {"image_size": SIZE, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"}
    clip = open_clip.CustomTextCLIP(WIDTH, image, text, init_logit_scale=math.log(SCALE), init_logit_bias=BIAS)
    clip.visual.trunk = VisionTransformer(
        img_size=SIZE, patch_size=PATCH, embed_dim=WIDTH, depth=LAYERS, num_heads=HEADS, class_token=False,
        global_pool="map", num_classes=0,
    )  # fmt: skip
    clip.visual.preprocess_cfg = {"size": SIZE, "mean": VIEWS.mean, "std": VIEWS.std, "interpolation": "bicubic"}
    return clip


def warm(clip: nn.Module, known: Tensor) -> None:
    """Layers and embeddings as the bundled CLIP has them, which the same pictures and captions taught: from there a
    SigLIP is a matter of minutes. What it lacks (the pool, the ends that are read, the bias) is left as drawn."""
    given, vision, text = load_backbone("tiny").clip, clip.visual.trunk, clip.text
    vision.patch_embed.proj.weight.copy_(given.visual.conv1.weight)
    vision.pos_embed.copy_(given.visual.positional_embedding[None, 1:])
    for mine, theirs in zip(vision.blocks, given.visual.transformer.resblocks, strict=True):
        pairs = [(mine.norm1, theirs.ln_1), (mine.norm2, theirs.ln_2), (mine.attn.proj, theirs.attn.out_proj),
                 (mine.mlp.fc1, theirs.mlp.c_fc), (mine.mlp.fc2, theirs.mlp.c_proj)]  # fmt: skip
        for one, other in pairs:
            one.load_state_dict(other.state_dict())
        mine.attn.qkv.load_state_dict({"weight": theirs.attn.in_proj_weight, "bias": theirs.attn.in_proj_bias})
    text.transformer.load_state_dict(given.transformer.state_dict())
    text.token_embedding.weight.copy_(given.token_embedding.weight[known])
    text.positional_embedding.copy_(given.positional_embedding[:CONTEXT])


def load(weights: Path) -> tuple[nn.Module, Tokenizer]:
    """The model of a file that `pretrain` has written, frozen, and its tokenizer."""
    tokenizer = Tokenizer()
    clip = new_model(len(tokenizer.known))
    clip.load_state_dict(load_file(weights))
    return clip.eval().requires_grad_(False), tokenizer


def pretrain(weights: Path, steps: int, report: Callable[[int, float, float], None], seed: int = 0) -> None:
    """Train from scratch and write the weights; `report(step, loss, scale)` after every step."""
    torch.manual_seed(seed)
    tokenizer, (texts, truth) = Tokenizer(), caption_table()
    clip, tokens = new_model(len(tokenizer.known)), tokenizer(texts)
    with torch.no_grad():
        warm(clip, tokenizer.known)
    optimizer = torch.optim.AdamW(_groups(clip), lr=RATE, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, steps))
    for step, (pictures, labels, captions) in enumerate(_batches(steps, seed, truth), start=1):
        image, text = clip.encode_image(pictures, normalize=True), clip.encode_text(tokens[captions], normalize=True)
        logits = clip.logit_scale.exp() * image @ text.T + clip.logit_bias
        loss = sigmoid_loss(logits, truth[labels][:, captions])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        report(step, loss.item(), clip.logit_scale.exp().item())
    save_file({name: tensor.contiguous() for name, tensor in clip.state_dict().items()}, weights)


def _batches(steps: int, seed: int, truth: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Pixels, concepts and their captions, of parts of the bundled backbone's batches: more, smaller steps."""
    rendered = DataLoader(RenderedBatches(-(-steps // HALVES), seed), batch_size=None, num_workers=1)
    for pictures, labels, captions in rendered:
        pixels = normalize(pictures.permute(0, 3, 1, 2) / 255, list(VIEWS.mean), list(VIEWS.std))
        for mine, concepts in zip(pixels.chunk(HALVES), labels.chunk(HALVES), strict=True):
            yield mine, concepts, captions[truth[concepts][:, captions].any(0)]


def sigmoid_loss(logits: Tensor, positives: Tensor) -> Tensor:
    """SigLIP's: every pair of (B, T) a question of its own, their sum divided by the pictures."""
    return -logsigmoid(torch.where(positives, logits, -logits)).sum() / len(logits)


def _groups(clip: nn.Module) -> list[dict]:
    """Decay for matrices alone; scale and bias have a long way to go in few steps."""
    named = dict(clip.named_parameters())
    far = [named.pop(name) for name in ("logit_scale", "logit_bias")]
    matrices, others = [[p for p in named.values() if (p.ndim > 1) == is_matrix] for is_matrix in (True, False)]
    return [
        {"params": matrices, "weight_decay": DECAY},
        {"params": others, "weight_decay": 0.0},
        {"params": far, "weight_decay": 0.0, "lr": SCALE_RATE},
    ]


def _share(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine to zero, as a factor of the learning rate."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP)))
