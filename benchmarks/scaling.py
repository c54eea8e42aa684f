"""A training step on W workers, on paper: operations and bytes of each, and how efficient W GPUs would be.

Every worker takes B / W images and C / W classes of a ViT-B/16, exchanges class features and sums gradients. The rates
of GPUs and networks are assumptions, named below the table; docs/scaling.md has the bytes beside counted ones.

    python -m benchmarks.scaling FOUND.json [--link 10,100]

predicts two nodes with a GPU each from what `python -m benchmarks.gpu --out FOUND.json` measured on one.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.support.cases import Plan
from benchmarks.support.costs import (
    BACKWARD,
    FORWARD,
    Shape,
    adapted_images,
    frozen_images,
    heads_of_ours,
    shared_prefix,
    suffixes,
)
from benchmarks.support.table import Column, Table, notes
from mmrl_core.clip.packing import pack

PARAMETERS = {"mmrl": 4_992_256, "mmrlpp": 813_312}  # of a ViT-B/16
SUFFIX, PREFIX = 6, 10  # tokens of a class that differ, and of the shared beginning with its representation tokens
CHUNK = 4096 // SUFFIX  # classes beyond which suffixes are computed again in the backward pass
FLOPS, BANDWIDTH, LATENCY, LAUNCH = 150e12, 12.5e9, 20e-6, 15e-3  # a GPU in bf16, 100 Gbit/s, a hop, a step's launches
WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LINKS = (10.0, 25.0, 100.0)  # Gbit/s
COLUMNS = [
    Column("method", "method", "s", 9), Column("batch", "batch", "d", 6), Column("classes", "classes", "d"),
    Column("workers", "workers", "d"), Column("GFLOP each", "gflop", ".0f", 12), Column("MB sent", "mb", ".1f", 10),
    Column("step, ms", "ms", ".1f", 10), Column("speed-up", "speedup", ".1f", 10),
    Column("efficiency", "efficiency", ".0%", 12),
]  # fmt: skip


class Exchange(NamedTuple):
    """Bytes that a worker sends in a step, and receives as many: rings, whose W - 1 hops each take a latency."""

    features: float  # class features gathered
    feature_gradients: float  # and the sum of what all say of them
    gradients: float  # of the adapter's parameters, summed

    @property
    def total(self) -> float:
        return sum(self)


def wire_bytes(workers: int, classes: int, embed: int, parameters: int) -> Exchange:
    """Bytes sent by each of W workers in a step, in float32."""
    share = (workers - 1) / workers
    padded = -(-classes // workers) * workers * embed * 4  # shares of classes are filled up to the largest
    features = classes * embed * 4
    return Exchange(share * padded, 2 * share * features, 2 * share * parameters * 4)


def worker_flops(method: str, batch: float, classes: int) -> float:
    """Operations of a worker with so many images and classes."""
    shape = Shape(method, batch, classes, 7, 5, 12, 768, 197, 768, 12, 512, 77, 512, 512, (4, 64))
    total = frozen_images(shape) + adapted_images(shape) + shared_prefix(shape, PREFIX) + heads_of_ours(shape)
    packing = pack([SUFFIX] * classes, torch.device("cpu"))
    again = 2 if classes > CHUNK else 1
    total += suffixes(shape, packing, PREFIX, FORWARD).times(again) + suffixes(shape, packing, PREFIX, BACKWARD)
    return total.flops


def predicted(method: str, batch: int, classes: int, workers: int) -> dict:
    flops = worker_flops(method, -(-batch // workers), -(-classes // workers))
    sent = wire_bytes(workers, classes, 512, PARAMETERS[method]).total
    hops = 5 * (workers - 1)  # one gather, two sums of two rounds each
    seconds = max(flops / FLOPS, LAUNCH) + (sent / BANDWIDTH + hops * LATENCY if workers > 1 else 0)
    return {"method": method, "batch": batch, "classes": classes, "workers": workers, "gflop": flops / 1e9,
            "mb": sent / 1e6, "ms": 1e3 * seconds}  # fmt: skip


def measure(plan: Plan) -> list[dict]:
    """The prediction for batches of 32 and 256; nothing is measured."""
    table = Table("Scaling of a ViT-B/16's training step, on paper", COLUMNS)
    for method in plan.methods:
        for batch in (32, 256):
            for classes in (100, 1000, 21000):
                rows = [
                    predicted(method, batch, classes, workers) for workers in WORKERS if workers <= min(batch, classes)
                ]
                for row in rows:
                    speedup = rows[0]["ms"] / row["ms"]
                    table.add({**row, "speedup": speedup, "efficiency": speedup / row["workers"]})
    notes(
        f"Assumed: {FLOPS / 1e12:.0f} TFLOP/s a GPU, {BANDWIDTH / 1e9:g} GB/s a link, {1e6 * LATENCY:.0f} us a hop,",
        f"and {1e3 * LAUNCH:.0f} ms to launch a step's kernels, below which no share of a batch gets.",
    )
    return table.rows


TWO_NODES = [
    Column("method", "method", "s", 9), Column("precision", "precision", "s", 11), Column("batch", "batch", "d", 6),
    Column("classes", "classes", "d"), Column("Gbit/s", "link", "g", 8), Column("one, ms", "one_ms", ".2f", 10),
    Column("work, ms", "work_ms", ".2f", 10), Column("MB sent", "mb", ".2f", 10),
    Column("wire, ms", "wire_ms", ".2f", 10), Column("two, ms", "ms", ".2f", 10),
    Column("efficiency", "efficiency", ".0%", 12),
]  # fmt: skip


def two_nodes(found: dict[str, Any], links: Sequence[float] = LINKS) -> Iterator[dict[str, Any]]:
    """A step on two nodes with a GPU each, by what `benchmarks.gpu` found on one: a row a measured step and link.

    Work: half of the operations at the best rate that a step of that precision reached, but no less than launching the
    step's kernels takes, which halving does not shorten; several workers replay no graph. The wire is not overlapped
    with work. Raises ValueError where nothing of steps was found.
    """
    rows = [row["more"] for row in found["parts"].get("steps", {}).get("rows", []) if "half_gflop" in row["more"]]
    if not rows:
        raise ValueError("no steps were measured; run `python -m benchmarks.gpu steps --out FOUND.json`")
    best: dict[str, float] = {}  # GFLOP a millisecond
    for row in rows:
        best[row["precision"]] = max(best.get(row["precision"], 0), row["whole_gflop"] / (row["ms"] + row["frozen_ms"]))
    for row in rows:
        one = row["ms"] + row["frozen_ms"]
        work = max(row["half_gflop"] / best[row["precision"]], row.get("launched_ms", 0))
        sent = wire_bytes(2, row["classes"], row["embed"], row["parameters"]).total
        for link in links:
            wire = 1e3 * (sent / (link * 1e9 / 8) + 5 * LATENCY)
            yield {**row, "link": link, "one_ms": one, "work_ms": work, "mb": sent / 1e6, "wire_ms": wire,
                   "ms": work + wire, "efficiency": one / (2 * (work + wire))}  # fmt: skip


def rates(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description="Two nodes, from one card.")
    parser.add_argument("found", type=Path, help="what `python -m benchmarks.gpu --out` wrote")
    parser.add_argument("--link", type=rates, default=LINKS, help="rates of links in Gbit/s, one direction: 10,100")
    options = parser.parse_args(words)
    try:
        found = json.loads(options.found.read_text())
        rows = list(two_nodes(found, options.link))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    table = Table(f"Two nodes, predicted from one: {found['device']}{', toy sizes' if found['toy'] else ''}", TWO_NODES)
    table.extend(rows)
    notes("one: measured. work: of each of the two. Nothing of two nodes was measured; frozen features are computed.")


if __name__ == "__main__":
    main()
