"""Adapt the bundled CLIP to a few handwritten digits with the library alone: no DVC, no MLflow, no Ray, no Prefect.

    python examples/adapt.py [FOLDER]

trains MMRL++ on four scans a class, gives it what four others decide (a linear probe where that helps, temperatures,
the threshold for "none of these"), writes adapter.safetensors and adapter.json to FOLDER (by default a temporary one)
and labels test scans with what it wrote. docs/library.md has the other forms that images may come in, and the steps.
"""

import sys
from tempfile import TemporaryDirectory

import mmrl


def main(folder: str) -> None:
    source = mmrl.open_source("digits", "")
    scans = [(source.read(item), item.class_name) for item in source.train]
    adapter = mmrl.adapt(scans, shots=4, method="mmrlpp", template=source.templates[0], epochs=5, seed=1, progress=True)
    adapter.save(folder)

    tested = source.test[::40]
    predictions = mmrl.load(folder).predict([source.read(item) for item in tested])
    right = sum(said.label == item.class_name for said, item in zip(predictions, tested, strict=True))
    print(f"{right} of {len(tested)} test scans are labelled rightly")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with TemporaryDirectory() as temporary:
            main(temporary)
