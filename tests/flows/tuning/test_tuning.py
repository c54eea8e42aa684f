"""The search's ledger, identity, first settings and table: what needs no cluster."""

import json
import os
import shutil

import numpy as np
import pytest
import torch

from flows.project import paths
from flows.settings.params import Params, load_params
from flows.settings.resolve import resolve
from flows.settings.sections import ClusterSection, SearchSection
from flows.tuning import identity
from flows.tuning.data import best_template, search_data
from flows.tuning.ledger import Ledger, trial_key
from flows.tuning.search import run_search, trial_needs
from flows.tuning.searchers import searcher
from flows.tuning.space import first_points, within
from flows.tuning.trainable import _report
from mmrl_core.clip.backbone import load_backbone
from mmrl_core.errors import UserError
from mmrl_core.search.objective import partition_scores
from mmrl_core.search.partitions import partitions
from tests.flows.conftest import RUN
from tests.support.workspace import QUICK, write_params

SCORES = {"log_likelihood": -1.0, "harmonic_mean": 0.5, "losses": [2.0, 1.0]}
SPACE = {"adapter.reg_weight": {"loguniform": [0.1, 30]}, "adapter.insertion_depth": {"choice": [3, 5]}}
PUBLISHED = {"adapter.reg_weight": 0.5, "adapter.insertion_depth": 3}
SIX = {"train.lr": {"choice": [1, 2, 3]}}
POINT = {"adapter.reg_weight": 2.0, "adapter.insertion_depth": 5}


def filled(folder, state="complete") -> Ledger:
    ledger = Ledger(folder)
    ledger.open(POINT)
    ledger.add(POINT, 0, SCORES, 1.5)
    ledger.end(POINT, state)
    return ledger


def test_a_ledger_is_read_back_as_it_was_and_knows_a_trial_by_its_settings(tmp_path):
    filled(tmp_path)
    found = Ledger(tmp_path)
    assert found.open(dict(reversed(POINT.items())))["scores"] == [SCORES] and len(found.all()) == 1
    assert found.open(PUBLISHED)["number"] == 1 and found.all()[0]["state"] == "complete"


def test_a_trial_that_another_machine_drew_with_other_last_bits_is_the_same_one(tmp_path):
    drawn = {"adapter.reg_weight": 22.385797862648307, "adapter.insertion_depth": 3}
    here = Ledger(tmp_path)
    here.open(drawn)
    here.add(drawn, 0, SCORES, 1.5)
    for towards in (0, 30):
        other = {**drawn, "adapter.reg_weight": float(np.nextafter(drawn["adapter.reg_weight"], towards))}
        assert Ledger(tmp_path).open(other)["scores"] == [SCORES]
        assert [one["params"] for one in Ledger(tmp_path).records([other])] == [drawn]
    assert Ledger(tmp_path).open({**drawn, "adapter.reg_weight": 22.385799})["scores"] == []


def test_a_record_that_an_earlier_release_named_by_every_digit_goes_on(tmp_path):
    drawn = {"adapter.reg_weight": 22.385797862648307, "adapter.insertion_depth": 3}
    Ledger(tmp_path).open(drawn)
    [path] = tmp_path.glob("*.json")
    path.rename(tmp_path / "ba7a20fca7ec97cb.json")
    found = Ledger(tmp_path)
    assert found.unfinished([drawn]) == [drawn] and found.open(drawn)["number"] == 0
    found.add(drawn, 0, SCORES, 1.5)
    assert len(list(tmp_path.glob("*.json"))) == 1 and Ledger(tmp_path).open(drawn)["scores"] == [SCORES]


def test_a_searcher_is_told_the_same_of_scores_that_differ_in_the_last_bit(tmp_path):
    record = filled(tmp_path).all()[0]
    other = {**record, "scores": [{**SCORES, "log_likelihood": float(np.nextafter(-1.0, 0))}]}
    told = [_report([one], 1) for one in (record, other)]
    assert told[0]["log_likelihood"] == told[1]["log_likelihood"] == -1.0


def test_the_first_of_equally_accurate_templates_is_taken_whatever_the_last_bits():
    for accuracy in (0.7, float(np.nextafter(0.7, 1)), float(np.nextafter(0.7, 0))):
        assert best_template({"a {}.": 0.7, "the {}.": accuracy, "no {}.": 0.6}) == "a {}."
    assert best_template({"a {}.": None, "the {}.": None}) == "a {}."


def test_a_lost_trial_stays_lost_until_the_search_is_started_again(tmp_path):
    filled(tmp_path, "lost")
    found = Ledger(tmp_path)
    assert found.open(POINT)["state"] == "lost"
    found.reopen()
    assert found.open(POINT)["state"] == "running" and found.open(POINT)["scores"] == [SCORES]


