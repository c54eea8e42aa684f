"""A release's check of itself: what it finds, and what it does not take for a verdict."""

import contextlib
import json
import random
import resource
import shutil
import subprocess
import sys

import pytest
import torch

from mmrl_core.bundle import _check_model, _drawn, check_bundle, write_bundle
from mmrl_core.config import AdapterConfig
from mmrl_core.errors import BAD, Damaged, UserError
from mmrl_core.method.adapter import Adapter, save_adapter
from mmrl_core.predict import Predictor
from tests.core.bundle_damages import DAMAGES, edit, enlarge, own_sha256
from tests.support.alter import sum_again
from tests.support.small import small_head


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    from mmrl_core.clip.backbone import load_backbone

    folder, backbone = tmp_path_factory.mktemp("release"), load_backbone("tiny")
    torch.manual_seed(0)
    adapter = Adapter(AdapterConfig(method="mmrlpp", insertion_depth=5, rep_dim=16), backbone)
    adapter.head, adapter.head_card = small_head(backbone, "linear", 3)
    adapter.calibration = {"trained": 1.5, "other": 2.0, "images": 8}
    card = {"class_names": ["cat", "cat", "dog"], "template": "a photo of a {}.", "data": {"digest": "d" * 64}}
    save_adapter(folder / "adapter", adapter, backbone, card)
    write_bundle(folder / "adapter", folder / "bundle", {"model": "pets", "version": 3, "harmonic mean": "81.0"})
    return folder / "bundle"


@pytest.fixture
def copy(bundle, tmp_path):
    return shutil.copytree(bundle, tmp_path / "copy")


CHECK = """
import runpy, sys
sys.modules.update(dict.fromkeys(["ray", "prefect", "mlflow", "dvc", "flows"]))
for folder in sys.argv[1:]:
    sys.argv = ["bundle", folder]
    try:
        runpy.run_module("mmrl_core.bundle", run_name="__main__")
        print(0)
    except SystemExit as ended:
        print(ended.code)
"""


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_is_wrong_with_right_sums_is_a_verdict(copy, damage):
    damage(copy)
    sum_again(copy)
    with pytest.raises(Damaged) as verdict:
        check_bundle(copy)
    assert "\n" not in str(verdict.value) and str(copy) in str(verdict.value)


def test_a_release_from_before_model_json_said_how_images_are_decoded_is_as_sound_as_it_was(copy):
    def as_it_was(document) -> None:
        del document["decoding"], document["resizing"]
        document["preprocessing"] = [
            "decode to RGB",
            "resize the short side to 32 pixels, bicubic with antialiasing, keeping the aspect ratio",
            "crop the centre 32 x 32",
            "scale to [0, 1] as float32, channels first: (3, height, width)",
            "subtract mean and divide by std, channel by channel",
        ]

    edit(copy / "onnx/model.json", as_it_was)
    sum_again(copy)
    check_bundle(copy)
    edit(copy / "onnx/model.json", lambda document: document["preprocessing"].pop())
    sum_again(copy)
    with pytest.raises(Damaged, match="does not say preprocessing"):
        check_bundle(copy)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda sums: b"", "is no part of it"),
        (lambda sums: sums[:-1], "does not name every file once"),
        (lambda sums: sums + sums, "does not name every file once"),
        (lambda sums: sums + b"\n", "does not name every file once"),
        (lambda sums: sums.replace(b"  ", b" "), "does not name every file once"),
        (lambda sums: sums.upper(), "does not name every file once"),
        (lambda sums: b"\xff" + sums, "is no text"),
        (lambda sums: sums + b"0" * 64 + b"  ../adapter/adapter.json\n", r"\.\./adapter/adapter.json is missing"),
        (lambda sums: sums + b"0" * 64 + b"  /etc/passwd\n", "/etc/passwd is missing"),
        (lambda sums: sums[sums.index(b"\n") + 1 :], "README.md is no part of it"),
    ],
)
def test_sums_that_are_none_are_a_verdict(copy, change, says):
    (copy / "SHA256SUMS").write_bytes(change((copy / "SHA256SUMS").read_bytes()))
    with pytest.raises(Damaged, match=says):
        check_bundle(copy)


def test_a_folder_without_sums_is_a_verdict_and_a_path_that_is_none_a_mistake(copy, tmp_path):
    (copy / "SHA256SUMS").unlink()
    with pytest.raises(Damaged, match="has no SHA256SUMS"):
        check_bundle(copy)
    (copy / "SHA256SUMS").mkdir()
    with pytest.raises(Damaged, match="has no SHA256SUMS"):
        check_bundle(copy)
    with pytest.raises(UserError, match="is no folder") as mistake:
        check_bundle(tmp_path / "nowhere")
    assert not isinstance(mistake.value, Damaged)


FILES = ["adapter/adapter.safetensors", "adapter/adapter.json", "onnx/model.onnx", "onnx/model.json", "README.md",
         "classes.safetensors", "examples/0.png", "examples/expected.json", "SHA256SUMS"]  # fmt: skip


