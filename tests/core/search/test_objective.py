"""The search's partitions and what comes of their scores, on numbers that can be checked by hand."""

import pytest

from mmrl_core.errors import UserError
from mmrl_core.search.comparison import overall
from mmrl_core.search.partitions import SearchData, fresh_partitions, partitions

DATA = SearchData(list("abcdef"), "a {}.", [0, 1, 2, 3, 4], [7, 8], [[], []], [[], []])


def test_partitions_divide_the_base_classes_anew_every_time_and_take_the_seeds_by_turns():
    found = partitions(DATA, 3, search_seed=0)
    assert [one.place for one in found] == [0, 1, 0, 1, 0, 1]
    for _, seen, unseen in found:
        assert sorted(seen + unseen) == DATA.base and len(seen) == 3
    assert len({tuple(one.seen) for one in found}) > 2
    assert found == partitions(DATA, 3, search_seed=0) != partitions(DATA, 3, search_seed=1)


def test_fresh_partitions_are_none_that_the_search_used_and_each_is_there_once():
    used = partitions(DATA, 1, search_seed=0)
    fresh = fresh_partitions(DATA, 3, 1, used)
    assert not {tuple(one.seen) for one in fresh} & {tuple(one.seen) for one in used}
    assert [one.place for one in fresh] == [0, 0, 0, 1, 1, 1]
    assert len({(one.place, tuple(one.seen)) for one in fresh}) == 6
    two = DATA._replace(base=[3, 4])
    with pytest.raises(UserError, match="used every division"):
        fresh_partitions(two, 1, 1, partitions(two, 9, 0))


def test_one_class_cannot_be_divided():
    with pytest.raises(UserError, match=r"needs 2 or more; set search\.enabled: false"):
        partitions(DATA._replace(base=[3]), 1, 0)


def test_scores_are_averaged_with_the_standard_error_of_both_objectives():
    found = overall([{"log_likelihood": -1.0, "harmonic_mean": 0.6}, {"log_likelihood": -3.0, "harmonic_mean": 0.8}])
    assert found["log_likelihood"] == -2 and found["harmonic_mean"] == pytest.approx(0.7)
    assert found["log_likelihood_se"] == pytest.approx(1) and found["harmonic_mean_se"] == pytest.approx(0.1)
