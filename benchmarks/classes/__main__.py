"""What many classes cost, of this build and of another commit: build, step, loading, prediction, evaluation.

    python -m benchmarks.classes --against COMMIT [--classes 5000]
    python -m benchmarks.classes --classes 21000          # this build alone, with the peak of the whole process

A ViT-B-16 with random weights, batches of 4 in float32, made-up names of one to four words. Each build measures itself
in a process of its own; the other one in a checkout, in the environment of this one.
"""

import argparse
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


def measure(count: int, backbone_name: str) -> dict[str, float]:
    """Seconds by what is done. Runs on any commit that has these modules."""
    from mmrl_core.clip.backbone import load_backbone
    from mmrl_core.clip.towers import Frozen
    from mmrl_core.config import AdapterConfig
    from mmrl_core.method.adapter import save_adapter
    from mmrl_core.method.model import AdaptedCLIP
    from mmrl_core.predict import Predictor
    from mmrl_core.training.fit import new_adapter, new_optimizer
    from mmrl_core.training.process import keep_freed_memory
    from mmrl_core.training.step import TrainingStep

    keep_freed_memory()
    names, backbone = class_names(count), load_backbone(backbone_name, "random:0")
    adapter = new_adapter(AdapterConfig(method="mmrl", insertion_depth=backbone.depth // 2), backbone, seed=0)
    models: list[AdaptedCLIP] = []
    found = {"build": timed(lambda: models.append(AdaptedCLIP(backbone, adapter, names, TEMPLATE)))}
    found["build again"] = timed(lambda: AdaptedCLIP(backbone, adapter, names, TEMPLATE))
    model = models[0]
    step = TrainingStep(model, [new_optimizer(adapter, 1e-4)], "float32")
    trunk = torch.randn(BATCH, backbone.image_tokens, backbone.image_width)
    frozen = Frozen(trunk, torch.nn.functional.normalize(torch.randn(BATCH, backbone.embed_dim), dim=-1))
    found["step"] = timed(lambda: step(frozen, torch.arange(BATCH)), repeats=2 if count <= 5000 else 1)
    with tempfile.TemporaryDirectory() as folder:
        card = {"class_names": names, "template": TEMPLATE}
        found["save"] = timed(lambda: save_adapter(folder, adapter, backbone, card))
        found["Predictor.load"] = timed(lambda: Predictor.load(folder))
        predictor = Predictor.load(folder)
    found |= _predictions(predictor)
    found |= _evaluation(model, names)
    return found


def _predictions(predictor) -> dict[str, float]:
    """Answers to images whose features are there: what classes add to the image tower's pass. The five likeliest are
    what `mmrl predict` prints and the server answers."""
    features = predictor.model.features(torch.randn(PREDICTED, 3, *[predictor.model.backbone.image_size] * 2))
    predictor._features = lambda images: features
    views, classes = [torch.zeros(1)] * PREDICTED, predictor.classes()

    def sorted_all() -> None:
        for one in predictor.score(views, [classes] * PREDICTED):
            sorted(one.probabilities.items(), key=lambda pair: -pair[1])[:5]

    return {
        "16 answers, all, sorted": timed(sorted_all, REPEATS),
        "16 answers, top 5": timed(lambda: predictor.score(views, [classes] * PREDICTED, 5), REPEATS),
    }


def _evaluation(model, names: list[str]) -> dict[str, float]:
    """Metrics of images whose features are there."""
    drawn = torch.nn.functional.normalize(torch.randn(TESTED, model.backbone.embed_dim), dim=-1)
    truth, text = torch.arange(TESTED) % len(names), model.text_features().detach()
    places = list(range(len(names)))
    try:
        from mmrl_core.evaluation.figures import figures_of
        from mmrl_core.evaluation.scores import ADAPTED, Encoded
        from mmrl_core.method.model import ImageFeatures
    except ImportError:
        from mmrl_core.evaluation.class_metrics import class_metrics

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
        other = f"{then[name]:12.3f}{then[name] / value:8.1f} x" if then else ""
        print(f"{name:28}{value:12.3f}{other}")


if __name__ == "__main__":
    main()
