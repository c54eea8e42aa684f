"""A queue in which processes wait for one another through an MLflow server, which has no locks: Lamport's bakery.

Each draws a ticket, a run in the experiment `locks`, with a number above every number that it sees, and is at the head
once no other living ticket has a lower one. Reading and writing tags is all that the bakery needs of a server. A living
ticket beats; one whose beat stands still, by the clock of whoever waits behind it, is ended.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from flows.tracking.store import connect, experiment_id, store_errors
from mmrl_core.errors import UserError
from mmrl_core.parsing import whole_number

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "locks"
LOCK, NUMBER, BEAT = "lock", "number", "beat"  # tags; a ticket without a number is being drawn
BEAT_SECONDS, DEAD_SECONDS, LOOK_SECONDS = 5.0, 40.0, 0.5


@contextlib.contextmanager
def queued(
    uri: str, name: str, patience: float, say_waiting: Callable[[], None], busy: str
) -> Iterator[Callable[[], bool]]:
    """Be at the head of the queue `name`; yields what asks the server whether that is still so.

    Calls `say_waiting` once where others are before it. Raises UserError with the text `busy` after `patience` seconds.
    """
    with store_errors(uri):
        client = connect(uri)
        queue = _Queue(client, experiment_id(client, uri, EXPERIMENT), name)
        ticket = queue.draw()
    stop = threading.Event()
    beating = threading.Thread(target=queue.beat, args=(ticket, stop), name="beat", daemon=True)
    beating.start()
    try:
        with store_errors(uri):
            queue.wait(ticket, patience, say_waiting, busy)
        yield lambda: queue.is_in(ticket)
    finally:
        stop.set()
        beating.join()
        with contextlib.suppress(Exception):  # it is ended by whoever waits behind it
            client.delete_run(ticket)


class _Queue:
    def __init__(self, client: "MlflowClient", experiment: str, name: str):
        self._client, self._experiment, self._name = client, experiment, name
        self._beats: dict[str, tuple[str, float]] = {}  # of others' tickets: the last one seen, and when first

    def draw(self) -> str:
        """A new ticket, behind all that there are; its run's id."""
        ticket = self._client.create_run(self._experiment, run_name=self._name, tags={LOCK: self._name, BEAT: "0"})
        highest = max((_number(run) or 0 for run in self._tickets()), default=0)
        self._client.set_tag(ticket.info.run_id, NUMBER, str(highest + 1))
        return ticket.info.run_id

    def beat(self, ticket: str, stop: threading.Event) -> None:
        count = 0
        while not stop.wait(BEAT_SECONDS):
            count += 1
            with contextlib.suppress(Exception):  # the server may be back in time
                self._client.set_tag(ticket, BEAT, str(count))

    def wait(self, ticket: str, patience: float, say_waiting: Callable[[], None], busy: str) -> None:
        """Until no living ticket is before this one."""
        deadline, said = time.monotonic() + patience, False
        while True:
            tickets = self._tickets()
            ours = next((run for run in tickets if run.info.run_id == ticket), None)
            before = [run for run in tickets if ours and _is_before(run, ours)]
            if ours and not before:
                return
            if ours is None or time.monotonic() > deadline:
                raise UserError(busy)
            if not said:
                say_waiting()
                said = True
            self._end_dead(before)
            time.sleep(LOOK_SECONDS)

    def is_in(self, ticket: str) -> bool:
        """Whether the ticket is in the queue: nobody took this process for dead. False where the server is away."""
        try:
            return any(run.info.run_id == ticket for run in self._tickets())
        except Exception:
            return False

    def _tickets(self) -> "list[Run]":
        where = f"tags.{LOCK} = '{self._name}' and attributes.status = 'RUNNING'"
        return list(self._client.search_runs([self._experiment], where, max_results=1000))

    def _end_dead(self, tickets: "list[Run]") -> None:
        """End those whose beat has stood still while this process was looking."""
        now = time.monotonic()
        for run in tickets:
            beat, since = self._beats.get(run.info.run_id, ("", now))
            if beat != run.data.tags.get(BEAT):
                self._beats[run.info.run_id] = run.data.tags.get(BEAT, ""), now
            elif now - since > DEAD_SECONDS:
                self._client.delete_run(run.info.run_id)


def _number(run: "Run") -> int | None:
    return whole_number(run.data.tags.get(NUMBER, ""))


def _is_before(run: "Run", ours: "Run") -> bool:
    """Whether a ticket has to be waited for: its number is lower, or not known yet."""
    if run.info.run_id == ours.info.run_id:
        return False
    number = _number(run)
    return number is None or (number, run.info.run_id) < (_number(ours) or 0, ours.info.run_id)
