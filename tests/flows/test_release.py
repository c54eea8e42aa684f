import queue

from flows.bundles import Released, ReleaseFailed
from flows.release import attempt, looks


def test_a_listener_looks_at_once_after_a_move_and_when_nothing_came_for_a_while():
    moves: queue.Queue[None] = queue.Queue()
    at_once_and_unasked = looks(moves, every=0.01)
    assert [next(at_once_and_unasked), next(at_once_and_unasked)] == [None, None]
    after_moves = looks(moves, every=3600)
    next(after_moves)
    for _ in range(3):
        moves.put(None)
    next(after_moves)
    assert moves.empty()  # three moves are one look


def test_a_failure_of_whatever_kind_is_one_line_and_not_the_end_of_the_watch():
    def failing(error: Exception):
        def run():
            raise error

        return attempt(run)

    assert failing(ReleaseFailed("version 3 was altered")) == ["version 3 was altered"]
    assert failing(ConnectionError("refused\nat length")) == [
        "no release, until the next look: ConnectionError: refused"
    ]
    releases = [Released("photos", 1, "releases/photos/1", False), Released("digits", 2, "releases/digits/2", True)]
    assert attempt(lambda: releases) == ["released digits version 2: releases/digits/2"]
