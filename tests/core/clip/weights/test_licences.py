import open_clip
import pytest

from mmrl_core.clip.weights.licences import CHECK, licence_line, licence_of


def publisher(name: str, tag: str) -> str:
    """Who open_clip's list says the weights of a tag are from."""
    known = open_clip.get_pretrained_cfg(name, tag)
    if "openaipublic" in known.get("url", ""):
        return "openai"
    own = "mlfoundations" in known.get("url", "") and tag.startswith("laion")
    return "laion" if own or known.get("hf_hub", "").startswith("laion/") else "others"


@pytest.mark.parametrize("who", ["openai", "laion"])
def test_the_weights_of_openai_and_laion_are_mit_and_no_others_are_said_to_be(who):
    tags = [(name, tag) for name, tag in open_clip.list_pretrained() if name.startswith("ViT-")]
    ours = [pair for pair in tags if publisher(*pair) == who]
    assert len(ours) >= 5
    plain = [pair for pair in ours if not open_clip.get_model_config(pair[0])["text_cfg"].get("hf_model_name")]
    assert [pair for pair in plain if licence_of(*pair).spdx != "MIT"] == []
    assert [pair for pair in tags if publisher(*pair) == "others" and licence_of(*pair).spdx] == []


def test_nothing_is_claimed_of_a_file_whatever_it_is_called():
    assert licence_of("ViT-B-16", "/weights/openai.pt").spdx is None
    assert licence_line("ViT-B-16", "/weights/ViT-B-16.pt").startswith("unknown (") and CHECK in licence_line("x", "y")


def test_the_bundled_backbone_is_under_the_projects_own_licence():
    assert licence_line("tiny", None).startswith("Apache-2.0 (")
    assert licence_of("tiny", "random").spdx is None
