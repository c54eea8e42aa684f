"""Packed suffixes: what lies where, and who sees whom."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmrl_core.clip.packing import GROUP_SLOTS, pack

CPU = torch.device("cpu")
LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=60)


def rows(lengths: list[int]) -> torch.Tensor:
    """(T, 2): class and position of every packed token."""
    return torch.tensor([(c, position) for c, length in enumerate(lengths) for position in range(length)])


@given(lengths=LENGTHS)
def test_packed_tokens_come_back_from_their_groups_in_order(lengths):
    packing, x = pack(lengths, CPU), rows(lengths)
    assert packing.n_tokens == len(x) == sum(lengths)
    assert torch.equal(packing.ungroup(packing.group(x)), x)


@given(lengths=LENGTHS)
def test_a_token_sees_the_prefix_and_its_own_class_up_to_itself_and_nothing_else(lengths):
    packing, x, prefix = pack(lengths, CPU), rows(lengths), 3
    grouped = packing.group(x)
    mask = packing.mask(prefix)
    assert mask[:, :prefix].all()
    seen_by = packing.ungroup(torch.arange(grouped.shape[0] * grouped.shape[1]).view(*grouped.shape[:2], 1))[:, 0]
    for token, place in enumerate(seen_by.tolist()):
        group, slot = divmod(place, grouped.shape[1])
        seen = {tuple(grouped[group, other].tolist()) for other in mask[slot, prefix:].nonzero()[:, 0].tolist()}
        of_class, position = x[token].tolist()
        assert seen == {(of_class, earlier) for earlier in range(position + 1)}


@given(lengths=LENGTHS)
def test_the_end_of_every_class_sees_what_its_last_token_sees(lengths):
    packing, x = pack(lengths, CPU), rows(lengths)
    ends = x[packing.ends]
    assert ends.tolist() == [[c, length - 1] for c, length in enumerate(lengths)]
    grouped_ends, mask = packing.group_ends(ends), packing.ends_mask(2)
    grouped = packing.group(x)
    for c, length in enumerate(lengths):
        group, place = divmod(c, grouped_ends.shape[1])
        assert grouped_ends[group, place].tolist() == [c, length - 1]
        seen = grouped[group][mask[group, 0, place, 2:]]
        assert sorted(map(tuple, seen.tolist())) == [(c, position) for position in range(length)]


@pytest.mark.parametrize("lengths", [[4] * 16, [3, 3], [GROUP_SLOTS + 5], [1]])
def test_suffixes_of_one_length_that_fill_their_groups_are_not_copied(lengths):
    packing = pack(lengths, CPU)
    assert packing.slots is None and packing.places is None
    x = torch.arange(2.0 * packing.n_tokens).view(-1, 2)
    assert packing.group(x).data_ptr() == x.data_ptr()
