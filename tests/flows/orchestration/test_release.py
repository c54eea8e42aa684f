import queue

from flows.orchestration.release import wake_ups


def test_a_listener_looks_at_once_after_a_move_and_when_nothing_came_for_a_while():
    moves: queue.Queue[None] = queue.Queue()
    at_once_and_unasked = wake_ups(moves, every=0.01)
    assert [next(at_once_and_unasked), next(at_once_and_unasked)] == [None, None]
    after_moves = wake_ups(moves, every=3600)
    next(after_moves)
    for _ in range(3):
        moves.put(None)
    next(after_moves)
    assert moves.empty()  # three moves are one look
