import threading

import pytest

from mmrl_core.data import parallel
from mmrl_core.data.parallel import CHUNK, map_in_order


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(parallel.os, "cpu_count", lambda: 2)


@pytest.mark.parametrize("n", [0, 1, CHUNK, 10 * CHUNK + 1])
def test_results_come_in_the_order_of_the_items(n):
    assert list(map_in_order(lambda item: item**2, range(n))) == [item**2 for item in range(n)]


def test_items_are_taken_only_a_few_chunks_ahead():
    taken = []
    results = map_in_order(str, (taken.append(item) or item for item in range(100 * CHUNK)))
    for used in range(1, 20 * CHUNK):
        next(results)
        assert len(taken) <= used + 4 * CHUNK


def test_the_first_error_in_order_comes_out_though_a_later_item_failed_before_it():
    later_failed = threading.Event()

    def fail(item):
        if item == 0:
            assert later_failed.wait(30)
        if item == CHUNK:
            later_failed.set()
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 0"):
        list(map_in_order(fail, range(2 * CHUNK)))


def test_no_thread_is_left_when_the_reader_stops_early():
    before = threading.active_count()
    results = map_in_order(str, range(100 * CHUNK))
    next(results)
    results.close()
    assert threading.active_count() == before
