import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest

from flows.registry import promotion
from flows.registry.contest import _class_list_change, _trained
from flows.registry.locked_model import locked
from flows.registry.versions import FetchedVersion
from flows.tracking import store
from mmrl_core.errors import UserError
from mmrl_core.evaluation.gate import Decision
from mmrl_core.protocols import HALVES
from tests.core.test_predict import save_small
from tests.support.processes import PATIENCE
from tests.support.registry.promotions import NAME, PARAMS, aliases, promote, register


def test_the_first_is_live_at_once_a_better_one_follows_and_a_worse_one_is_refused_for_good(digits_project):
    assert register("bad") == 1
    assert promote() == (1, "first") and promote() == (1, "unchanged")
    assert register("good") == 2
    assert promote() == (2, "accepted") and aliases() == {"champion": 2, "previous": 1}
    assert register("worse") == 3
    assert promote() == (3, "refused") and promote() == (3, "refused")
    assert promotion.promote(PARAMS, "digits").live == f"models:/{NAME} version 2"
    assert aliases() == {"champion": 2, "previous": 1, "challenger": 3}
    told = promotion.history(PARAMS, "digits")
    assert [(one.version, one.champion, one.verdict, one.moved) for one in told] == [
        (1, None, "first", True), (2, 1, "accepted", True), (3, 2, "refused", False)]  # fmt: skip
    assert "worse: of" in " ".join(told[-1].reasons)


def test_a_decision_keeps_its_reasons_and_what_was_said_of_every_image(digits_project):
    register("bad")
    promote()
    register("good")
    promote()
    [folder] = {path.parent for path in (digits_project / "mlartifacts/promotions").rglob("outcomes.parquet")}
    text = (folder / "decision.md").read_text()
    assert text.startswith(f"# {NAME} 2 against 1: accepted\n") and "McNemar p = " in text and "| p better |" in text
    rows = pyarrow.parquet.read_table(folder / "outcomes.parquet").to_pylist()
    few_shot = (digits_project / "data/digits/2shot-seed1").glob("val-*.tar")
    tuned_on = {
        name
        for path in few_shot
        for name in subprocess.run(
            ["tar", "-xOf", path, "--wildcards", "*.json"], capture_output=True, text=True
        ).stdout.split('"')
        if "/" in name
    }
    assert tuned_on and not tuned_on & {row["item"] for row in rows}
    assert {row["part"] for row in rows} == {"base", "novel"} and len(rows) > 60
    better = sum((row["challenger"] == row["label"]) - (row["champion"] == row["label"]) for row in rows)
    assert better > 0


def test_equals_are_not_exchanged_and_a_person_can_pass_the_gate_by(digits_project):
    register("good")
    promote()
    register("better")
    assert promote()[1] in ("inconclusive", "refused")  # as right as the champion, or nearly so
    assert promote(force="the customer asked for it") == (2, "forced")
    assert aliases() == {"champion": 2, "previous": 1}
    assert promotion.history(PARAMS, "digits")[-1].reasons == ["the customer asked for it"]


def test_rolling_back_restores_the_one_before_step_by_step_and_what_was_withdrawn_stays_so(digits_project):
    for quality in ("bad", "good", "better"):
        register(quality)
        promote(force="test")
    assert promotion.rollback(PARAMS, "digits", "wrong on Tuesdays").version == 2
    assert aliases() == {"champion": 2, "previous": 1}
    assert promote(version=3) == (3, "refused")
    assert "wrong on Tuesdays" in promotion.history(PARAMS, "digits")[-1].reasons[0]
    assert promotion.rollback(PARAMS, "digits", "that one too").version == 1
    with pytest.raises(UserError, match="nothing to go back to"):
        promotion.rollback(PARAMS, "digits", "and once more")


def test_other_classes_are_refused_unless_allowed(digits_project):
    register("bad", ["zero", "one", "two", "three"])
    promote()
    register("good")
    assert promote() == (2, "refused")
    assert "new: four; gone: none" in promotion.history(PARAMS, "digits")[-1].reasons[0]
    assert promote(new_classes=True) == (2, "accepted")


def test_class_lists_are_compared_position_by_position(tmp_path):
    lists = {"champion": ["crane", "cat", "crane"], "challenger": ["crane", "crane", "cat"], "less": ["cat", "crane"]}
    versions = {}
    for name, class_names in lists.items():
        save_small(tmp_path / name, class_names=class_names)
        versions[name] = FetchedVersion(1, {}, tmp_path / name, tmp_path)
    champion = versions["champion"]
    assert _class_list_change(champion, champion) is None
    assert "(they have another order)" in _class_list_change(champion, versions["challenger"])
    assert "(new: none; gone: crane)" in _class_list_change(champion, versions["less"])


def test_a_novel_class_with_a_base_classs_name_was_not_trained_on():
    manifest = {"class_names": ["crane", "cat", "crane", "dog"], "base": [0, 1], "novel": [2, 3]}
    assert _trained(manifest, ["crane", "cat"], ("base",)) == [0, 1]
    assert _trained(manifest, ["crane", "cat", "crane", "dog"], HALVES) == [0, 1, 2, 3]
    assert _trained(manifest, ["crane", "hen"], ("base",)) == {0: 0, 2: 0}  # trained on other data: by its name


