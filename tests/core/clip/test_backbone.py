"""What a backbone keeps of classes that it has encoded: for whoever asks the same again, of the weights as they are."""

import pytest
import torch

from mmrl_core.clip.backbone import KEPT_TEXTS, Backbone
from mmrl_core.clip.text_tower import TextTower
from tests.support.small import small_backbone

NAMES, TEMPLATE = ["cat", "polar bear"], "a {}."


@pytest.fixture
def backbone() -> Backbone:
    return small_backbone(seed=7)  # of no other test: this one changes its weights


def tower_of(backbone: Backbone, names=NAMES, template=TEMPLATE, n_insert=2, **more) -> TextTower:
    return backbone.text_tower(names, template, n_insert, **more)


@pytest.mark.parametrize(
    "other",
    [
        {"names": ["cat", "brown bear"]},
        {"names": NAMES[::-1]},
        {"template": "the {}."},
        {"n_insert": 1},
        {"dtype": torch.bfloat16},
        {"runs": 2},
    ],
)
def test_who_asks_the_same_gets_the_same_text_tower_and_who_asks_something_else_another(backbone, other):
    first = tower_of(backbone)
    assert tower_of(backbone, list(NAMES)) is first
    assert tower_of(backbone, **other) is not first
    assert tower_of(backbone) is first


def test_of_text_towers_the_two_that_were_asked_for_last_are_kept(backbone):
    first, second = tower_of(backbone), tower_of(backbone, n_insert=1)
    assert tower_of(backbone) is first  # which is now the later of the two
    third = tower_of(backbone, n_insert=3)
    assert tower_of(backbone, n_insert=3) is third
    assert list(backbone._texts.values()) == [first, third] and KEPT_TEXTS == 2
    assert tower_of(backbone) is first and tower_of(backbone, n_insert=1) is not second


def test_weights_that_a_training_has_written_or_that_have_moved_are_encoded_anew(backbone):
    before, features = tower_of(backbone), tower_of(backbone).zero_shot()
    weights = list(backbone.text.transformer.parameters())
    optimizer = torch.optim.SGD([one.requires_grad_() for one in weights], lr=0.1)
    sum((one**2).sum() for one in weights).backward()
    optimizer.step()
    lower = backbone.frozen_blocks("text", torch.bfloat16)[0].out.weight
    optimizer.step()
    whole, copy = (backbone.frozen_blocks("text", dtype)[0].out.weight for dtype in (torch.float32, torch.bfloat16))
    assert copy.equal(whole.bfloat16()) and not copy.equal(lower)
    written = tower_of(backbone)
    assert written is not before and not torch.allclose(written.zero_shot(), features)
    assert tower_of(backbone) is written
    backbone.to(backbone.device)
    assert tower_of(backbone) is not written
    assert tower_of(backbone).zero_shot().equal(written.zero_shot())
    same = tower_of(backbone)
    backbone.adopt({name: array.copy() for name, array in small_backbone().arrays().items()})
    assert tower_of(backbone) is not same and not tower_of(backbone).zero_shot().equal(same.zero_shot())
