"""Experiments that somebody deleted on MLflow's page."""

import json
import re
import shlex

import pytest

from flows.registry import promotion
from flows.tracking.run import tracked_run
from flows.tracking.store import connect, store_uri
from mmrl_core.errors import UserError
from tests.support.registry.promotions import KEY, PARAMS, aliases, crown, register
from tests.support.workspace import write_params

LINE = re.compile(
    r"the experiment (\w+) of the MLflow store .* was deleted; bring it back with `MLFLOW_TRACKING_URI=(.+)`"
)


def delete(name: str) -> None:
    client = connect(store_uri(PARAMS))
    client.delete_experiment(client.get_experiment_by_name(name).experiment_id)


def bring_back(error: UserError | str, monkeypatch) -> str:
    """Do as the line says; the experiment's name."""
    from mlflow.cli import cli

    [(name, command)] = LINE.findall(str(error))
    uri, program, *arguments = shlex.split(command)
    assert program == "mlflow"
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        cli.main(arguments, standalone_mode=False)
    return name


def test_nothing_is_registered_into_a_deleted_experiment_until_it_is_back(digits_project, monkeypatch):
    register("good")
    delete("digits")
    with pytest.raises(UserError, match=LINE) as refused:
        register("better")
    assert register("good") == 1  # what is registered already needs no experiment
    assert bring_back(refused.value, monkeypatch) == "digits" and register("better") == 2


def test_without_its_decisions_the_registry_neither_promotes_nor_tells_an_empty_history(digits_project, monkeypatch):
    crown("good")
    register("better")
    delete("promotions")
    for attempt in (
        lambda: promotion.promote(PARAMS, "digits", force="why"),
        lambda: promotion.rollback(PARAMS, "digits", "why"),
        lambda: promotion.history(PARAMS, "digits"),
    ):
        with pytest.raises(UserError, match=LINE) as refused:
            attempt()
    assert aliases() == {"champion": 1}
    assert bring_back(refused.value, monkeypatch) == "promotions"
    assert [past.verdict for past in promotion.history(PARAMS, "digits")] == ["forced"]
    assert promotion.promote(PARAMS, "digits", force="why").verdict == "forced"


def test_a_stage_is_warned_and_a_cleaning_leaves_what_was_deleted(digits_project, monkeypatch, capsys):
    monkeypatch.setattr("flows.tracking.run.PATIENCE", 0)
    with tracked_run(PARAMS, KEY, "train", {}):
        pass
    delete("digits")
    with tracked_run(PARAMS, KEY, "train", {}):
        pass
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and LINE.search(warning)

    from flows.maintenance.cleanup import _runs

    assert list(_runs(store_uri(PARAMS), before=4e9)) == []


def test_a_history_that_holds_nothing_says_so(digits_project, mmrl):
    write_params(digits_project)
    assert json.loads(mmrl("history", "--json")) == {"digits": []}
    assert mmrl.error == f"digits: no decision is in the store {store_uri(PARAMS)}; `mmrl promote` makes the first\n"
