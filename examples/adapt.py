"""Adapt the bundled CLIP to a few handwritten digits with the library alone: no DVC, no MLflow, no Ray, no Prefect.

    python examples/adapt.py [FOLDER]

trains MMRL++ on four scans a class, gives it what four others decide (a linear probe where that helps, temperatures,
the threshold for "none of these"), writes adapter.safetensors and adapter.json to FOLDER (by default a temporary one)
and labels test scans with what it wrote. For images of your own, make an `Example` of each: its bytes and its label.
"""

import sys
from tempfile import TemporaryDirectory

from mmrl_core import (
    AdapterConfig,
    Example,
    ImageSet,
    Predictor,
    TrainConfig,
    finish,
    fit,
    image_set,
    load_backbone,
    open_source,
    save_adapter,
)
from mmrl_core.data.splits import Item, sample_few_shot

SHOTS, SEED, EPOCHS = 4, 1, 5


def show(epoch: int, metrics: dict[str, float]) -> None:
    print(f"epoch {epoch + 1}/{EPOCHS}, loss {metrics['loss']:.3f}")


def main(folder: str) -> None:
    source, backbone = open_source("digits", ""), load_backbone("tiny")
    names, template = source.class_names, source.templates[0]

    def labelled(items: list[Item]) -> ImageSet:
        examples = [Example(item.path, item.path, item.label, item.class_name, source.read(item)) for item in items]
        return image_set(examples, list(range(len(names))), names, template)

    chosen, held_out = sample_few_shot(source.train, SHOTS, SEED, source.val)
    data = labelled([source.train[index] for index in chosen])
    validation = labelled([source.val[index] for index in held_out])

    config = AdapterConfig(method="mmrlpp", insertion_depth=3, probe="fused")
    fitted = fit(backbone, config, TrainConfig(epochs=EPOCHS, seed=SEED), data, report=show)
    abstain = finish(backbone, fitted.adapter, data, validation)
    save_adapter(folder, fitted.adapter, backbone, {"class_names": names, "template": template, "abstain": abstain})

    tested = source.test[::40]
    predictions = Predictor.load(folder).predict([source.read(item) for item in tested])
    right = sum(said.label == item.class_name for said, item in zip(predictions, tested, strict=True))
    print(f"{right} of {len(tested)} test scans are labelled rightly")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with TemporaryDirectory() as temporary:
            main(temporary)
