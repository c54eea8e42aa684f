"""Which commands are killed, what there is before them, and what has to be there once they were repeated."""

import itertools
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.interruptions.server import Killed, Server
from tests.support.postgres import drop, shut

Step = tuple[Any, ...]  # a command of commands.py, and its arguments
ADAPTERS = 10
LOOK: list[Step] = [("look",)]
STATE: Step = ("state",)
THREE: list[Step] = [("register", 1), ("register", 2), ("register", 3)]
ONE = [*THREE, ("promote", 1, "the first")]
TWO = [*ONE, ("promote", 2, "it is better")]
PROMOTED = [*TWO, ("promote", 3, "better still")]
PASSED = [*ONE, ("release",), ("unname_released",)]
LATER = [("register", 3), ("promote", 3, "later")]
SAVED = [("register", 1), ("register", 2), ("promote", 1, "the first"), ("backup",)]


class Scenario(NamedTuple):
    """A command that is killed after the steps of `before`, and looks at what is there once it was repeated. `like`: by
    what the registry has to be as it is then. `may_say`: the error by which a repeat may say that all was done."""

    name: str
    before: list[Step]
    command: Step
    look: list[Step] = LOOK
    like: list[Step] | None = None
    may_say: str | None = None


# One of each command.
SCENARIOS = [
    Scenario("register, a new adapter", ONE, ("register", 4)),
    Scenario("promote, by force", ONE, ("promote", 2, "it is better")),
    Scenario("rollback", PROMOTED, ("rollback", "wrong")),
    Scenario("release, its bundle is there", PASSED, ("release",)),
    Scenario("backup", SAVED[:-1], ("backup",), [("files",), ("lose",), ("restore",), STATE], may_say="exists"),
    Scenario("restore, over another state", [*SAVED, *LATER], ("restore", True), like=SAVED),
]
MORE = [
    Scenario("register, the model's first", [], ("register", 1, "letters")),
    Scenario("register, a known adapter", ONE, ("register", 1)),
    Scenario("promote, the first", THREE, ("promote", 1, "the first")),
    Scenario("promote, one that is refused", [*TWO, ("rollback", "wrong")], ("promote", 2)),
    Scenario("rollback, the second in a row", [*PROMOTED, ("rollback", "wrong")], ("rollback", "this one too")),
    Scenario(
        "restore, of a store that was lost", [*SAVED, ("lose",)], ("restore",), like=SAVED, may_say="is not empty"
    ),
]
BUILT = Scenario("release, its bundle is not there", ONE, ("release",), [*LOOK, ("check_bundle", 1)])  # seconds a point


class Race(NamedTuple):
    """A command that is killed after the steps of `before`, and is repeated while another one runs."""

    name: str
    before: list[Step]
    command: Step
    other: Step


RACES = [
    Race("promote and promote", ONE, ("promote", 2, "it is better"), ("promote", 3, "no, this one")),
    Race("rollback and promote", TWO, ("rollback", "wrong"), ("promote", 3, "better")),
    Race("register and register", ONE, ("register", 4), ("register", 5)),
]


class Place:
    """One folder in which project after project lies, so that what a store says of absolute paths is right in each.

    `databases` makes a PostgreSQL database with MLflow's tables, or a copy of one that is named; without it stores are
    sqlite files.
    """

    def __init__(
        self,
        server: Server,
        folder: Path,
        databases: Callable[..., str] | None = None,
        variables: dict[str, str] = {},
    ):
        self._server, self._databases, self._variables = server, databases, variables
        self._now, self._kept = folder / "now", folder / "kept"
        self._uri: str | None = None
        self._project = "project"
        self._made: dict[str, tuple[Path, str | None]] = {}

    def begin(self, steps: list[Step]) -> None:
        """A new project in which these steps were done; they are done once, and copied from then on."""
        if str(steps) not in self._made:
            self._make(steps)
        kept, database = self._made[str(steps)]
        shutil.rmtree(self._now, ignore_errors=True)
        shutil.copytree(kept, self._now)
        self._project = "project"
        if self._databases:
            if self._uri and self._uri not in (uri for _, uri in self._made.values()):
                drop(self._uri)
            self._uri = self._databases(database and database.rpartition("/")[2])

    def _make(self, steps: list[Step]) -> None:
        if steps:
            self.begin(steps[:-1])
        else:
            shutil.rmtree(self._now, ignore_errors=True)
            (self._now / self._project).mkdir(parents=True)
            self._uri = self._databases() if self._databases else None
        self.run(steps[-1] if steps else ("make", ADAPTERS))
        if self._uri:
            shut(self._uri)  # one that is in use cannot be copied
        kept = shutil.copytree(self._now, self._kept / str(len(self._made)))
        self._made[str(steps)] = kept, self._uri

    def run(self, step: Step, **request: Any) -> Any:
        """What a step returns. Raises RuntimeError with its error."""
        variables = {**self._variables, **({"MLFLOW_TRACKING_URI": self._uri} if self._uri else {})}
        return self._server.ask(*step, folder=self._now / self._project, variables=variables, **request)

    def move(self) -> None:
        """The project goes to a folder of another name."""
        new = f"{self._project}-moved"
        (self._now / self._project).rename(self._now / new)
        self._project = new

    def changes(self, step: Step) -> list[str]:
        """What a step changes, in words."""
        return self.run(step, counted=str(self._now))

    def kill(self, step: Step, before: int) -> bool:
        """Do a step and kill it before one of its changes; false where it was done before it came to that."""
        try:
            self.run(step, counted=str(self._now), kill_before=before)
        except Killed:
            return True
        return False

    def at_once(self, *steps: Step) -> list[str]:
        """Do steps in several processes at once; the errors of those that failed."""
        with ThreadPoolExecutor(len(steps)) as pool:
            return [error for error in pool.map(self._error_of, steps) if error]

    def _error_of(self, step: Step) -> str | None:
        try:
            self.run(step)
        except RuntimeError as error:
            return str(error)
        return None