def test_what_is_done_is_entered_once(tmp_path):
    ledger = filled(tmp_path)
    before = (tmp_path / f"{trial_key(POINT)}.json").read_bytes()
    ledger.add(POINT, 0, {**SCORES, "log_likelihood": -9.0}, 9.0)
    ledger.end(POINT, "failed", "no")
    assert (tmp_path / f"{trial_key(POINT)}.json").read_bytes() == before


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"schema_version": 1, "params": {}}', b"\xff"])
def test_a_damaged_record_is_a_trial_that_runs_again(tmp_path, damage):
    filled(tmp_path)
    (tmp_path / f"{trial_key(POINT)}.json").write_bytes(damage)
    assert Ledger(tmp_path).all() == []


def test_a_disk_that_takes_no_record_ends_the_writing_not_the_search(tmp_path):
    (tmp_path / "file").write_text("in the way")
    ledger = filled(tmp_path / "file" / "ledger")
    assert ledger.all()[0]["scores"] == [SCORES] and "Not a directory" in ledger.troubles()[0]


def test_the_published_settings_come_first_where_the_space_holds_them():
    search = SearchSection(space=SPACE)
    assert first_points(search, SPACE, PUBLISHED, []) == [PUBLISHED]
    assert first_points(search, SPACE, {**PUBLISHED, "adapter.reg_weight": 0.01}, []) == []
    assert first_points(search.model_copy(update={"warm_start": "none"}), SPACE, PUBLISHED, []) == []


@pytest.mark.parametrize("kind", ["random", "optuna"])
def test_every_searcher_begins_where_the_space_does_not_hold_all_published_settings(kind):
    search = SearchSection(space=SPACE, searcher=kind)
    points = first_points(search, SPACE, {**PUBLISHED, "adapter.reg_weight": 0.01}, [])
    assert within(SPACE, searcher(search, SPACE, points, []).suggest("first"))


def test_the_best_of_earlier_searches_come_next_if_the_space_holds_them(tmp_path):
    search = SearchSection(space=SPACE, warm_start="earlier")
    earlier = [filled(tmp_path / "one"), filled(tmp_path / "two"), filled(tmp_path / "three", state="stopped")]
    assert first_points(search, SPACE, PUBLISHED, earlier) == [PUBLISHED, POINT]
    narrow = {**SPACE, "adapter.insertion_depth": {"choice": [3, 4]}}
    assert not within(narrow, POINT) and first_points(search, narrow, PUBLISHED, earlier) == [PUBLISHED]


@pytest.mark.parametrize(("search", "said"), [
    ({"searcher": "grid", "space": SPACE}, r"give search\.space adapter\.reg_weight as a choice"),
    ({"searcher": "grid", "trials": 5, "space": {**SIX, "train.epochs": {"choice": [1, 2]}}},
     r"the grid of search\.space has 6 settings, search\.trials is 5"),
    ({"searcher": "annealing"}, r"search\.searcher"),
    ({"scheduler": "hyperband"}, r"search\.scheduler"),
    ({"second_objective": "beauty"}, r"search\.second_objective"),
])  # fmt: skip
def test_a_search_that_cannot_be_is_refused_before_anything_starts(project, search, said):
    write_params(project, **{**QUICK, "search": search})
    with pytest.raises(UserError, match=said):
        load_params("params.yaml")


@pytest.mark.parametrize("address", ["ray://head:10001", "head", "head:port", ""])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(ValueError, match="address"):
        Params(datasets=["digits"], methods=["mmrl"], shots=[1], seeds=[1], cluster={"address": address})


def test_a_device_that_is_not_there_is_told_before_the_search_not_by_the_training_after_it(project):
    write_params(project, **{**QUICK, "shots": [2], "search": {"enabled": True}})
    absent = "mps" if torch.cuda.is_available() else "cuda"
    with pytest.raises(UserError, match=f"^device is {absent}, and PyTorch finds none here"):
        run_search(load_params("params.yaml", [f"device={absent}"]), "digits", "mmrl")
    assert not [*paths.searches("digits", "mmrl").rglob("trials/*")]


def facts(project, **search):
    write_params(project, **{**QUICK, "shots": [2], "search": {"enabled": True, **search}})
    return identity.facts(load_params("params.yaml"), "digits", "mmrl")


def test_more_trials_are_the_same_search_and_another_space_is_a_new_one_that_says_what_changed(project):
    first = identity.open_folder(facts(project))
    assert first == identity.open_folder(facts(project, trials=99))
    assert first[1] == [] and first[0].parent == paths.searches("digits", "mmrl")
    folder, differs = identity.open_folder(facts(project, space={"train.lr": {"choice": [0.1, 0.2]}}, seed=7))
    assert folder != first[0] and differs == ["search.seed", "search.space"]
    assert identity.open_folder(facts(project)) == first  # back to the first one: nothing to be said
    assert identity.earlier(facts(project)) == [folder]
    assert identity.open_folder(facts(project, concurrent=None))[1] == ["in_order"]


