import json
import shutil
import subprocess
import sys

import pytest
import torch

from mmrl_core.bundle import check_bundle, write_bundle
from mmrl_core.config import AdapterConfig
from mmrl_core.errors import BAD, Damaged
from mmrl_core.files import sha256_file
from mmrl_core.method.adapter import Adapter, save_adapter


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    from mmrl_core.clip.backbone import load_backbone

    folder, backbone = tmp_path_factory.mktemp("release"), load_backbone("tiny")
    torch.manual_seed(0)
    adapter = Adapter(AdapterConfig(method="mmrlpp", insertion_depth=5, rep_dim=16), backbone)
    card = {"class_names": ["cat", "dog"], "template": "a photo of a {}.", "data": {"digest": "d" * 64}}
    save_adapter(folder / "adapter", adapter, backbone, card)
    write_bundle(folder / "adapter", folder / "bundle", {"model": "pets", "version": 3, "harmonic mean": "81.0"})
    return folder / "bundle"


@pytest.fixture
def copy(bundle, tmp_path):
    return shutil.copytree(bundle, tmp_path / "copy")


CHECK = """
import runpy, sys
sys.modules.update(dict.fromkeys(["ray", "prefect", "mlflow", "dvc", "flows"]))
for folder in [*sys.argv[1:], None]:
    sys.argv = ["bundle", *([folder] if folder else [])]
    try:
        runpy.run_module("mmrl_core.bundle", run_name="__main__")
        print(0)
    except SystemExit as ended:
        print(ended.code)
"""


def expect_something_else(bundle) -> None:
    """Alter what the first example is expected to be, and the sum of the file that says so."""
    path = bundle / "examples/expected.json"
    document = json.loads(path.read_text())
    row = document["probabilities"]["0.png"]
    row["cat"], row["dog"] = row["cat"] + 0.01, row["dog"] - 0.01
    path.write_text(json.dumps(document))
    sums = (bundle / "SHA256SUMS").read_text().splitlines()
    sums = [f"{sha256_file(path)}  examples/expected.json" if line.endswith("expected.json") else line for line in sums]
    (bundle / "SHA256SUMS").write_text("\n".join(sums) + "\n")


def test_a_release_checks_itself_without_the_pipelines_tools_its_sums_and_what_it_answers(bundle, copy):
    expect_something_else(copy)
    done = subprocess.run([sys.executable, "-c", CHECK, bundle, copy, copy / "none"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"0\n{BAD}\n2\n2\n"), done.stderr
    damaged, missing, unnamed = done.stderr.splitlines()
    assert f"what PyTorch says of {copy}" in damaged
    assert f"{copy}/none is no folder" in missing and "name the folder of a release" in unnamed
    for one in (bundle, copy):
        assert subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=one).returncode == 0


def test_its_card_says_what_it_is(bundle):
    card = (bundle / "README.md").read_text()
    assert (
        card.startswith("# pets, version 3")
        and "| harmonic mean | 81.0 |" in card
        and "| classes | 2: cat, dog |" in card
    )


@pytest.mark.parametrize("name", ["adapter/adapter.safetensors", "onnx/model.onnx", "README.md", "examples/0.png"])
def test_a_damaged_file_is_named(copy, name):
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(Damaged, match=f"{name} was altered"):
        check_bundle(copy)


def test_a_file_too_few_or_too_many_is_named(copy):
    (copy / "extra").write_text("")
    with pytest.raises(Damaged, match="extra is no part of it"):
        check_bundle(copy)
    (copy / "extra").unlink()
    (copy / "classes.safetensors").unlink()
    with pytest.raises(Damaged, match=r"classes.safetensors is missing"):
        check_bundle(copy)
