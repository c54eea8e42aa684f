"""adapter.json as the pipeline reads it, and what it says of heads and temperatures."""

import subprocess
import sys

import pytest
import torch

from mmrl_core.method.adapter import save_adapter
from tests.core.method.test_adapter import CONTENT, refused
from tests.support.alter import alter_card, alter_tensors
from tests.support.small import small_backbone, small_kind


def test_a_card_is_read_without_pytorch():
    script = "import sys, mmrl_core.method.adapter_card\nassert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


NAN, FAR = float("nan"), 10**400


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("mmrl + probe", lambda card: card.update(head=[]), "head: Input should be"),
        ("mmrl + probe", lambda card: card["head"].update(kind="tree"), "head.kind: Input should be 'linear' or"),
        ("mmrl + probe", lambda card: card["head"].pop("kind"), "head.kind"),
        ("mmrl + probe", lambda card: card["head"].pop("head_weight"), "head.head_weight"),
        ("mmrl + probe", lambda card: card["head"].update(head_weight="1"), "head.head_weight"),
        ("mmrl + probe", lambda card: card["head"].update(head_weight=-1.0), "no number from 0 to 10000"),
        ("mmrl + probe", lambda card: card["head"].update(adapter_weight=NAN), "no number from 0 to 10000"),
        ("mmrl + probe", lambda card: card["head"].update(adapter_weight=1e30), "no number from 0 to 10000"),
        ("mmrl + probe", lambda card: card["head"].update(adapter_weight=FAR), "head.adapter_weight"),
        ("mmrl + probe", lambda card: card["head"].update(images=1.5), "head.images"),
        ("mmrl + probe", lambda card: card.update(head=None), "as tensor head.bias"),
        ("mmrl + probe", lambda card: card["class_names"].append("cow"), "as tensor head.bias"),
        ("mmrl + probe", lambda card: card["head"].update(kind="cache"), "head.rows does not say"),
        ("linear_probe", lambda card: card.update(head=None), "it is of a baseline and has no head"),
        ("linear_probe", lambda card: card.pop("head"), "it is of a baseline and has no head"),
        ("linear_probe", lambda card: card["adapter"].update(method="forest"), "method"),
        ("linear_probe", lambda card: card["adapter"].update(alpha=0.5), "unknown key 'alpha'"),
        ("linear_probe", lambda card: card["adapter"].update(method="mmrl", insertion_depth=4), "image_aligner.bias"),
        ("tip_adapter", lambda card: card["head"].update(sharpness=0), "no number above 0 and up to 10000"),
        ("tip_adapter", lambda card: card["head"].update(sharpness=NAN), "no number above 0 and up to 10000"),
        ("tip_adapter", lambda card: card["head"].update(sharpness=1e9), "no number above 0 and up to 10000"),
        ("tip_adapter", lambda card: card["head"].pop("sharpness"), "no number above 0 and up to 10000"),
        ("tip_adapter", lambda card: card["head"].pop("rows"), "head.rows does not say"),
        ("tip_adapter", lambda card: card["head"].update(rows=[1]), "head.rows does not say"),
        ("tip_adapter", lambda card: card["head"].update(rows=[4, -1]), "head.rows does not say"),
        ("tip_adapter", lambda card: card["head"].update(rows=[1, FAR]), "head.rows"),
        ("tip_adapter", lambda card: card["head"].update(rows=[1, True]), "head.rows"),
        ("tip_adapter", lambda card: card["head"].update(rows=[1, 3]), "as tensor head.keys"),
        ("tip_adapter", lambda card: card["head"].update(rows=[10**6, 10**6]), "as tensor head.keys"),
        ("tip_adapter", lambda card: card["head"].update(kind="linear"), "as tensor head.bias"),
        ("mmrl + probe", lambda card: card["calibration"].update(trained=0), "calibration has a temperature"),
        ("mmrl + probe", lambda card: card["calibration"].update(other=-1.0), "calibration has a temperature"),
        ("mmrl + probe", lambda card: card["calibration"].update(other=1e-300), "calibration has a temperature"),
        ("mmrl + probe", lambda card: card["calibration"].update(without_probe=NAN), "calibration has a temperature"),
        ("tip_adapter", lambda card: card["calibration"].pop("other"), "calibration.other"),
        ("tip_adapter", lambda card: card.update(calibration=1.0), "calibration: Input should be"),
    ],
)
def test_a_head_or_temperature_of_right_sums_and_wrong_content_is_damaged(tmp_path, kind, change, message):
    save_adapter(tmp_path, small_kind(small_backbone(), kind, 2), small_backbone(), CONTENT)
    alter_card(tmp_path, change)
    assert message in refused(tmp_path)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("mmrl + probe", lambda tensors: tensors["head.bias"].fill_(float("inf"))),
        ("mmrl + probe", lambda tensors: tensors.pop("head.weight")),
        ("mmrl + probe", lambda tensors: tensors.update({"head.weight": tensors["head.weight"].T})),
        ("mmrl + probe", lambda tensors: tensors.update({"head.keys": torch.zeros(1, 32)})),
        ("linear_probe", lambda tensors: tensors.update({"head.weight": tensors["head.weight"][:, :31]})),
        ("linear_probe", lambda tensors: tensors.update(space=torch.zeros(3, 24))),
        ("tip_adapter", lambda tensors: tensors["head.keys"][0].fill_(float("nan"))),
        ("tip_adapter", lambda tensors: tensors.update({"head.keys": tensors["head.keys"][:-1]})),
        ("tip_adapter", lambda tensors: tensors.update({"head.values": torch.eye(2)})),
    ],
)
def test_a_heads_tensors_of_right_sums_and_wrong_content_are_damaged(tmp_path, kind, change):
    save_adapter(tmp_path, small_kind(small_backbone(), kind, 2), small_backbone(), CONTENT)
    alter_tensors(tmp_path, change)
    assert "tensor head." in refused(tmp_path) or "tensor space" in refused(tmp_path)
