"""How many images a second: views made and taken, a search, an evaluation, questions answered."""

import io
import os
from collections.abc import Callable, Iterator
from itertools import count

import torch
from PIL import Image

from benchmarks.gpu.bench import Bench, Row, noise_set
from benchmarks.gpu.speed import frozen_features, ours
from benchmarks.support.cases import class_names, model_of
from mmrl_core.clip.backbone import Backbone
from mmrl_core.config import AdapterConfig, TrainConfig
from mmrl_core.data.parallel import map_in_order
from mmrl_core.data.pixels import pixels
from mmrl_core.data.views import decode, test_squares, train_views
from mmrl_core.method.joint_logits import joint_logits
from mmrl_core.predict import Predictor
from mmrl_core.training.fit import Training, fit, fit_together, groups

PHOTOGRAPH = (500, 375)


def views(bench: Bench) -> Iterator[Row]:
    """Views a second that this machine makes against the images a second that steps on the device take."""
    sizes, backbone = bench.sizes, bench.backbone
    images, batch = [photograph(seed) for seed in range(min(sizes.images, 64))], 8
    epochs = count()

    def made(start: int) -> torch.Tensor:
        part, epoch = images[start : start + batch], next(epochs)
        decoded = [pixels(image, "drawn", backbone.image_size) for image in part]
        return train_views(decoded, backbone.view_settings, 1, epoch, [str(place) for place in range(len(part))])

    def tested(start: int) -> torch.Tensor:
        return test_squares([decode(image, "drawn") for image in images[start : start + batch]], backbone.view_settings)

    cores = os.cpu_count() or 1
    for what, view in (("training", made), ("test", tested)):
        taken = bench.seconds(lambda view=view: list(map_in_order(view, range(0, len(images), batch), size=1)))
        yield Row(f"{what} views of {PHOTOGRAPH[0]} x {PHOTOGRAPH[1]} JPEGs, {cores} cores", len(images) / taken,
                  "images/s", more={"cores": cores})  # fmt: skip
    precision = "bf16" if bench.is_cuda else "float32"
    for classes, size in sizes.cells:
        case = bench.case("mmrlpp", classes, size)
        model = model_of(case, case.adapter(), precision)
        step, inputs = ours(model, case, precision)
        taken = bench.seconds(frozen_features(model, case)) + bench.seconds(lambda step=step, ins=inputs: step(*ins))
        yield Row(f"taken by steps, {classes} classes, batch {size}, {precision}", size / taken, "images/s")


def photograph(seed: int) -> bytes:
    """A JPEG of blurred colours."""
    pixels = torch.randint(0, 256, (24, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).resize(PHOTOGRAPH).save(file, "JPEG", quality=90)
    return file.getvalue()


def search(bench: Bench) -> Iterator[Row]:
    """Trainings of a search's partitions one by one, and together in one step."""
    for backbone in dict.fromkeys([bench.tiny, bench.backbone]) if not bench.toy else [bench.tiny]:
        runs = trainings(backbone, bench.sizes.partitions, 4 if bench.toy else 32)
        together = bench.seconds_once(lambda backbone=backbone, runs=runs: fit_together(backbone, runs))
        alone = bench.seconds_once(lambda backbone=backbone, runs=runs: [fit(backbone, *run) for run in runs])
        yield Row(f"{backbone.name}: {len(runs)} partitions one by one", alone, "s")
        yield Row(f"{backbone.name}: the same together", together, "s",
                  more={"ratio": alone / together, "groups": len(groups(backbone, runs))})  # fmt: skip
        bench.free()


def trainings(backbone: Backbone, number: int, images: int) -> list[Training]:
    config = AdapterConfig(method="mmrlpp", insertion_depth=backbone.depth // 2)
    train = TrainConfig(epochs=2, warmup_epochs=1, batch_size=4)
    return [
        Training(config, train.model_copy(update={"seed": seed}), noise_set(backbone, images, 4, seed))
        for seed in range(number)
    ]


def evaluation(bench: Bench) -> Iterator[Row]:
    """Images a second through an adapted model with its zero-shot scores, in float32 as evaluation has it."""
    case = bench.case("mmrlpp", bench.sizes.cells[0][0], bench.sizes.images)
    images, model = case.inputs()[0], model_of(case, case.adapter(), "float32")
    text, clip = model.text_features().detach(), bench.backbone.clip
    trained = torch.ones(len(model.class_names), dtype=torch.bool, device=bench.device)

    def scored() -> tuple[torch.Tensor, torch.Tensor]:
        frozen = model.image_tower.frozen(images)
        adapted = joint_logits(model.from_trunk(frozen.trunk, text), trained)
        return adapted.softmax(-1), model.zero_shot_logits(frozen.zero_shot).softmax(-1)

    works: dict[str, Callable[[], object]] = {
        "adapted and zero-shot": scored,
        "adapted": lambda: model.from_trunk(model.image_tower.trunk(images), text),
        "open_clip's encode_image": lambda: clip.encode_image(images),
    }
    for what, work in works.items():
        yield Row(
            f"{what}, batches of {len(images)}", len(images) / bench.seconds(torch.inference_mode()(work)), "images/s"
        )


def serving(bench: Bench) -> Iterator[Row]:
    """The library's predictor on the device, views given: what `mmrl serve` calls for a batch of questions."""
    case = bench.case("mmrlpp", bench.sizes.cells[0][0], bench.sizes.images)
    model = model_of(case, case.adapter(), "float32")
    predictor = Predictor(model, {"class_names": class_names(case.classes), "template": model.template})
    classes = predictor.classes()
    views = list(case.inputs()[0].cpu())
    for size in sorted({1, 8, min(64, len(views))}):
        taken = bench.seconds(lambda size=size: predictor.score(views[:size], [classes] * size, 5))
        yield Row(f"questions of {case.classes} classes, {size} at a time", size / taken, "images/s",
                  more={"each_ms": 1e3 * taken})  # fmt: skip
