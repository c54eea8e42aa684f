"""A folder of images that are read wrongly with ease: the same picture at every step, from `check` to ONNX.

The reference is Pillow alone: what it renders of a file, on white. A second folder holds these renderings under the
same names, so whatever a step makes of the first it has to make of the second.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from mmrl_core.data.images import decode
from mmrl_core.data.shards import read_examples
from tests.core.data.odd_images import ODD, encoded, on_white
from tests.core.followed import follow
from tests.support.workspace import write_params

COLORS = {"amber": (250, 170, 20), "blue": (20, 40, 220), "green": (30, 160, 60), "pink": (250, 120, 190)}
SPLITS = ("train", "val", "test")  # one picture of each kind in each
RUN = ["--method", "mmrl", "--shots", "4", "--seed", "1"]


def picture(color: tuple[int, int, int], seed: int) -> Image.Image:
    """90 x 70: the colour, brighter to one side, under noise; not the same from any other side."""
    noise = np.random.default_rng(seed).integers(-30, 30, (70, 90, 3))
    slope = np.linspace(-60, 60, 90, dtype=int)[None, :, None] + np.linspace(-20, 20, 70, dtype=int)[:, None, None]
    return Image.fromarray(np.clip(np.array(color) + noise + slope, 0, 255).astype(np.uint8))


def write(folder: Path, name: str, image: bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image)


@pytest.fixture
def odd(tmp_path, monkeypatch):
    """The folder `odd` with every kind in every class and split, and `plain` with Pillow's renderings of them."""
    monkeypatch.chdir(tmp_path)
    for number, (split, class_name, kind) in enumerate((s, c, k) for s in SPLITS for c in COLORS for k in ODD):
        name, image = f"{split}/{class_name}/{kind}", ODD[kind](picture(COLORS[class_name], number))
        write(tmp_path / "odd", name, image)
        write(tmp_path / "plain", name, encoded(on_white(image), "PNG"))
    own = {name: {"images": name} for name in ("odd", "plain")}
    write_params(tmp_path, datasets=["odd", "plain"], methods=["mmrl"], shots=[4], seeds=[1], data={"own": own},
                 train={"epochs": 1}, search={"enabled": False})  # fmt: skip
    return tmp_path / "odd"


def by_name(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*"))}


def test_it_is_the_same_picture_in_check_prepare_train_predict_and_onnx(odd, mmrl):
    images = by_name(odd)
    checked = json.loads(mmrl("check", "--dataset", "odd", "--json"))["datasets"]
    assert checked[0]["state"] == "complete"
    assert checked[0]["found"] == {"train": 20, "val": 20, "test": 20}

    for dataset in ("odd", "plain"):
        mmrl("prepare", "--dataset", dataset)
        mmrl("prepare", "--dataset", dataset, *RUN[2:])
    of_pool = [read_examples("data/odd/pool", "test", half) for half in ("base", "novel")]
    of_training = read_examples("data/odd/4shot-seed1", "train", "base")
    examples = [*of_pool[0], *of_pool[1], *of_training]
    assert len(examples) == 20 + 2 * 4
    for example in examples:
        assert np.array_equal(decode(example.image, "a"), on_white(images[example.path])), example.path

    adapters = []
    for dataset in ("odd", "plain"):
        mmrl("tune", "--dataset", dataset, *RUN[:2])
        mmrl("train", "--dataset", dataset, *RUN)
        adapters.append(Path(f"models/{dataset}/mmrl-4shot/seed1/adapter.safetensors").read_bytes())
    assert adapters[0] == adapters[1]

    model = ["--model", "models/odd/mmrl-4shot/seed1"]
    found, plain = (json.loads(mmrl("predict", folder, *model, "--json")) for folder in ("odd", "plain"))
    assert len(found) == 60
    assert all(found[f"odd/{name}"] == plain[f"plain/{name}"] for name in images)

    mmrl("export", *model, "--out", "onnx")
    card = json.loads(Path("onnx/model.json").read_text())
    session = onnxruntime.InferenceSession("onnx/model.onnx", providers=["CPUExecutionProvider"])
    for name in list(images)[:10]:
        (row,) = session.run(["probabilities"], {"images": follow(card, images[name])})[0]
        assert row == pytest.approx(list(found[f"odd/{name}"]["probabilities"].values()), rel=1e-3, abs=1e-6), name
