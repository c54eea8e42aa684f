"""A model of a ViT-B/16's shape, with random weights: requests a second against batches in this process."""

import os
from pathlib import Path

import torch

from benchmarks.serving import load
from benchmarks.serving.rate import in_process
from benchmarks.serving.servers import ours, running, threads
from flows.registry import versions
from mmrl_core.clip.backbone import load_backbone
from mmrl_core.config import AdapterConfig
from mmrl_core.method.adapter import Adapter, save_adapter
from tests.support import serving

CLIENTS, BATCH, WANTED = 32, 16, 0.9


def register(folder: Path) -> int:
    """A version on weights in a file: those that are drawn anew are not served. Works in the working directory."""
    weights = folder / "vit.pt"
    torch.save(load_backbone("ViT-B-16", "random:1").clip.state_dict(), weights)
    backbone = load_backbone("ViT-B-16", str(weights))
    key = serving.make_run("digits", 3)
    adapter = Adapter(AdapterConfig(method="mmrl", insertion_depth=backbone.depth // 2), backbone)
    card = {"class_names": serving.CLASSES, "template": "a photo of a {}.", "settings": {}, "sources": {},
            "data": {"dataset": "digits", "digest": "d" * 64}}  # fmt: skip
    sha256 = save_adapter(key.model, adapter, backbone, card)["sha256"]
    metrics = key.results() / "metrics.json"
    metrics.write_text(metrics.read_text().replace(earlier(metrics), sha256))
    return versions.register(serving.settings(), key).version


def earlier(metrics: Path) -> str:
    import json

    return json.loads(metrics.read_text())["adapter_sha256"]


def vit(folder: Path, seconds: float) -> None:
    version, cores = register(folder), os.cpu_count() or 1
    torch.set_num_threads(cores)
    scored, both = in_process(serving.predictor(version), BATCH, 5 * BATCH)
    server = ours(folder, f"serving.cpus_per_replica={cores}", f"serving.batch_size={BATCH}", name="mmrl serve, ViT",
                  uri=f"models:/{serving.NAME}/{version}", **threads(cores))  # fmt: skip
    with running(server) as one:
        seen = load.put(one.port, one.questions, CLIENTS, seconds, warm=seconds / 3)
    ratio = seen["per_second"] / scored
    print(
        f"\nViT-B/16, {cores} threads: in this process batches of {BATCH} {scored:.2f} images/s, {both:.2f} with "
        f"decoding; {CLIENTS} clients get {seen['per_second']:.2f} a second {seen['statuses']}, p50 "
        f"{seen['p50_ms']:.0f} ms: {ratio:.2f} of the batches "
        f"(wanted: at least {WANTED}{'' if ratio >= WANTED else ', NOT KEPT'})",
        flush=True,
    )
