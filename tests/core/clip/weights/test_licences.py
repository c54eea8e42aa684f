import re

import open_clip
import pytest

from mmrl_core.clip.weights.licences import CHECK, licence_line, licence_of

SPDX = {"mit": "MIT", "cc-by-nc-4.0": "CC-BY-NC-4.0", "apache-2.0": "Apache-2.0"}  # as timm writes them


def publisher(name: str, tag: str) -> str:
    """Who open_clip's list says the weights of a tag are from."""
    known = open_clip.get_pretrained_cfg(name, tag)
    if "openaipublic" in known.get("url", ""):
        return "openai"
    own = "mlfoundations" in known.get("url", "") and tag.startswith("laion")
    return "laion" if own or known.get("hf_hub", "").startswith("laion/") else "others"


@pytest.mark.parametrize("who", ["openai", "laion"])
def test_the_weights_of_openai_and_laion_are_mit(who):
    tags = [pair for pair in open_clip.list_pretrained() if not pair[0].startswith(("convnext", "RN"))]
    ours = [pair for pair in tags if publisher(*pair) == who]
    assert len(ours) >= 5
    assert [pair for pair in ours if licence_of(*pair).spdx != "MIT"] == []


def test_what_timm_records_of_the_same_repository_is_what_is_said_here():
    """But for OpenAI's: of their ViTs timm records its own default."""
    from timm.models import get_pretrained_cfg

    compared = {}
    for name, tag in open_clip.list_pretrained():
        hub = re.fullmatch(r"timm/([^/]+)/", open_clip.get_pretrained_cfg(name, tag).get("hf_hub", ""))
        if not hub or publisher(name, tag) != "others" or name.startswith("RN"):
            continue
        try:
            record = get_pretrained_cfg(hub[1])
        except RuntimeError:  # timm keeps none of that tag
            continue
        if record and record.license:
            compared[name, tag] = licence_of(name, tag).spdx == SPDX[record.license]
    assert len(compared) > 15 and all(compared.values())


def test_of_what_nobody_recorded_nothing_is_said():
    """Models that others trained on LAION's and DataComp's images have tags of the same words."""
    unknown = [
        ("ViT-L-14-CLIPA", "datacomp1b"), ("ViT-H-14-CLIPA-336", "laion2b"), ("nllb-clip-base", "v1"),
        ("ViTamin-B", "datacomp1b"), ("RN50", "cc12m"), ("ViT-B-16", "dfn2b"), ("MobileCLIP-B", "datacompdr"),
    ]  # fmt: skip
    assert {*unknown} <= {*open_clip.list_pretrained()}
    assert [pair for pair in unknown if licence_of(*pair).spdx] == []
    assert "Apple" in licence_line("MobileCLIP-B", "datacompdr") and CHECK in licence_line("ViT-B-16", "dfn2b")


def test_nothing_is_claimed_of_a_file_whatever_it_is_called():
    for name, file in (("ViT-B-16", "/weights/openai.pt"), ("EVA02-B-16", "merged2b.pt"), ("x-SigLIP", "./webli")):
        assert licence_of(name, file).spdx is None
    assert licence_line("ViT-B-16", "/weights/ViT-B-16.pt").startswith("unknown (") and CHECK in licence_line("x", "y")


def test_the_bundled_backbone_is_under_the_projects_own_licence():
    assert licence_line("tiny", None).startswith("Apache-2.0 (")
    assert licence_of("tiny", "random").spdx is None
