"""What do f_c and f_r become where a CLIP pools by attention? Each alternative, adapted and tested on embedded data.

    python -m benchmarks.pooling [--weights FILE] [--seeds 3] [--set adapter.reg_weight=10] [--out FILE]

A small SigLIP (`siglip.py`) is read from FILE, or trained and written there, in about ten minutes of two cores. Then
MMRL and MMRL++ train on 16 shots of the base classes with the published settings but those of --set, once for every
way to read them (`Reading` in `adapted.py`), dataset and seed; all on one thread. Trained classes are scored by the
fused logits, novel ones by the class logits. Differences are to the first reading, paired by dataset, method and seed;
+- is their standard error. A zero-shot template is chosen on validation images of the base classes.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.pooling import siglip
from benchmarks.pooling.adapted import Frozen, Reading, Towers, measures
from benchmarks.support.table import Column, Table, notes
from mmrl_core.config import AdapterConfig, TrainConfig
from mmrl_core.data.catalog import open_source
from mmrl_core.data.source import Source
from mmrl_core.data.splits import Item, base_novel, sample_few_shot
from mmrl_core.data.views import decode, normalised, test_views, train_view
from mmrl_core.method.adapter import Adapter
from mmrl_core.method.losses import mmrl_loss
from mmrl_core.method.shapes import insertion_layers
from mmrl_core.presets import published
from mmrl_core.training.batches import batches
from mmrl_core.training.fit import lr_at, new_adapter, new_optimizer

SHOTS, METHODS = 16, ("mmrl", "mmrlpp")
READINGS = [
    Reading(), Reading(f_c="both"), Reading(f_r="mean"), Reading(f_r="both"), Reading(scale="own"),
]  # fmt: skip
PARTS = ("base", "novel", "hm")
DIFFERENCES = [Column(f"{part} -", f"{part}_difference", width=16) for part in PARTS]
READING = [Column("f_c", "f_c", width=9), Column("f_r", "f_r", width=7), Column("scale", "scale", width=10)]
COLUMNS = [
    Column("dataset", "dataset", width=9), Column("method", "method", width=8), *READING,
    *(Column(part, part, ".1f", 7) for part in PARTS), *DIFFERENCES, Column("s", "seconds", ".1f", 6),
]  # fmt: skip


class Half(NamedTuple):
    """The test images of one half of the classes, their labels among it, and its classes."""

    images: Frozen
    labels: Tensor
    classes: Frozen


class Data:
    """One dataset as the frozen towers see it."""

    def __init__(self, key: str, towers: Towers):
        self.key, self.towers = key, towers
        self.source: Source = open_source(key, "")
        self.halves = base_novel(range(len(self.source.class_names)))
        self.template = max(self.source.templates, key=self._validated)
        self.base, self.novel = (self._half(self.source.test, labels, self.template) for labels in self.halves)

    def _validated(self, template: str) -> float:
        return accuracy(*zero_shot(self._half(self.source.val, self.halves[0], template)))

    def _half(self, items: list[Item], labels: list[int], template: str) -> Half:
        mine = [item for item in items if item.label in labels]
        views = test_views([decode(self.source.read(item), item.path) for item in mine], siglip.VIEWS)
        names = [self.source.class_names[label] for label in labels]
        truth = torch.tensor([labels.index(item.label) for item in mine])
        return Half(self.towers.images(views), truth, self.towers.classes(names, template))

    def training(self, train: TrainConfig) -> tuple[list[Frozen], Tensor]:
        """The augmented views of every epoch, and labels, of the base classes' few shots."""
        chosen, _ = sample_few_shot(self.source.train, SHOTS, train.seed)
        items = [self.source.train[index] for index in chosen if self.source.train[index].label in self.halves[0]]
        images = [decode(self.source.read(item), item.path) for item in items]
        epochs = []
        for epoch in range(train.epochs):
            pairs = zip(images, items, strict=True)
            views = [train_view(image, siglip.VIEWS, train.seed, epoch, item.path) for image, item in pairs]
            epochs.append(self.towers.images(normalised(torch.stack(views), siglip.VIEWS)))
        return epochs, torch.tensor([self.halves[0].index(item.label) for item in items])


def zero_shot(half: Half) -> tuple[Tensor, Tensor]:
    return half.images.zero_shot @ half.classes.zero_shot.T, half.labels


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """In per cent."""
    return 100 * (logits.argmax(1) == labels).double().mean().item()


def figures(base: float, novel: float) -> dict[str, float]:
    return {"base": base, "novel": novel, "hm": 2 * base * novel / max(base + novel, 1e-9)}


def trained(adapter: Adapter, data: Data, views: list[Frozen], labels: Tensor, train: TrainConfig, reading: Reading
            ) -> Adapter:  # fmt: skip
    """The adapter after all steps: each a pass with tokens through both towers."""
    towers, config, classes = data.towers, adapter.config, data.base.classes
    optimizer = new_optimizer(adapter, train.lr)
    for epoch, frozen in enumerate(views):
        optimizer.param_groups[0]["lr"] = lr_at(epoch, train)
        for indices in batches(len(labels), train, epoch):
            w = towers.text_features(classes.trunk, adapter)
            out = towers.forward(frozen.trunk[indices], w, adapter, reading)
            terms = mmrl_loss(out, labels[indices], frozen.zero_shot[indices], classes.zero_shot,
                              alpha=config.alpha, reg_weight=config.reg_weight)  # fmt: skip
            optimizer.zero_grad()
            terms.total.backward()
            optimizer.step()
    return adapter


