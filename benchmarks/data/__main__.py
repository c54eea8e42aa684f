"""`python -m benchmarks.data [OUT.json]`: preparing, reading and streaming images, as ratios to decoding alone.

Drawn JPEGs of three sizes, and Caltech101 where MMRL_TEST_DATA names a folder that holds it. Best of three rounds.
"""

import argparse
import io
import json
import os
import tempfile
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
from PIL import Image

from mmrl_core.data.catalog import open_source
from mmrl_core.data.images import decode
from mmrl_core.data.sets import read_set
from mmrl_core.data.shards import stream_examples, write_few_shot, write_pool
from mmrl_core.data.source import Source
from mmrl_core.data.splits import Item

ROUNDS, CLASSES = 3, 10
SIZES = {64: 4000, 256: 1000, 512: 300}  # pixels a side -> images
WARM_UP = 16


def best(work: Callable[[], object]) -> float:
    """Seconds of the fastest round."""
    times = []
    for _ in range(ROUNDS):
        start = perf_counter()
        work()
        times.append(perf_counter() - start)
    return min(times)


def jpegs(size: int, count: int) -> list[bytes]:
    """Blurred colours with a little noise, which compress about as photographs do."""
    rng, encoded = np.random.default_rng(size), []
    for _ in range(count):
        blurred = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((size, size))
        noisy = np.asarray(blurred) + rng.normal(0, 6, (size, size, 3))
        file = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, format="JPEG", quality=90)
        encoded.append(file.getvalue())
    return encoded


def drawn_source(images: list[bytes]) -> Source:
    """All images as train items and again as test items."""
    items = [Item(f"{i}.jpg", i % CLASSES, f"class {i % CLASSES}") for i in range(len(images))]
    names = [f"class {label}" for label in range(CLASSES)]
    return Source("drawn", ["a {}."], names, items, [], items, lambda item: images[int(item.path[:-4])])


def pillow_rates(images: list[bytes]) -> dict[str, float]:
    """Images a second that Pillow alone decodes: in one thread, and in two that share the list."""

    def pixels(part: list[bytes]) -> list[Image.Image]:
        return [Image.open(io.BytesIO(image)).convert("RGB") for image in part]

    def both() -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(pixels, (images[::2], images[1::2])))

    return {"one_thread": len(images) / best(lambda: pixels(images)), "two_threads": len(images) / best(both)}


def read_rates(size: int, images: list[bytes], folder: Path) -> dict:
    """Preparing a few-shot set of the images and reading it back, beside Pillow alone."""
    source, shots, n = drawn_source(images), len(images) // CLASSES, len(images)
    made = [folder / f"{size}-{number}" for number in range(ROUNDS)]
    prepared = iter(made)

    def prepare() -> None:
        out = next(prepared)
        out.mkdir()
        write_few_shot(source, shots, 1, out)

    prepare_rate = n / best(prepare)
    read_rate = n / best(lambda: read_set(made[0], "train", ("base", "novel"), "a {}."))
    pillow = pillow_rates(images)
    limit = max(pillow.values())
    return {"size": size, "n": n, "pillow": pillow, "prepare": prepare_rate, "prepare_ratio": prepare_rate / limit,
            "read_set": read_rate, "read_set_ratio": read_rate / limit}  # fmt: skip


def caltech(folder: Path) -> dict | None:
    """Seconds to prepare every image of Caltech101: train, val and test."""
    root = os.environ.get("MMRL_TEST_DATA")
    if not root:
        return None
    source = open_source("caltech101", root)
    source = replace(source, val=source.train + source.val)
    outs = iter([folder / f"caltech-{number}" for number in range(ROUNDS)])

    def prepare() -> None:
        out = next(outs)
        out.mkdir()
        write_pool(source, out)

    return {"n": len(source.val) + len(source.test), "seconds": best(prepare)}


def streaming_peak(source: Source, folder: Path) -> dict:
    """Megabytes allocated at the most while a test set is streamed and decoded."""
    folder.mkdir()
    write_pool(source, folder)
    shards = sum(shard.stat().st_size for shard in folder.glob("*.tar"))
    tracemalloc.start()
    for half in ("base", "novel"):
        for example in stream_examples(folder, "test", half):
            decode(example.image, example.path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"shards_mb": shards / 1e6, "peak_mb": peak / 1e6}


def measure(folder: Path) -> dict:
    images = {size: jpegs(size, count) for size, count in SIZES.items()}
    read_rates(WARM_UP, jpegs(WARM_UP, CLASSES), folder)
    rows = [read_rates(size, images[size], folder) for size in SIZES]
    peaks = [streaming_peak(drawn_source(images[64][:n]), folder / f"peak {n}") for n in (100, 400, 4000)]
    machine = {"cores": os.cpu_count(), "load": os.getloadavg()[0]}
    return {"machine": machine, "rows": rows, "caltech101": caltech(folder), "streaming": peaks[1:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, metavar="OUT.json", help="also write the figures there")
    out: Path | None = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    print(f"Images a second on {found['machine']['cores']} cores, load {found['machine']['load']:.1f};"
          " ratio: of Pillow alone, in one thread or two, whichever is faster")  # fmt: skip
    print(f"{'pixels':>6}{'Pillow 1':>10}{'Pillow 2':>10}{'prepare':>10}{'ratio':>7}{'read_set':>10}{'ratio':>7}")
    for row in found["rows"]:
        print(f"{row['size']:6}{row['pillow']['one_thread']:10.0f}{row['pillow']['two_threads']:10.0f}"
              f"{row['prepare']:10.0f}{row['prepare_ratio']:7.2f}"
              f"{row['read_set']:10.0f}{row['read_set_ratio']:7.2f}")  # fmt: skip
    if found["caltech101"]:
        print(f"Caltech101, {found['caltech101']['n']} images prepared in {found['caltech101']['seconds']:.1f} s")
    few, many = found["streaming"]
    print(f"streaming {many['shards_mb'] / few['shards_mb']:.0f} times the images takes"
          f" {many['peak_mb'] / few['peak_mb']:.2f} times the memory ({many['peak_mb']:.1f} MB)")  # fmt: skip
    print(json.dumps(found))
    if out:
        out.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
