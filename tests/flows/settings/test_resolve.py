"""What settings say of a backbone; how values are settled is in tests/core/test_config.py."""

import pytest

from flows.settings.params import load_params
from flows.settings.resolve import photograph_notes
from tests.support.workspace import write_params


@pytest.mark.parametrize(("changes", "named"), [
    ({"targets": ["oxford_pets", "letters"]}, "caltech101, oxford_pets: the backbone tiny was trained"),
    ({"datasets": ["digits", "birds"]}, "birds: the backbone tiny was trained"),
    ({"datasets": ["signboards"], "targets": ["objects"]}, None),
    ({"backbone": {"name": "ViT-B-32", "weights": "openai"}}, None),
])  # fmt: skip
def test_one_line_names_all_datasets_whose_photographs_the_backbone_does_not_know(tmp_path, changes, named):
    data = {"protocol": "cross-dataset" if "targets" in changes else "few-shot", "own": {"birds": {"images": "birds"}}}
    write_params(tmp_path, **{"datasets": ["digits", "caltech101"], "data": data, **changes})
    notes = photograph_notes(load_params(tmp_path / "params.yaml"))
    assert [note.startswith(named or "none") for note in notes] == ([True] if named else [])