def altered(content: bytes, draw: random.Random) -> list[bytes]:
    """The content cut short, and with a byte changed, at the beginning, at the end and at places drawn."""
    places = [0, len(content) - 1, *(draw.randrange(len(content)) for _ in range(3))]
    flipped = [
        content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :] for place in places
    ]
    return [content[:place] for place in places] + flipped


@pytest.mark.parametrize("name", FILES)
def test_any_byte_that_changed_is_a_verdict_that_names_its_file(copy, name):
    path = copy / name
    content = path.read_bytes()
    for other in altered(content, random.Random(name)):
        path.write_bytes(other)
        with pytest.raises(Damaged):
            check_bundle(copy)
    path.write_bytes(content)
    check_bundle(copy)


@pytest.mark.parametrize(
    "name", ["onnx/model.onnx", "onnx/model.json", "classes.safetensors", "examples/expected.json"]
)
def test_with_the_sums_made_right_a_changed_byte_never_ends_but_by_a_verdict(copy, name):
    path, verdicts = copy / name, 0
    for other in altered(path.read_bytes(), random.Random(name)):
        path.write_bytes(other)
        if name == "onnx/model.onnx":
            own_sha256(copy)
        sum_again(copy)
        with contextlib.suppress(Damaged):
            check_bundle(copy)
            continue
        verdicts += 1
    assert verdicts >= 5


def test_a_release_checks_itself_without_the_pipelines_tools_its_sums_and_what_it_answers(bundle, copy, tmp_path):
    DAMAGES["another expectation"](copy)
    broken, nowhere = shutil.copytree(bundle, tmp_path / "broken"), tmp_path / "nowhere"
    DAMAGES["ONNX without a weight"](broken)
    sum_again(copy)
    sum_again(broken)
    command = [sys.executable, "-c", CHECK, bundle, copy, broken, nowhere]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"0\n{BAD}\n{BAD}\n2\n"), done.stderr
    altered, unusable, missing = done.stderr.splitlines()
    assert f"what PyTorch says of {copy}" in altered and str(broken) in unusable and str(nowhere) in missing
    for one in (bundle, copy):
        assert subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=one).returncode == 0


SHORT_OF = """
import os, resource, sys
import mmrl_core.bundle
kind, *rooms = sys.argv[2:]
sys.argv = sys.argv[:2]
limit = getattr(resource, "RLIMIT_" + kind)
for room in map(int, rooms):
    if not (child := os.fork()):
        code = 1
        try:
            pages, files = int(open("/proc/self/statm").read().split()[0]), len(os.listdir("/proc/self/fd"))
            used = {"AS": pages * resource.getpagesize(), "NOFILE": files}[kind]
            resource.setrlimit(limit, (used + room, resource.getrlimit(limit)[1]))
            mmrl_core.bundle.main()
            code = 0
        except SystemExit as ended:
            code = ended.code
        finally:
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
MB = 1 << 20


@pytest.mark.parametrize(
    ("kind", "rooms"),
    [("AS", [0, 20 * MB, 40 * MB, 80 * MB, 160 * MB, 4096 * MB]), ("NOFILE", [0, 1, 2, 100])],
)
def test_a_machine_without_room_comes_to_no_verdict(bundle, kind, rooms):
    """On the way from no room at all to enough."""
    command = [sys.executable, "-c", SHORT_OF, bundle, kind, *map(str, rooms)]
    done = subprocess.run(command, capture_output=True, text=True)
    codes = [int(line) for line in done.stdout.split()]
    assert len(codes) == len(rooms), done.stderr
    assert BAD not in codes and codes[0] and codes[-1] == 0, (codes, done.stderr)


def test_a_runtime_that_cannot_open_the_file_comes_to_no_verdict(bundle):
    predictor, pictures, path = Predictor.load(bundle / "adapter"), list(_drawn()), bundle / "onnx/model.onnx"
    _check_model(path, predictor, pictures)  # imports what it needs, which takes files too
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(MemoryError, match="no room"):
            _check_model(path, predictor, pictures)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_its_card_says_what_it_is(bundle):
    card = (bundle / "README.md").read_text()
    assert (
        card.startswith("# pets, version 3")
        and "| harmonic mean | 81.0 |" in card
        and "| classes | 3: cat, cat, dog |" in card
    )


def test_what_it_expects_of_two_classes_of_one_name_is_their_sum(bundle):
    expected = json.loads((bundle / "examples/expected.json").read_text())["probabilities"]
    assert all(list(row) == ["cat", "dog"] and sum(row.values()) == pytest.approx(1) for row in expected.values())
    assert json.loads((bundle / "onnx/model.json").read_text())["class_names"] == ["cat", "cat", "dog"]
    check_bundle(bundle)


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


def test_an_adapter_that_answers_with_no_number_is_not_released(bundle, tmp_path):
    adapter = shutil.copytree(bundle / "adapter", tmp_path / "adapter")
    enlarge(adapter)
    with pytest.raises(Damaged, match="answers with what is no number"):
        write_bundle(adapter, tmp_path / "bundle", {})