def test_a_search_on_images_that_must_not_be_mirrored_is_not_the_one_that_mirrored_them(project):
    shutil.copytree("data/digits", "data/mine")
    found = []
    for flips in (True, False):
        own = {"mine": {"images": "images", "flips": flips}}
        write_params(project, **{**QUICK, "datasets": ["mine"], "shots": [2], "data": {"own": own}})
        found.append(identity.facts(load_params("params.yaml"), "mine", "mmrl"))
    assert found[0] != found[1]


def test_a_probe_which_is_fitted_after_the_search_makes_no_new_search(project):
    probes = (["adapter.probe=fused"], ["adapter.probe=off"], ["adapter.probe=null"])
    write_params(project, **{**QUICK, "shots": [2], "search": {"enabled": True}})
    found = [identity.facts(load_params("params.yaml", one), "digits", "mmrl") for one in probes]
    assert found[0] == found[1] == found[2]


def test_a_trial_fits_no_probe(project):
    backbone, scored = load_backbone("tiny"), []
    for probe in ("fused", "off"):
        settings = ["train.epochs=1", "adapter.alpha=0", f"adapter.probe={probe}"]  # with which a probe would help
        params = load_params("params.yaml", settings)
        data, _ = search_data(params, "digits")
        [part] = partitions(data, 1, 0)
        resolved = resolve(params, "digits", "mmrl", 1, backbone.depth)
        [(_, scores)] = partition_scores(backbone, [(resolved, part)], data)
        scored.append({**scores, "step_time": None})
    assert scored[0] == scored[1]


def test_a_search_of_a_release_that_searched_otherwise_is_begun_anew_and_says_why(project):
    now = facts(project)
    identity.open_folder({key: value for key, value in now.items() if key != "search_version"})
    assert identity.open_folder(now)[1] == ["search_version"]


def test_what_a_search_was_is_read_only_from_a_whole_file(project):
    folder, _ = identity.open_folder(facts(project))
    (folder / identity.FACTS).write_text("{")
    assert identity.open_folder(facts(project)) == (folder, [])


def write_search(project, **changes):
    trials = [
        {"params": PUBLISHED, "state": "stopped", "log_likelihood": -1.2, "log_likelihood_se": 0.1,
         "harmonic_mean": 0.8, "harmonic_mean_se": 0.01, "trainable_parameters": 10, "scores": [SCORES]},
        {"params": POINT, "state": "complete", "log_likelihood": -1.0, "log_likelihood_se": 0.1,
         "harmonic_mean": 0.9, "harmonic_mean_se": 0.01, "trainable_parameters": 20, "scores": [SCORES, SCORES]},
        {"params": {**POINT, "adapter.reg_weight": 9.0}, "state": "failed", "failure": "diverged", "scores": []},
    ]  # fmt: skip
    ahead = {"published": {"trial": 0, "difference": 0.2, "se": 0.05}, "runner_up": None}
    document = {"schema_version": 1, "search": {"objective": "log_likelihood"}, "trials": trials, "chosen": 1,
                "choice": POINT, "ahead_of": ahead, "pareto_front": [1], **changes}  # fmt: skip
    path = project / paths.search("digits", "mmrl")
    path.write_text(json.dumps(document))


def test_show_prints_the_trials_best_first_and_how_far_the_chosen_one_is_ahead(project, mmrl):
    write_search(project)
    out = mmrl("tune", *RUN[:4], "--show").splitlines()
    assert [line.split()[0] for line in out[:4]] == ["trial", "1", "0", "2"]
    assert "chosen, Pareto front" in out[1] and "stopped" in out[2] and "diverged" in out[3]
    assert out[-1] == ("chosen by log-likelihood: adapter.reg_weight 2, adapter.insertion_depth 5; "
                       "0.2000 ± 0.0500 ahead of published")  # fmt: skip
    assert json.loads(mmrl("tune", *RUN[:4], "--show", "--json"))["trials"][1]["params"] == POINT


def test_show_without_a_search_says_what_to_do(project, mmrl):
    write_search(project, trials=[], choice={})
    path = project / paths.search("digits", "mmrl")
    path.write_text(
        json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "ahead_of"})
    )
    assert "has no trials" in mmrl("tune", *RUN[:4], "--show", code=2)
    os.remove(project / paths.search("digits", "mmrl"))
    assert "run `mmrl tune --dataset digits --method mmrl` first" in mmrl("tune", *RUN[:4], "--show", code=2)


@pytest.mark.parametrize(
    ("cluster", "at_once", "cores", "cpus"),
    [
        ({}, 1, 8, 8),
        ({}, 3, 8, 2),
        ({}, 16, 8, 1),
        ({}, None, 8, 1),
        ({"address": "auto"}, 1, 8, 1),
        ({"cpus_per_trial": 3}, 1, 8, 3),
    ],
)
def test_trials_share_the_cores_of_this_machine(cluster, at_once, cores, cpus):
    assert trial_needs(ClusterSection(**cluster), at_once, cores).cpus == cpus
