import hashlib
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


def test_small_work_is_done_by_the_calling_thread_and_comes_in_order_with_the_rest():
    def work(item):
        return item, threading.current_thread() is threading.main_thread()

    parts = [range(at, at + CHUNK) for at in range(0, 20 * CHUNK, CHUNK)]
    done = list(map_in_order(lambda part: [work(item) for item in part], parts, 1, lambda part: part[0] < 9 * CHUNK))
    assert [item for part in done for item, _ in part] == list(range(20 * CHUNK))
    assert [here for part in done for _, here in part] == [True] * 9 * CHUNK + [False] * 11 * CHUNK


def test_work_that_mostly_waits_goes_to_threads_though_it_is_small():
    here = []

    def work(item):
        if threading.current_thread() is threading.main_thread():
            here.append(item)
            other = threading.Thread(target=hashlib.sha256, args=[bytes(2**22)])  # as slow as a disk
            other.start()
            other.join()
        return item

    assert list(map_in_order(work, range(40), 1, lambda _: True)) == list(range(40))
    assert here == list(range(len(here))) and parallel.SURE <= len(here) < 20
