"""Adapt the bundled CLIP to a few handwritten digits with the library alone: no DVC, no MLflow, no Ray, no Prefect.

    python examples/adapt.py [FOLDER]

trains MMRL++ on four scans a class, writes adapter.safetensors and adapter.json to FOLDER (by default a temporary one)
and labels test scans with what it wrote. For images of your own, make an `Example` of each: its bytes and its label.
"""

import sys
from tempfile import TemporaryDirectory

from mmrl_core import (
    AdapterConfig,
    Example,
    Predictor,
    TrainConfig,
    fit,
    image_set,
    load_backbone,
    open_source,
    save_adapter,
)
from mmrl_core.data.splits import sample_few_shot

SHOTS, SEED, EPOCHS = 4, 1, 5


def show(epoch: int, metrics: dict[str, float]) -> None:
    print(f"epoch {epoch + 1}/{EPOCHS}, loss {metrics['loss']:.3f}")


def main(folder: str) -> None:
    source, backbone = open_source("digits", ""), load_backbone("tiny")
    names, template = source.class_names, source.templates[0]

    chosen, _ = sample_few_shot(source.train, SHOTS, SEED)
    items = [source.train[index] for index in chosen]
    examples = [Example(item.path, item.path, item.label, item.class_name, source.read(item)) for item in items]
    data = image_set(examples, list(range(len(names))), names, template)

    config, train = AdapterConfig(method="mmrlpp", insertion_depth=3), TrainConfig(epochs=EPOCHS, seed=SEED)
    fitted = fit(backbone, config, train, data, report=show)
    save_adapter(folder, fitted.adapter, backbone, {"class_names": names, "template": template})

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
