"""The most probable names, with equal ones and with classes that share a name."""

import pytest
import torch

from mmrl_core.evaluation.ranking import largest, names_of, ranked


@pytest.mark.parametrize("values", [1, 3, 40, 10**6])
@pytest.mark.parametrize("count", [1, 5, 200, 300])
def test_the_largest_come_first_and_of_equal_ones_the_first(values, count):
    random = torch.Generator().manual_seed(values)
    probabilities = torch.randint(values, (7, 200), generator=random) / values
    found, places = largest(probabilities, count)
    expected = probabilities.sort(dim=-1, descending=True, stable=True)
    assert found.equal(expected.values[:, :count]) and places.equal(expected.indices[:, :count])


def test_nothing_and_the_smallest_numbers_are_in_order():
    probabilities = torch.tensor([[0.0, 1e-45, 1.0, 0.0, 1e-38]])
    assert largest(probabilities, 5)[1].tolist() == [[2, 4, 1, 0, 3]]


def test_what_is_no_number_stays_to_be_seen():
    assert largest(torch.full((1, 3), float("nan")), 2)[0].isnan().all()


def test_each_image_gets_as_many_names_as_it_asks_for():
    probabilities = torch.tensor([[0.1, 0.5, 0.1, 0.3]]).expand(4, 4)
    answers = ranked(probabilities, names_of(["a", "b", "c", "d"]), [2, None, 9, 3])
    assert {one[:2] for one in answers} == {("b", 0.5)}
    found = [one.probabilities for one in answers]
    assert [list(one) for one in found] == [["b", "d"], ["a", "b", "c", "d"], ["b", "d", "a", "c"], ["b", "d", "a"]]
    assert found[0] == pytest.approx({"b": 0.5, "d": 0.3})


def test_the_probabilities_of_a_name_are_added_up_before_the_most_probable_are_chosen():
    probabilities = torch.tensor([[0.25, 0.125, 0.3125, 0.125, 0.1875], [0.0, 0.5, 0.5, 0.0, 0.0]])
    names = names_of(["a", "b", "c", "a", "b"])
    assert names.distinct == ["a", "b", "c"]
    for count in (1, 2, 3, None):
        one, other = ranked(probabilities, names, [count, count])
        assert one[:2] == ("a", 0.375) and other[:2] == ("b", 0.5)  # and so is c: the first is the label
        first, second = one.probabilities, other.probabilities
        assert list(first.items()) == [("a", 0.375), ("b", 0.3125), ("c", 0.3125)][:count]
        assert list(second.items())[:1] == ([("b", 0.5)] if count else [("a", 0.0)])


def test_a_list_without_equal_names_is_not_added_up():
    assert names_of(["a", "b"]).places is None