@torch.inference_mode()
def tested(adapter: Adapter, data: Data, reading: Reading) -> dict[str, float]:
    outs = []
    for half in (data.base, data.novel):
        w = data.towers.text_features(half.classes.trunk, adapter)
        outs.append(data.towers.forward(half.images.trunk, w, adapter, reading))
    base, novel = outs
    return figures(accuracy(base.logits_fused, data.base.labels), accuracy(novel.logits_class, data.novel.labels))


def settings(key: str, method: str, seed: int, changed: dict[str, float]) -> tuple[Any, Any]:
    """The published AdapterConfig and TrainConfig of a run, but for what is changed."""
    values = {**published(key, method, siglip.LAYERS), **changed, "train.precision": "float32"}
    parts = [{name.split(".")[1]: value for name, value in values.items() if name.startswith(part)}
             for part in ("adapter.", "train.")]  # fmt: skip
    return AdapterConfig(method=method, **parts[0]), TrainConfig(seed=seed, **parts[1])


def measured(clip: torch.nn.Module, tokenizer: siglip.Tokenizer, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for every dataset, method, seed and reading."""
    rows = []
    for key in options.datasets:
        n_insert = insertion_layers(settings(key, METHODS[0], 1, options.changed)[0], measures(clip))
        data = Data(key, Towers(clip, tokenizer, n_insert))
        table = Table(f"{key}, {data.template!r}", COLUMNS)
        frozen = [accuracy(*zero_shot(half)) for half in (data.base, data.novel)]
        table.add({"dataset": key, "method": "frozen", **figures(*frozen)})
        for method in METHODS:
            mine = [row for seed in range(1, options.seeds + 1) for row in of_seed(data, method, seed, options.changed)]
            table.extend(summary(mine))
            rows += mine
            if options.out:
                options.out.write_text(json.dumps({"changed": options.changed, "rows": rows}, indent=1))
    return rows


def of_seed(data: Data, method: str, seed: int, changed: dict[str, float]) -> Iterator[dict[str, Any]]:
    """A row for every reading, all of which see the same views in the same order from the same start."""
    config, train = settings(data.key, method, seed, changed)
    views, labels = data.training(train)
    for reading in READINGS:
        start = time.perf_counter()
        adapter = trained(new_adapter(config, measures(data.towers.clip), seed), data, views, labels, train, reading)
        row = {"dataset": data.key, "method": method, "seed": seed, "seconds": time.perf_counter() - start}
        yield {**row, **reading._asdict(), **tested(adapter, data, reading)}


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for every reading: means, and paired differences to the first reading with their standard error."""
    of = [[row for row in rows if row.items() >= reading._asdict().items()] for reading in READINGS]
    lines = []
    for mine in of:
        line = {**mine[0], **{key: mean(row[key] for row in mine) for key in (*PARTS, "seconds")}}
        for part in PARTS if mine is not of[0] else ():
            each = [row[part] - first[part] for row, first in zip(mine, of[0], strict=True)]
            error = stdev(each) / len(each) ** 0.5 if len(each) > 1 else float("nan")
            line[f"{part}_difference"] = f"{mean(each):+.1f} +- {error:.1f}"
        lines.append(line)
    return lines


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=Path("small_siglip.safetensors"))
    parser.add_argument("--steps", type=int, default=siglip.STEPS, help="of pretraining, where there are no weights")
    parser.add_argument("--datasets", type=lambda text: text.split(","), default=["digits", "objects"])
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--set", dest="changed", action="append", default=[], help="such as adapter.reg_weight=10")
    parser.add_argument("--out", type=Path, help="a JSON file for every run")
    options = parser.parse_args()
    options.changed = {key: json.loads(value) for key, value in (pair.split("=") for pair in options.changed)}
    return options


def pretrained(options: argparse.Namespace) -> tuple[torch.nn.Module, siglip.Tokenizer]:
    def report(step: int, loss: float, scale: float) -> None:
        if step % 100 == 0:
            print(f"step {step} of {options.steps}: loss {loss:.2f}, scale {scale:.1f}", flush=True)

    if not options.weights.exists():
        siglip.pretrain(options.weights, options.steps, report)
    return siglip.load(options.weights)


def main() -> None:
    options = parsed()
    torch.set_num_threads(1)
    clip, tokenizer = pretrained(options)
    print(f"learned scale {clip.logit_scale.exp().item():.1f}, bias {clip.logit_bias.item():.1f}; {options.changed}")
    rows = measured(clip, tokenizer, options)
    table = Table("all datasets, methods and seeds", [*READING, *COLUMNS[5:8], *DIFFERENCES])
    table.extend(summary(rows))
    notes("differences to the first line in points, and their standard error; pairs of a dataset share test images")


if __name__ == "__main__":
    main()