def test_data_that_is_not_what_the_challenger_was_evaluated_on_is_an_error_not_a_verdict(digits_project):
    register("bad")
    promote()
    register("good")
    client = store.connect(store.store_uri(PARAMS))
    client.set_model_version_tag(NAME, "2", "pool_digest", "0" * 64)
    with pytest.raises(UserError, match="is not the data that version 2 was evaluated on; run `dvc repro`"):
        promote()
    assert aliases()["champion"] == 1


def test_an_altered_champion_is_found_out(digits_project):
    register("bad")
    promote()
    [stored] = (digits_project / "mlartifacts/digits").rglob("adapter.safetensors")
    register("good")
    stored.write_bytes(stored.read_bytes()[:-1] + b"\1")
    with pytest.raises(UserError, match="altered"):
        promote()


RACE = """
import sys
from flows.registry import promotion
from flows.registry.locked_model import locked
from tests.support.registry.promotions import PARAMS
print(promotion.promote(PARAMS, "digits", int(sys.argv[1]), force="race").version)
"""


def test_two_that_race_leave_one_champion_and_a_true_history(digits_project):
    for quality in ("bad", "good", "better"):
        register(quality)
    promote(version=1)
    root = Path(__file__).parents[3]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    racing = [subprocess.Popen([sys.executable, "-c", RACE, version], env=environment) for version in ("2", "3")]
    assert [one.wait(PATIENCE) for one in racing] == [0, 0]
    told = promotion.history(PARAMS, "digits")
    assert [one.champion for one in told] == [None, *(one.version for one in told[:-1])]  # each replaced the one before
    assert aliases() == {"champion": told[-1].version, "previous": told[-2].version}


def three_promoted() -> None:
    for quality in ("bad", "good", "better"):
        register(quality)
        promote(force="test")


@pytest.mark.parametrize("whole_version", [True, False])
def test_deleting_the_champion_in_mlflow_opens_no_way_past_the_gate(digits_project, whole_version):
    three_promoted()
    client = store.connect(store.store_uri(PARAMS))
    if whole_version:
        client.delete_model_version(NAME, "3")
    else:
        client.delete_registered_model_alias(NAME, "champion")
    assert promote(version=1) == (1, "refused")
    assert "version 3 was the champion" in promotion.history(PARAMS, "digits")[-1].reasons[0]
    assert aliases() == {"previous": 2, "challenger": 1}
    assert promotion.rollback(PARAMS, "digits", "3 was deleted").version == 2
    assert aliases() == {"champion": 2, "previous": 1}
    client.delete_registered_model_alias(NAME, "champion")
    assert promote(version=1, force="it is the best") == (1, "forced")


def test_a_model_that_was_deleted_and_made_anew_has_a_first_champion_again(digits_project):
    register("bad")
    promote()
    store.connect(store.store_uri(PARAMS)).delete_registered_model(NAME)
    assert register("good") == 1
    assert promote() == (1, "first")


def test_what_was_declined_of_another_champion_of_the_same_number_is_decided_again(digits_project):
    register("good")
    promote()
    register("worse")
    assert promote() == (2, "refused")
    store.connect(store.store_uri(PARAMS)).set_model_version_tag(NAME, "1", "adapter_sha256", "0" * 64)
    with pytest.raises(UserError, match="does not hold the adapter that was registered"):
        promote()  # it looks at the images, and so at the champion's files, again


def test_a_decision_of_an_older_release_that_was_cut_off_is_finished_where_its_alias_had_moved(digits_project):
    three_promoted()
    client = store.connect(store.store_uri(PARAMS))
    [experiment] = [one.experiment_id for one in client.search_experiments() if one.name == "promotions"]

    def left(version: str, champion: str, verdict: str) -> str:
        tags = {"model": NAME, "version": version, "champion": champion, "verdict": verdict, "reasons": '["by hand"]'}
        return client.create_run(experiment, tags=tags).info.run_id

    client.set_registered_model_alias(NAME, "previous", "1")  # what it did before it was killed
    client.set_registered_model_alias(NAME, "champion", "2")
    moved, not_moved = left("2", "3", "rolled back"), left("3", "2", "accepted")
    assert promote(version=2) == (2, "unchanged")
    assert [client.get_run(run).info.status for run in (moved, not_moved)] == ["FINISHED", "KILLED"]
    assert aliases() == {"champion": 2, "previous": 1}
    assert [(past.version, past.moved) for past in promotion.history(PARAMS, "digits")[-2:]] == [(2, True), (3, False)]


def test_what_the_alias_has_overtaken_is_closed_and_not_carried_out(digits_project):
    three_promoted()
    with locked(PARAMS, "digits") as model:
        client = store.connect(store.store_uri(PARAMS))
        client.set_registered_model_alias(NAME, "champion", "1")  # by hand, in MLflow's page
        with pytest.raises(UserError, match="champion is version 1 now: another process moved it"):
            model.apply(2, Decision("forced", ["test"], {}), {"previous": 3, "champion": 2}, {}, [])
    assert aliases() == {"champion": 1, "previous": 2}
    assert promotion.history(PARAMS, "digits")[-1].moved is False
    assert promote(version=1) == (1, "unchanged")


def test_a_reason_of_any_length_leaves_a_history_that_can_be_read(digits_project):
    register("bad")
    promote(force='"quoted" é ' * 2000)
    [past] = promotion.history(PARAMS, "digits")
    assert len(past.reasons[0]) == 1000 and past.reasons[0].endswith(" ...")
