from flows.project.resources import weights_digest
from flows.settings.sections import BackboneSection
from mmrl_core.files import sha256_file


def test_what_depends_on_a_folders_weights_sees_them_change(tmp_path):
    (tmp_path / "open_clip_config.json").write_text("{}")
    weights = tmp_path / "open_clip_model.safetensors"
    weights.write_bytes(b"one")
    section = BackboneSection(name=f"local-dir:{tmp_path}")
    assert weights_digest(section) == sha256_file(weights)
    weights.write_bytes(b"other")
    assert weights_digest(section) == sha256_file(weights)
    assert weights_digest(BackboneSection(name="hf-hub:org/name")) is None
    assert weights_digest(BackboneSection(name="tiny")) is not None