class Swept(NamedTuple):
    """How many changes the command makes, before which of them it was killed, and by change what came out otherwise."""

    changes: int
    killed: int
    wrong: dict[str, Any]

    @property
    def told(self) -> str:
        return f"{self.changes} changes, killed before {self.killed} of them, {len(self.wrong)} ended otherwise"


def sweep(place: Place, scenario: Scenario, every: bool = True) -> Swept:
    """Kill the command before each of its changes, repeat it, and compare what is there with what is there without the
    kill; unless `every`, before those of `_sample`."""
    place.begin(scenario.before)
    changes = place.changes(scenario.command)
    expected = [place.run(step) for step in scenario.look]
    wrong: dict[str, Any] = _unlike(place, scenario)
    numbers = range(1, len(changes) + 1) if every else _sample(changes)
    for number in numbers:
        place.begin(scenario.before)
        assert place.kill(scenario.command, number), f"it ended before change {number} of {changes}"
        if differs := _repeated(place, scenario, expected):
            wrong[f"{number}, {changes[number - 1]}"] = differs
    return Swept(len(changes), len(numbers), wrong)


def _unlike(place: Place, scenario: Scenario) -> dict[str, Any]:
    """What differs after the command from what the scenario says it is to be like, without any kill."""
    if not scenario.like:
        return {}
    after = place.run(STATE)
    place.begin(scenario.like)
    differs = difference(place.run(STATE), after)
    return {"without a kill": differs} if differs else {}


def _sample(changes: list[str]) -> list[int]:
    """The numbers of changes that are likely to differ: of many like ones in a row the first two, one in the middle and
    the last."""
    numbers: list[int] = []
    for kind, like in itertools.groupby(range(1, len(changes) + 1), lambda number: _kind(changes[number - 1])):
        row = list(like)
        few = len(row) <= 4 or kind == "commit"
        numbers += row if few else [*row[:2], row[len(row) // 2], row[-1]]
    return numbers


def _kind(change: str) -> str:
    word = change.partition(" ")[0]
    return "write" if word == "make" else word  # folders are made among the files


def _repeated(place: Place, scenario: Scenario, expected: list[Any]) -> Any:
    """What differs once the command is repeated, or the error of it or of a look."""
    try:
        place.run(scenario.command)
    except RuntimeError as error:
        if not (scenario.may_say and re.search(scenario.may_say, str(error))):
            return str(error)
    try:
        return difference(expected, [place.run(step) for step in scenario.look])
    except RuntimeError as error:
        return str(error)


def race(place: Place, raced: Race) -> Swept:
    """Kill the command before each of its changes, repeat it while another one runs, and compare what is there with
    what is there after one and the other."""
    orders = [_outcome(place, raced, order) for order in _orders(raced)]
    place.begin(raced.before)
    changes = place.changes(raced.command)
    wrong: dict[str, Any] = {}
    for number in range(1, len(changes) + 1):
        place.begin(raced.before)
        assert place.kill(raced.command, number), f"it ended before change {number} of {changes}"
        errors = place.at_once(raced.command, raced.other)
        state = place.run(STATE)
        if errors or state not in orders:
            wrong[f"{number}, {changes[number - 1]}"] = errors or [difference(order, state) for order in orders]
    return Swept(len(changes), len(changes), wrong)


def _orders(raced: Race) -> list[list[Step]]:
    """The last: the other one finishes what the killed one had begun, goes on, and then the repeat comes."""
    command, other = raced.command, raced.other
    return [[command, other], [other, command], [command, other, command]]


def _outcome(place: Place, raced: Race, order: list[Step]) -> Any:
    place.begin(raced.before)
    return [place.at_once(step) for step in order] and place.run(STATE)


def difference(expected: Any, actual: Any) -> dict[str, Any]:
    """By the way to it, what differs between two documents: what was expected, and what is there."""
    if expected == actual:
        return {}
    if isinstance(expected, dict) and isinstance(actual, dict):
        keys = [*expected, *(key for key in actual if key not in expected)]
        return _flat({key: (expected.get(key), actual.get(key)) for key in keys})
    if isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        return _flat({str(index): pair for index, pair in enumerate(zip(expected, actual, strict=True))})
    if isinstance(expected, list) and isinstance(actual, list):
        gone, come = ([one for one in expected if one not in actual], [one for one in actual if one not in expected])
        return {"": (_shown(gone), _shown(come))}
    return {"": (expected, actual)}


def _shown(entries: list[Any]) -> list[Any]:
    return entries if len(entries) <= 4 else [*entries[:3], f"... {len(entries)}"]


def _flat(pairs: dict[str, tuple[Any, Any]]) -> dict[str, Any]:
    return {
        f"{key}.{way}".rstrip("."): value
        for key, (expected, actual) in pairs.items()
        for way, value in difference(expected, actual).items()
    }
