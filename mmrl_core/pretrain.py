"""Pretrain the bundled backbone `tiny`: a true CLIP, small enough for one CPU core, on procedural glyphs."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from mmrl_core.files import sha256_file, write_bytes, write_json
from mmrl_core.glyphs import CONCEPTS, SIZE, captions, render

# Dimension letters: B pictures, T captions of a batch, C concepts, L caption length, E embed_dim.
WIDTH, LAYERS = 128, 6
MODEL_CFG = {
    "embed_dim": WIDTH,
    "vision_cfg": {"image_size": SIZE, "patch_size": 8, "layers": LAYERS, "width": WIDTH, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": 4, "layers": LAYERS},
    "quick_gelu": False,
}
TOKEN_SEED = 0
STEPS, BATCH, WARMUP = 2500, 128, 100
LEARNING_RATE, WEIGHT_DECAY, LARGEST_SCALE = 1e-3, 0.1, 100.0
THREADS = 1  # sums in another order would give other bytes


def pretrain(
    out: str | Path,
    *,
    steps: int = STEPS,
    seed: int = 0,
    workers: int = 1,
    report: Callable[[int, int, float], None] | None = None,
) -> dict:
    """Train `tiny` from scratch; write `tiny.safetensors` and `tiny.json` into `out`; return what the JSON says.

    Runs on one CPU thread whatever the caller uses, so one machine gives the same bytes for the same steps and seed;
    `workers` processes render the pictures (0: this one does) and change nothing but the time.
    `report(step, steps, loss)` is called after each step.
    """
    from mmrl_core.backbone import expand

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
    """Batch number -> pictures (B, 32, 32) uint8, their concepts (B,) and the captions to set against them (T,)."""

    def __init__(self, steps: int, seed: int):
        self.steps, self.seed = steps, seed
        _, self.truth = caption_table()

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        first = (self.seed << 32) + step * BATCH
        pictures, concepts = zip(*(render(first + item) for item in range(BATCH)), strict=True)
        labels = torch.tensor([CONCEPTS.index(concept) for concept in concepts])
        return torch.from_numpy(np.stack(pictures)), labels, self._choose_captions(step, labels)

    def _choose_captions(self, step: int, labels: Tensor) -> Tensor:
        """One caption of each concept in the batch: the loss weighs concepts, not their frequencies."""
        rng = np.random.default_rng((self.seed, step))
        return torch.tensor([rng.choice(np.flatnonzero(self.truth[label])) for label in labels.unique()]).unique()


def caption_table() -> tuple[list[str], Tensor]:
    """Every caption once, and which concepts it is true of: (C, captions) bool."""
    texts = sorted({text for concept in CONCEPTS for text in captions(concept)})
    truth = [[text in set(captions(concept)) for text in texts] for concept in CONCEPTS]
    return texts, torch.tensor(truth)


def contrastive_loss(logits: Tensor, positives: Tensor) -> Tensor:
    """Mean of both directions' cross-entropy, each target spread evenly over the true pairs of its row.

    `logits` and `positives` are (B, T), pictures by captions; every row and column holds a true pair.
    """
    targets = positives.float()
    to_text = cross_entropy(logits, targets / targets.sum(1, keepdim=True))
    to_image = cross_entropy(logits.T, targets.T / targets.T.sum(1, keepdim=True))
    return (to_text + to_image) / 2


def zero_shot_figures(clip: nn.Module) -> dict:
    """Zero-shot accuracy in per cent on the validation items of the digits: all ten, 0-4, 5-9. No other is read."""
    from mmrl_core.backbone import Backbone
    from mmrl_core.data.catalog import DIGITS, open_source
    from mmrl_core.data.views import decode, test_views

    source, backbone = open_source(DIGITS, ""), Backbone.from_clip(clip, name="tiny")
    images = [decode(source.read(item), item.path) for item in source.val]
    labels = torch.tensor([item.label for item in source.val])
    views = test_views(images, SIZE, backbone.mean, backbone.std)
    scores = backbone.encode_image(views) @ backbone.encode_text(source.class_names, source.template).T
    splits = {"all": range(10), "base": range(5), "novel": range(5, 10)}
    return {name: _accuracy(scores, labels, list(classes)) for name, classes in splits.items()}


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
    from mmrl_core.backbone import tokenizer_for

    texts, _ = caption_table()
    tokens = tokenizer_for("tiny")(texts)
    length = int((tokens.argmax(1) + 1).max())
    return torch.unique(tokens[:, :length], return_inverse=True)


def _token_table() -> Tensor:
    """What every token embedding starts from, and the loader's value for tokens that no caption holds."""
    generator = torch.Generator().manual_seed(TOKEN_SEED)
    return torch.randn(MODEL_CFG["text_cfg"]["vocab_size"], WIDTH, generator=generator) * 0.02


def _compact_clip(token_ids: Tensor, length: int) -> nn.Module:
    """`tiny` with only the tokens and positions of captions. Ids keep their order, so end-of-text stays the largest."""
    from mmrl_core.backbone import new_clip

    text_cfg = {**MODEL_CFG["text_cfg"], "vocab_size": len(token_ids), "context_length": length}
    clip = new_clip({**MODEL_CFG, "text_cfg": text_cfg})
    with torch.no_grad():
        clip.token_embedding.weight.copy_(_token_table()[token_ids])
    return clip


def _fit(clip: nn.Module, text: Tensor, batches: DataLoader, steps: int, report: Callable) -> None:
    optimizer = torch.optim.AdamW(_parameter_groups(clip), lr=LEARNING_RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    _, truth = caption_table()
    for step, (pictures, labels, chosen) in enumerate(batches, start=1):
        image_features = clip.encode_image(_preprocess(pictures), normalize=True)  # (B, E)
        text_features = clip.encode_text(text[chosen], normalize=True)  # (T, E)
        logits = clip.logit_scale.exp() * image_features @ text_features.T
        loss = contrastive_loss(logits, truth[labels][:, chosen])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(max=float(np.log(LARGEST_SCALE)))
        report(step, steps, loss.item())


def _parameter_groups(clip: nn.Module) -> list[dict]:
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
    """Grey uint8 (B, 32, 32) -> CLIP's normalised RGB (B, 3, 32, 32)."""
    from mmrl_core.backbone import OPENAI_MEAN, OPENAI_STD

    mean, std = torch.tensor(OPENAI_MEAN).view(3, 1, 1), torch.tensor(OPENAI_STD).view(3, 1, 1)
    return (pictures[:, None].float() / 255 - mean) / std


def _state_to_save(clip: nn.Module, token_ids: Tensor) -> dict[str, Tensor]:
    """The whole model in half precision, but of the token embedding only the rows that were trained."""
    from mmrl_core.backbone import new_clip

    state = clip.state_dict()
    rows, trained = state.pop("token_embedding.weight"), state["positional_embedding"]
    positions = new_clip(MODEL_CFG).positional_embedding.detach()
    positions[: len(trained)] = trained
    state = {**state, "positional_embedding": positions, "token_embedding.rows": rows}
    halves = {name: value.half().contiguous() for name, value in state.items()}
    return {**halves, "token_embedding.ids": token_ids.int()}


def _card(steps: int, seed: int, figures: dict, sha256: str) -> dict:
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
        "figures": {"zero_shot_accuracy_on_validation_digits": figures},
    }
