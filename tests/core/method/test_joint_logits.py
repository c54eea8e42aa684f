"""One label space of trained and other classes."""

import pytest
import torch

from mmrl_core.method.joint_logits import joint_logits
from mmrl_core.method.model import Output


def output(by_class, fused) -> Output:
    by_class, fused = torch.tensor(by_class), torch.tensor(fused)
    return Output(by_class, fused, fused, *[torch.empty(0)] * 3)


MIXED = output(
    [[3.0, 1.0, 2.5, 0.0], [0.0, 1.0, 4.0, 2.0]], [[-40.0, -38.0, -41.0, -39.0], [-40.0, -39.0, -41.0, -42.0]]
)
TRAINED = torch.tensor([True, True, False, False])
COLUMNS = torch.tensor([0, 1, -1, -1])


def test_classes_of_one_kind_keep_their_own_logits():
    assert joint_logits(MIXED, torch.arange(4)).equal(MIXED.logits_fused)
    assert joint_logits(MIXED, torch.full((4,), -1)).equal(MIXED.logits_class)


def test_a_kind_gets_what_the_class_logits_give_it_whatever_the_level_of_the_fused():
    kind = MIXED.logits_class.softmax(-1)[:, TRAINED].sum(-1)
    for shift in (0.0, 70.0):
        moved = MIXED._replace(logits_fused=MIXED.logits_fused + shift)
        found = joint_logits(moved, COLUMNS).softmax(-1)
        torch.testing.assert_close(found[:, TRAINED].sum(-1), kind)


def test_within_a_kind_its_own_family_ranks_the_classes():
    found = joint_logits(MIXED, COLUMNS).softmax(-1)
    trained, others = found[:, TRAINED], found[:, ~TRAINED]
    torch.testing.assert_close(trained / trained.sum(-1, keepdim=True), MIXED.logits_fused[:, TRAINED].softmax(-1))
    torch.testing.assert_close(others / others.sum(-1, keepdim=True), MIXED.logits_class[:, ~TRAINED].softmax(-1))
    assert found.argmax(-1).tolist() == [1, 2]  # the first by its fused logits, where the class logits say 0


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [2, 0, 3, 1]])
def test_the_order_of_the_classes_does_not_matter(order):
    found = joint_logits(Output(*[x[:, order] for x in MIXED[:3]], *MIXED[3:]), COLUMNS[order])
    torch.testing.assert_close(found, joint_logits(MIXED, COLUMNS)[:, order])
