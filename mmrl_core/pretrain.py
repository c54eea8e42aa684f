"""Pretrain the bundled backbone `tiny`: a true CLIP, small enough for one CPU core, on procedural pictures."""

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.utils.data import DataLoader, Dataset

from mmrl_core.files import sha256_file, write_bytes, write_json
from mmrl_core.renders import CONCEPTS, SIZE, captions, render

if TYPE_CHECKING:
    from mmrl_core.clip.backbone import Backbone
    from mmrl_core.clip.openclip import CLIP
    from mmrl_core.data.source import Source

# Dimension letters: B pictures, T captions of a batch, C concepts, L caption length, E embed_dim.
WIDTH, LAYERS = 128, 6
MODEL_CFG: dict[str, Any] = {
    "embed_dim": WIDTH,
    "vision_cfg": {"image_size": SIZE, "patch_size": 8, "layers": LAYERS, "width": WIDTH, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": 4, "layers": LAYERS},
    "quick_gelu": False,
}
TOKEN_SEED = 0
STEPS, BATCH, WARMUP = 5000, 128, 100
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.1
THREADS = 1  # sums in another order would give other bytes


def pretrain(
    out: str | Path,
    *,
    steps: int = STEPS,
    seed: int = 0,
    workers: int = 1,
    report: Callable[[int, int, float], None] | None = None,
) -> dict[str, Any]:
    """Train `tiny` from scratch; write `tiny.safetensors` and `tiny.json` into `out`; return what the JSON says.

    Runs on one CPU thread whatever the caller uses, so one machine gives the same bytes for the same steps and seed;
    `workers` processes render the pictures (0: this one does) and change nothing but the time.
    `report(step, steps, loss)` is called after each step.
    """
    from mmrl_core.clip.bundled import expand

    with _one_thread(seed):
        token_ids, text = _caption_tokens()
        clip = _compact_clip(token_ids, text.shape[1])
        batches = DataLoader(
            RenderedBatches(steps, seed), batch_size=None, num_workers=workers, generator=torch.Generator()
        )
        _fit(clip, text, batches, steps, report or (lambda *_: None))
        state = _state_to_save(clip, token_ids)
        figures = zero_shot_figures(expand(state, MODEL_CFG, TOKEN_SEED))
    weights = Path(out) / "tiny.safetensors"
    write_bytes(weights, save(state))
    card = _card(steps, seed, figures, sha256_file(weights))
    write_json(weights.with_suffix(".json"), card)
    return card


class RenderedBatches(Dataset):
    """Batch number -> pictures (B, 32, 32, 3) uint8, their concepts (B,) and the captions to set against them (T,)."""

    def __init__(self, steps: int, seed: int):
        self.steps, self.seed = steps, seed
        _, self.truth = caption_table()

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        first = (self.seed << 32) + step * BATCH
        pictures, concepts = zip(*(render(first + item) for item in range(BATCH)), strict=True)
        labels = torch.tensor(concepts)
        return torch.from_numpy(np.stack(pictures)), labels, self._choose_captions(step, labels)

    def _choose_captions(self, step: int, labels: Tensor) -> Tensor:
        """One caption of each concept in the batch: the loss weighs concepts, not their frequencies."""
        rng = np.random.default_rng((self.seed, step))
        return torch.tensor([rng.choice(np.flatnonzero(self.truth[label])) for label in labels.unique()]).unique()


def caption_table() -> tuple[list[str], Tensor]:
    """Every caption once, and which concepts it is true of: (C, captions) bool."""
    texts = sorted({text for concept in CONCEPTS for text in captions(concept)})
    place, truth = {text: index for index, text in enumerate(texts)}, torch.zeros(len(CONCEPTS), len(texts)).bool()
    for concept, row in zip(CONCEPTS, truth, strict=True):
        row[[place[text] for text in captions(concept)]] = True
    return texts, truth


def contrastive_loss(logits: Tensor, positives: Tensor) -> Tensor:
    """Mean of both directions' cross-entropy, each true pair set against the false pairs of its row alone.

    `logits` and `positives` are (B, T), pictures by captions; every row and column holds a true and a false pair.
    A picture's true captions do not compete: "a circle" need not be less true for "a red circle" to be right.
    """
    return (_against_false(logits, positives) + _against_false(logits.T, positives.T)) / 2


def _against_false(logits: Tensor, positives: Tensor) -> Tensor:
    false = logits.masked_fill(positives, -torch.inf).logsumexp(1, keepdim=True)
    return ((softplus(false - logits) * positives).sum(1) / positives.sum(1)).mean()


def zero_shot_figures(clip: "CLIP") -> dict[str, dict[str, float]]:
    """Zero-shot accuracy in per cent on the embedded datasets' validation items, among all, base and novel classes.

    The first of a dataset's templates is used, and no other split is read.
    """
    from mmrl_core.clip.backbone import Backbone
    from mmrl_core.data.catalog import open_source

    backbone = Backbone.from_clip(clip, name="tiny")
    return {key: _zero_shot(backbone, open_source(key, "")) for key in ("digits", "objects")}


def _zero_shot(backbone: "Backbone", source: "Source") -> dict[str, float]:
    from mmrl_core.data.splits import base_novel
    from mmrl_core.data.views import decode, test_views

    images = [decode(source.read(item), item.path) for item in source.val]
    labels = torch.tensor([item.label for item in source.val])
    views = test_views(images, backbone.view_settings)
    scores = backbone.encode_image(views) @ backbone.encode_text(source.class_names, source.templates[0]).T
    every = list(range(len(source.class_names)))
    base, novel = base_novel(every)
    return {name: _accuracy(scores, labels, part) for name, part in (("all", every), ("base", base), ("novel", novel))}


def _accuracy(scores: Tensor, labels: Tensor, classes: list[int]) -> float:
    mine = torch.isin(labels, torch.tensor(classes))
    chosen = torch.tensor(classes)[scores[mine][:, classes].argmax(1)]
    return round(100 * (chosen == labels[mine]).float().mean().item(), 2)


@contextlib.contextmanager
def _one_thread(seed: int) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def _caption_tokens() -> tuple[Tensor, Tensor]:
    """Token ids that occur in captions, ascending, and each caption (captions, L) as places in that list.

    L is the longest caption: attention is causal and end-of-text is read, so what follows it has no effect.
    """
    from mmrl_core.clip.backbone import tokenizer_for

    texts, _ = caption_table()
    tokens = tokenizer_for("tiny")(texts)
    length = int((tokens.argmax(1) + 1).max())
    return torch.unique(tokens[:, :length], return_inverse=True)


def _compact_clip(token_ids: Tensor, length: int) -> "CLIP":
    """`tiny` with only the tokens and positions of captions. Ids keep their order, so end-of-text stays the largest."""
    from mmrl_core.clip.bundled import new_clip, tokens_as_earlier

    shape = (MODEL_CFG["text_cfg"]["vocab_size"], WIDTH)
    text_cfg = {**MODEL_CFG["text_cfg"], "vocab_size": len(token_ids), "context_length": length}
    clip = new_clip({**MODEL_CFG, "text_cfg": text_cfg})
    with torch.no_grad():
        clip.token_embedding.weight.copy_(tokens_as_earlier(TOKEN_SEED, shape)[token_ids])
    return clip


def _fit(
    clip: "CLIP", text: Tensor, batches: DataLoader, steps: int, report: Callable[[int, int, float], None]
) -> None:
    """At the fixed logit scale that the method takes as given, so that its loss and probabilities mean something."""
    from mmrl_core.clip.backbone import LOGIT_SCALE

    optimizer = torch.optim.AdamW(_parameter_groups(clip), lr=LEARNING_RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    _, truth = caption_table()
    for step, (pictures, labels, chosen) in enumerate(batches, start=1):
        image_features = clip.encode_image(_preprocess(pictures), normalize=True)  # (B, E)
        text_features = clip.encode_text(text[chosen], normalize=True)  # (T, E)
        logits = LOGIT_SCALE * image_features @ text_features.T
        loss = contrastive_loss(logits, truth[labels][:, chosen])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        report(step, steps, loss.item())
    nn.init.constant_(clip.logit_scale, math.log(LOGIT_SCALE))


def _parameter_groups(clip: "CLIP") -> list[dict[str, Any]]:
    """Weight decay for matrices only, not for gains, biases and the logit scale."""
    matrices = [parameter for parameter in clip.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in clip.parameters() if parameter.ndim < 2]
    return [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]


def _rate(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to zero, as a factor of the learning rate."""
    warmup = min(WARMUP, steps // 10 + 1)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + np.cos(np.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))


def _preprocess(pictures: Tensor) -> Tensor:
    """RGB uint8 (B, 32, 32, 3) -> CLIP's normalised pixels (B, 3, 32, 32)."""
    from mmrl_core.clip.backbone import OPENAI_MEAN, OPENAI_STD

    mean, std = torch.tensor(OPENAI_MEAN).view(3, 1, 1), torch.tensor(OPENAI_STD).view(3, 1, 1)
    return (pictures.permute(0, 3, 1, 2).float() / 255 - mean) / std


def _state_to_save(clip: "CLIP", token_ids: Tensor) -> dict[str, Tensor]:
    """The whole model in half precision, but of the token embedding only the rows that were trained."""
    from mmrl_core.clip.bundled import new_clip

    state = clip.state_dict()
    rows, trained = state.pop("token_embedding.weight"), state["positional_embedding"]
    positions = new_clip(MODEL_CFG).positional_embedding.detach()
    positions[: len(trained)] = trained
    state = {**state, "positional_embedding": positions, "token_embedding.rows": rows}
    halves = {name: value.half().contiguous() for name, value in state.items()}
    return {**halves, "token_embedding.ids": token_ids.int()}


def _card(steps: int, seed: int, figures: dict[str, dict[str, float]], sha256: str) -> dict[str, Any]:
    texts, _ = caption_table()
    training = {
        "steps": steps,
        "seed": seed,
        "batch": BATCH,
        "renders": steps * BATCH,
        "concepts": len(CONCEPTS),
        "captions": len(texts),
        "learning_rate": LEARNING_RATE,
        "weight_decay": WEIGHT_DECAY,
        "threads": THREADS,
    }
    return {
        "name": "tiny",
        "model_cfg": MODEL_CFG,
        "token_seed": TOKEN_SEED,
        "sha256": sha256,
        "command": f"mmrl pretrain --out DIR --steps {steps} --seed {seed}",
        "training": training,
        "figures": {"zero_shot_accuracy_on_validation": figures},
    }
