"""Commands that are killed before each of their changes and repeated, on sqlite; on PostgreSQL in tests/slow."""

import pytest

from tests.support.interruptions.scenarios import BUILT, MORE, RACES, SCENARIOS, race, sweep

DEAR = ("release, its bundle is there",)  # half a minute, and the endurance tests have it


@pytest.mark.parametrize("scenario", [one for one in SCENARIOS if one.name not in DEAR], ids=lambda one: one.name)
def test_a_command_that_is_killed_and_repeated_leaves_what_one_that_is_not_killed_leaves(place, scenario, counted):
    counted(scenario.name, sweep(place, scenario, every=False))


@pytest.mark.slow
@pytest.mark.endurance
@pytest.mark.parametrize("raced", RACES, ids=lambda one: one.name)
def test_the_repeat_of_a_command_that_was_killed_and_another_command_at_once_act_one_after_the_other(
    place, raced, counted
):
    counted(f"{raced.name} at once", race(place, raced))


@pytest.mark.slow
@pytest.mark.endurance
@pytest.mark.parametrize("scenario", [*SCENARIOS, *MORE, BUILT], ids=lambda one: one.name)
def test_that_is_so_before_every_one_of_its_changes(place, scenario, counted):
    swept = sweep(place, scenario)
    counted(scenario.name, swept)
    assert swept.killed == swept.changes
