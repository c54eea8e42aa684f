"""What many classes cost, of this build and of another commit: build, step, loading, prediction, evaluation.

    python -m benchmarks.classes --against COMMIT [--classes 5000]
    python -m benchmarks.classes --classes 21000          # this build alone, with the peak of the whole process

A ViT-B-16 with random weights, batches of 4 in float32, made-up names of one to four words. Each build measures itself
in a process of its own; the other one in a checkout, in the environment of this one.
"""

import argparse
import importlib
import inspect
import itertools
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
WORDS = ["red", "small", "old", "hairy", "striped", "northern", "round", "giant", "wild", "plain", "spotted", "dwarf"]
NOUNS = [
    "dog",
    "car",
    "cup",
    "warbler",
    "finch",
    "harness",
    "lantern",
    "orchid",
    "beetle",
    "kettle",
    "gasket",
    "viaduct",
]
TEMPLATE, BATCH, PREDICTED, TESTED, REPEATS = "a photo of a {}.", 4, 16, 256, 5


def class_names(count: int) -> list[str]:
    """Distinct names, the short ones first."""
    all_of_them = (" ".join(words) for more in range(5) for words in itertools.product(*[WORDS] * more, NOUNS))
    return list(itertools.islice(all_of_them, count))


def timed(work: Callable[[], object], repeats: int = 1) -> float:
    """Seconds of the fastest run."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def found_in(name: str, *modules: str) -> Any:
    """Something of the package, which older commits have in another module."""
    for module in modules:
        try:
            return getattr(importlib.import_module(f"mmrl_core.{module}"), name)
        except (ImportError, AttributeError):
            continue
    raise ImportError(f"no {name} in {', '.join(modules)}")


def measure(count: int, backbone_name: str) -> dict[str, float]:
    """Seconds by what is done. Runs on older commits as well."""
    found_in("keep_freed_memory", "training.process", "memory")()
    names = class_names(count)
    backbone = found_in("load_backbone", "clip.backbone", "backbone")(backbone_name, "random:0")
    config = found_in("AdapterConfig", "config")(method="mmrl", insertion_depth=backbone.depth // 2)
    adapter = found_in("new_adapter", "training.fit", "training")(config, backbone, seed=0)
    new_model, models = found_in("AdaptedCLIP", "method.model", "model"), []
    found = {"build": timed(lambda: models.append(new_model(backbone, adapter, names, TEMPLATE)))}
    found["build again"] = timed(lambda: new_model(backbone, adapter, names, TEMPLATE))
    found["step"] = timed(lambda: _step(models[0]), repeats=2 if count <= 5000 else 1)
    predictor_type = found_in("Predictor", "predict")
    with tempfile.TemporaryDirectory() as folder:
        card = {"class_names": names, "template": TEMPLATE}
        save = found_in("save_adapter", "method.adapter", "adapter")
        found["save"] = timed(lambda: save(Path(folder), adapter, backbone, card))
        found["Predictor.load"] = timed(lambda: predictor_type.load(folder))
        predictor = predictor_type.load(folder)
    return found | _predictions(predictor) | _evaluation(models[0], names)


def _step(model: Any) -> None:
    """Forward and backward of both towers, from random frozen features."""
    backbone = model.backbone
    trunk = torch.randn(BATCH, backbone.image_tokens, backbone.image_width)
    out = model.from_trunk(trunk)
    torch.nn.functional.cross_entropy(out.logits_fused, torch.arange(BATCH)).backward()
    for parameter in model.adapter.parameters():
        parameter.grad = None


@torch.inference_mode()
def _predictions(predictor: Any) -> dict[str, float]:
    """Answers to images whose features are there: what classes add to the image tower's pass. The five likeliest are
    what `mmrl predict` prints and the server answers; an older commit sorts all."""
    model, side = predictor.model, predictor.model.backbone.image_size
    images = torch.randn(PREDICTED, 3, side, side)
    output = model(images)
    if hasattr(predictor, "_features"):
        features = model.features(images)
        predictor._features = lambda given: features
    else:
        model.forward = lambda *given: output
    views, classes = list(images), predictor.classes()

    def sorted_all() -> None:
        for one in predictor.score(views, [classes] * PREDICTED):
            sorted(one.probabilities.items(), key=lambda pair: -pair[1])[:5]

    has_top = "top_k" in inspect.signature(predictor.score).parameters
    best = (lambda: predictor.score(views, [classes] * PREDICTED, 5)) if has_top else sorted_all
    return {"16 answers, all, sorted": timed(sorted_all, REPEATS), "16 answers, top 5": timed(best, REPEATS)}


def _evaluation(model: Any, names: list[str]) -> dict[str, float]:
    """Metrics of images whose features are there."""
    drawn = torch.nn.functional.normalize(torch.randn(TESTED, model.backbone.embed_dim), dim=-1)
    truth, text = torch.arange(TESTED) % len(names), model.text_features().detach()
    places = list(range(len(names)))
    try:
        from mmrl_core.evaluation.figures import figures_of
        from mmrl_core.evaluation.scores import ADAPTED, Encoded
        from mmrl_core.method.model import ImageFeatures
    except ImportError:
        try:
            from mmrl_core.evaluation.class_metrics import class_metrics
        except ImportError:  # before there were any
            return {}

        def work() -> None:
            for _ in range(2):  # of the adapter and of zero-shot
                probabilities = torch.cat([(100 * part @ text.T).softmax(-1) for part in drawn.split(64)])
                class_metrics(probabilities.numpy(), truth.numpy())

        return {f"metrics of {TESTED} images": timed(work)}
    batches = [Encoded([""] * len(part), own, ImageFeatures(part, part, part))
               for part, own in zip(drawn.split(64), truth.split(64), strict=True)]  # fmt: skip
    return {f"metrics of {TESTED} images": timed(
        lambda: figures_of(model, text, batches, places, places).by_class(ADAPTED))}  # fmt: skip


def in_process(source: Path, options: argparse.Namespace) -> dict[str, float]:
    """What the build of a checkout measures, and its process's peak in GB."""
    command = [sys.executable, "-P", str(Path(__file__)), "--measure", "--classes", str(options.classes),
               "--backbone", options.backbone]  # fmt: skip
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(source)}, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", help="the other commit")
    parser.add_argument("--classes", type=int, default=5000)
    parser.add_argument("--backbone", default="ViT-B-16", help="an open_clip name; its weights are random")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        logging.disable(logging.WARNING)  # open_clip warns that weights are random
        found = measure(options.classes, options.backbone)
        found["peak GB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(json.dumps(found))
        return
    now, then = in_process(ROOT, options), None
    if options.against:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "source")
            subprocess.run(["git", "clone", "-q", ROOT, source], check=True)
            subprocess.run(["git", "checkout", "-q", options.against], cwd=source, check=True)
            then = in_process(source, options)
    print(f"{options.classes} classes, {options.backbone}")
    for name, value in now.items():
        other = f"{then[name]:12.3f}{then[name] / value:8.1f} x" if then and name in then else ""
        print(f"{name:28}{value:12.3f}{other}")


if __name__ == "__main__":
    main()
