"""Commands that are killed before each of their changes and repeated, on PostgreSQL."""

import os
from collections.abc import Sequence

import pytest

from tests.support.interruptions.scenarios import MORE, RACES, SCENARIOS, race, sweep
from tests.support.postgres import create_database, program

pytestmark = pytest.mark.slow
OTHERWISE = ("promote, by force", "restore, over another state", "promote and promote")  # than on sqlite


def sampled(cases: Sequence) -> list:
    """Where PostgreSQL differs: its lock, its transactions, its own programs. The others are for the long sweeps."""
    marks = {False: pytest.mark.endurance, True: ()}
    return [pytest.param(one, id=one.name, marks=marks[one.name in OTHERWISE]) for one in cases]


@pytest.fixture(scope="module")
def place(new_place, postgres_port, mlflow_database):
    path = f"{program('pg_dump').parent}{os.pathsep}{os.environ['PATH']}"
    return new_place(
        databases=lambda name=None: create_database(postgres_port, name) if name else mlflow_database(),
        variables={"PATH": path},
    )


@pytest.mark.parametrize("scenario", sampled(SCENARIOS))
def test_a_command_that_is_killed_and_repeated_leaves_what_one_that_is_not_killed_leaves(place, scenario, counted):
    counted(f"PostgreSQL, {scenario.name}", sweep(place, scenario, every=False))


@pytest.mark.parametrize("raced", sampled(RACES))
def test_the_repeat_of_a_command_that_was_killed_and_another_command_at_once_act_one_after_the_other(
    place, raced, counted
):
    counted(f"PostgreSQL, {raced.name} at once", race(place, raced))


@pytest.mark.endurance
@pytest.mark.parametrize("scenario", [*SCENARIOS, *MORE], ids=lambda one: one.name)
def test_that_is_so_before_every_one_of_its_changes(place, scenario, counted):
    swept = sweep(place, scenario)
    counted(f"PostgreSQL, {scenario.name}", swept)
    assert swept.killed == swept.changes
