"""One backbone on every machine: a process that is told to run as on another CPU, and adapters of earlier releases."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image

from mmrl_core.clip.backbone import Backbone, load_backbone
from mmrl_core.clip.bundled import EARLIER, WEIGHTS
from mmrl_core.clip.portable import Draws
from mmrl_core.data.catalog import open_source
from mmrl_core.errors import UserError
from mmrl_core.method.adapter import load_adapter, save_adapter
from mmrl_core.method.model import AdaptedCLIP
from mmrl_core.predict import Predictor
from tests.support.small import small_adapter
from tests.support.workspace import ROOT

REGISTERED = ROOT / "tests/golden/registered_before_the_move"
WITH_VECTOR_UNIT = "a2d9fd067c1525738558acbe75cb0ead16c1b108ab756cf09bc504cd53716576"
WITHOUT = "b1929734c49fcfb1337cc5edc78efb13a76becac14d457787f3609e37d98f4fa"
SHAPE = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}
DATASETS = ("digits_noisy", "digits_rotated", "objects")
WORDS = ["cat", "dog"]  # whose tokens tiny was not trained on
TEMPLATE = "a photo of a {}."
# As on a CPU without a vector unit: torch, NumPy and its matrix products, and the C library.
PLAIN_CPU = {
    "ATEN_CPU_CAPABILITY": "default",
    "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL",
    "OPENBLAS_CORETYPE": "Nehalem",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX,-AVX2,-FMA,-AVX512F",
}


def earlier_backbone() -> Backbone:
    """`tiny` as an earlier release made it on this CPU."""
    return load_backbone("tiny", sha256=WITH_VECTOR_UNIT)


def write_adapter(folder: Path, class_names: list[str]) -> str:
    """Save an adapter as an earlier release did; the digest of its backbone."""
    backbone = earlier_backbone()
    adapter = small_adapter(backbone, insertion_depth=4)
    return save_adapter(folder, adapter, backbone, {"class_names": class_names, "template": TEMPLATE})["backbone"][
        "sha256"
    ]


def predictions(folder: Path) -> list[dict[str, float]]:
    pictures = [Image.new("RGB", (32, 32), colour) for colour in ("white", "red", "blue")]
    return [prediction.probabilities for prediction in Predictor.load(folder).predict(pictures)]


def registered() -> list[dict[str, float]]:
    """What the adapter of a release before says now of the images that it was asked about then."""
    source, wanted = open_source("digits", ""), json.loads((REGISTERED / "predictions.json").read_text())
    paths = {item.path: item for item in source.test}
    images = [source.read(paths[one["image"]]) for one in wanted]
    return [one.probabilities for one in Predictor.load(REGISTERED / "model/artifacts/seed1").predict(images)]


def pictures_digest(dataset: str) -> str:
    source = open_source(dataset, "")
    items = [item for split in (source.train, source.val, source.test) for item in split[:8]]
    return hashlib.sha256(b"".join(map(source.read, items))).hexdigest()


def facts(folder: str) -> dict:
    """What has to be the same in another process, which writes an adapter into `folder`."""
    Path(folder, "configs").mkdir()
    Path(folder, "configs", "portable-ViT.json").write_text(json.dumps(SHAPE))
    open_clip.add_model_config(Path(folder, "configs"))
    return {
        "torch": torch.backends.cpu.get_cpu_capability(),
        "tiny": load_backbone("tiny").weights_sha256,
        "random": load_backbone("portable-ViT", "random:3").weights_sha256,
        "pictures": {dataset: pictures_digest(dataset) for dataset in DATASETS},
        "earlier": write_adapter(Path(folder, "adapter"), WORDS),
        "predictions": predictions(Path(folder, "adapter")),
        "registered": registered(),
    }


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("here")
    return folder, facts(str(folder))


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> tuple[Path, dict]:
    """The same in a process as on a CPU without a vector unit."""
    folder = tmp_path_factory.mktemp("elsewhere")
    code = "import json, sys; from tests.core.clip.test_bundled import facts; print(json.dumps(facts(sys.argv[1])))"
    environment = {**os.environ, **PLAIN_CPU, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    child = subprocess.run([sys.executable, "-c", code, str(folder)], env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    return folder, json.loads(child.stdout.splitlines()[-1])


def test_the_digest_of_tinys_weights_is_known_without_reading_them():
    assert load_backbone("tiny").weights_sha256 == WEIGHTS


def test_the_bundled_backbone_and_random_weights_have_one_digest_on_every_cpu(here, elsewhere):
    assert elsewhere[1]["torch"] == "DEFAULT"
    assert elsewhere[1]["tiny"] == here[1]["tiny"] == "77dbc97d62241c34642c214b3c2f829991222f36b63b27a15b4b40dd88fb8fa0"
    assert elsewhere[1]["random"] == here[1]["random"]


def test_pictures_of_the_embedded_datasets_are_the_same_bytes_on_every_cpu(here, elsewhere):
    assert elsewhere[1]["pictures"] == here[1]["pictures"]


def test_random_weights_differ_by_their_seed(here, tmp_path):
    assert load_backbone("portable-ViT", "random:4").weights_sha256 != here[1]["random"]
    assert (
        load_backbone("portable-ViT", "random").weights_sha256
        == load_backbone("portable-ViT", "random:0").weights_sha256
    )


def test_an_adapter_of_an_earlier_release_predicts_on_every_cpu_what_it_did(here, elsewhere):
    """Among words that tiny was not trained on: the rows drawn for them then are drawn again."""
    assert elsewhere[1]["earlier"] == WITHOUT and here[1]["earlier"] in EARLIER == {WITH_VECTOR_UNIT, WITHOUT}
    for folder, recorded in (here, elsewhere):
        for now, then in zip(predictions(folder / "adapter"), recorded["predictions"], strict=True):
            assert now == pytest.approx(then, rel=0, abs=1e-5)


def test_a_version_registered_by_an_earlier_release_predicts_on_another_cpu_what_it_did(elsewhere):
    recorded = json.loads((REGISTERED / "predictions.json").read_text())
    for now, then in zip(elsewhere[1]["registered"], recorded, strict=True):
        assert now == pytest.approx(then["probabilities"], rel=0, abs=1e-4)


def test_todays_backbone_gives_what_an_earlier_one_gave_where_it_was_trained_on_every_word(tmp_path):
    names = ["two", "blue star"]
    write_adapter(tmp_path, names)
    today, then = load_backbone("tiny"), earlier_backbone()
    assert today.weights_sha256 != then.weights_sha256
    (adapter, _), (before, _) = load_adapter(tmp_path, today), load_adapter(tmp_path, then)
    features = [AdaptedCLIP(*pair, names, TEMPLATE).text_features() for pair in ((today, adapter), (then, before))]
    assert torch.equal(*features)


def test_what_is_exported_from_an_adapter_of_another_cpu_names_the_backbone_that_its_card_names(elsewhere, tmp_path):
    from mmrl_core.export import file_facts

    predictor = Predictor.load(elsewhere[0] / "adapter")
    assert file_facts(predictor, predictor.class_names, tmp_path)["backbone"] == {"name": "tiny", "sha256": WITHOUT}


def test_todays_backbone_is_refused_where_an_earlier_one_drew_a_word(here):
    with pytest.raises(
        UserError, match=f"was trained on backbone tiny with weights {here[1]['earlier'][:12]}, not on tiny"
    ):
        load_adapter(here[0] / "adapter", load_backbone("tiny"))


def test_draws_have_the_bounds_mean_and_deviation_that_are_asked_for():
    even, spread = Draws(0).between(-1, 3, (500, 400)), Draws(1).spread(0.02, (500, 400), mean=0.1)
    assert even.min() >= -1 and even.max() <= 3 and abs(even.mean() - 1) < 0.01
    assert abs(spread.mean() - 0.1) < 2e-4 and abs(spread.std() - 0.02) < 1e-4
    assert torch.equal(Draws(0).between(-1, 3, (500, 400)), even)
