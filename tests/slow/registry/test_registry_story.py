"""Ten versions, kills, restores of older archives, a moved folder: random stories, compared step by step with a model
of the registry in plain Python (tests/support/interruptions/oracle.py)."""

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from tests.support.interruptions.oracle import NEEDS_GATE, Refused, Registry, comparable
from tests.support.interruptions.scenarios import ADAPTERS, TWO, Place, Step, difference

pytestmark = [pytest.mark.slow, pytest.mark.endurance]  # CI kills single commands: test_interruptions_postgres.py

NAME = "digits-base-to-novel"
STORIES, STEPS, BUNDLES = 8, 26, 2
KILLS = st.lists(st.integers(1, 16), max_size=2)  # before which change a command is killed, and its repeat


class Told:
    """How many steps all stories had, how many commands were killed in them, and bundles made, each of which takes
    seconds."""

    steps = killed = bundles = 0


def story(place: Place) -> type[RuleBasedStateMachine]:
    """The stories that are told in a place."""

    class Story(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            place.begin(TWO)
            self.registry, self.archives, self.adapters = Registry(), [], place.run(("adapters",))
            for command, *arguments in TWO:
                if command == "register":
                    self.registry.register(self.adapters[arguments[0] - 1])
                else:
                    self.registry.promote(*arguments)
            self.rare = 2  # times that the folder is moved or the champion deleted

        def do(self, step: Step, kills: list[int]) -> None:
            """Have the step done, killed and repeated, and compare."""
            Told.steps += 1
            for before in kills:
                if not place.kill(step, before):
                    break
                Told.killed += 1
            else:
                place.run(step)
            self.compare()

        def compare(self) -> None:
            state = place.run(("state",))
            assert state.pop("open decisions") == 0
            differs = difference(self.registry.state(), comparable(state[NAME]))
            assert not differs, differs

        def refused(self, step: Step, kills: list[int], why: str) -> None:
            with pytest.raises(RuntimeError, match=why):
                self.do(step, kills)
            self.compare()

        @rule(seed=st.integers(1, ADAPTERS), kills=KILLS)
        def register(self, seed: int, kills: list[int]) -> None:
            self.registry.register(self.adapters[seed - 1])
            self.do(("register", seed), kills)

        @precondition(lambda self: self.registry.versions)
        @rule(which=st.integers(0, ADAPTERS), forced=st.booleans(), kills=KILLS)
        def promote(self, which: int, forced: bool, kills: list[int]) -> None:
            number = sorted(self.registry.versions)[which % len(self.registry.versions)]
            forced = forced or self.registry.verdict(number) == NEEDS_GATE
            force = f"reason {Told.steps}" if forced else None
            self.registry.promote(number, force)
            self.do(("promote", number, force), kills)

        @rule(kills=KILLS)
        def rollback(self, kills: list[int]) -> None:
            step = ("rollback", f"reason {Told.steps}")
            try:
                self.registry.rollback(step[1])
            except Refused:
                self.refused(step, kills, "nothing to go back to")
            else:
                self.do(step, kills)

        @precondition(lambda self: Told.bundles < BUNDLES or not self.registry.needs_bundle())
        @rule(kills=KILLS)
        def release(self, kills: list[int]) -> None:
            Told.bundles += self.registry.needs_bundle()
            try:
                self.registry.release()
            except Refused:
                self.refused(("release",), kills, "has no champion")
            else:
                self.do(("release",), kills)

        @precondition(lambda self: self.rare and self.registry.aliases.get("champion"))
        @rule()
        def delete_the_champion(self) -> None:
            self.rare -= 1
            number = self.registry.aliases["champion"]
            self.registry.delete(number)
            self.do(("delete_version", number), [])

        @precondition(lambda self: self.registry.versions)
        @rule(kills=KILLS)
        def backup(self, kills: list[int]) -> None:
            self.archives.append(self.registry.saved())
            step = ("backup", f"../archives/{len(self.archives)}.tar")
            try:
                self.do(step, kills)
            except RuntimeError as error:  # killed when the archive was there already
                if "exists" not in str(error) or not kills:
                    raise

        @precondition(lambda self: self.archives)
        @rule(which=st.integers(0, 9), kills=KILLS)
        def restore(self, which: int, kills: list[int]) -> None:
            which %= len(self.archives)
            self.registry = self.registry.restored(self.archives[which])
            self.do(("restore", True, f"../archives/{which + 1}.tar"), kills)

        @precondition(lambda self: self.rare)
        @rule()
        def move_the_folder(self) -> None:
            self.rare -= 1
            place.move()
            self.do(("open_store",), [])

    return Story


def test_what_the_registry_says_is_what_a_plain_model_of_it_says_whatever_happens(place, record_property):
    told = settings(
        max_examples=STORIES, stateful_step_count=STEPS, derandomize=True, deadline=None, database=None,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    try:
        run_state_machine_as_test(story(place), settings=told)
    finally:
        counted = f"a story of the registry: {Told.steps} steps, {Told.killed} commands killed"
        record_property("killed and repeated", counted)
    assert Told.steps >= 200
