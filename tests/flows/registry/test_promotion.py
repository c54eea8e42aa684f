import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet
import pytest

from flows.project.paths import RunKey
from flows.registry import promotion, releases, versions
from flows.settings.params import Params
from flows.stages import prepare
from flows.tracking import store
from mmrl_core.errors import UserError
from mmrl_core.files import read_json, write_json
from tests.support.processes import PATIENCE

NAME, KEY = "digits-base-to-novel", RunKey("digits", "mmrlpp", 2, 1)
# No verdict here rests on speed: that of tests/core/evaluation/test_gate.py does.
PARAMS = Params(
    datasets=["digits"], methods=["mmrlpp"], shots=[2], seeds=[1], backbone={"name": "tiny"},
    registry={"latency": 1000},
)  # fmt: skip


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    """A folder with digits prepared and a store of MLflow's tables, to be copied."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "data/digits").mkdir(parents=True)
    prepare.prepare_pool(PARAMS, "digits", folder / "data/digits/pool")
    prepare.prepare_few_shot(PARAMS, "digits", 2, 1, folder / "data/digits/2shot-seed1")
    store.connect(f"sqlite:///{folder}/mlflow.db")
    return folder


@pytest.fixture
def project(prepared, tmp_path, monkeypatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = shutil.copytree(prepared, tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder


def register(quality: str, class_names: list[str] | None = None) -> int:
    """Register an untrained adapter: `good` ones are as right as zero-shot, `bad` ones guess what base classes are."""
    import torch

    from mmrl_core.clip.backbone import load_backbone
    from mmrl_core.config import AdapterConfig
    from mmrl_core.method.adapter import Adapter, save_adapter

    backbone, seed = load_backbone("tiny"), {"good": 0, "bad": 1, "better": 2, "worse": 3}[quality]
    torch.manual_seed(seed)
    alpha = 1.0 if quality in ("good", "better") else 0.0  # 0: by the representation branch alone, which is random here
    config = AdapterConfig(method="mmrl", insertion_depth=backbone.depth, rep_dim=16, alpha=alpha)
    adapter = Adapter(config, backbone)
    pool = read_json("data/digits/pool/manifest.json", made_by="mmrl prepare")
    names = class_names or [pool["class_names"][label] for label in pool["base"]]
    card = {"class_names": names, "template": "a photo of the digit {}.", "settings": {}, "sources": {},
            "data": {"dataset": "digits", "digest": "d" * 64}}  # fmt: skip
    shutil.rmtree(KEY.model, ignore_errors=True)
    document = save_adapter(KEY.model, adapter, backbone, card)
    metrics = {"adapter_sha256": document["sha256"], "protocol": "base-to-novel", "preset": "published", "parts": [],
               "data_digest": pool["digest"], "validation": {}}  # fmt: skip
    write_json(KEY.results() / "metrics.json", metrics)
    return versions.register(PARAMS, KEY).version


def promote(**options) -> tuple[int, str]:
    found = promotion.promote(PARAMS, "digits", **options)
    assert found.moved == (found.verdict in promotion.MOVES)
    return found.version, found.verdict


def aliases() -> dict[str, int]:
    return versions.versions_by_alias(store.connect(store.store_uri(PARAMS)), NAME)


def test_the_first_is_live_at_once_a_better_one_follows_and_a_worse_one_is_refused_for_good(project):
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


def test_a_decision_keeps_its_reasons_and_what_was_said_of_every_image(project):
    register("bad")
    promote()
    register("good")
    promote()
    [folder] = {path.parent for path in (project / "mlartifacts/promotions").rglob("outcomes.parquet")}
    text = (folder / "decision.md").read_text()
    assert text.startswith(f"# {NAME} 2 against 1: accepted\n") and "McNemar p = " in text and "| p better |" in text
    rows = pyarrow.parquet.read_table(folder / "outcomes.parquet").to_pylist()
    few_shot = (project / "data/digits/2shot-seed1").glob("val-*.tar")
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


def test_equals_are_not_exchanged_and_a_person_can_pass_the_gate_by(project):
    register("good")
    promote()
    register("better")
    assert promote()[1] in ("inconclusive", "refused")  # as right as the champion, or nearly so
    assert promote(force="the customer asked for it") == (2, "forced")
    assert aliases() == {"champion": 2, "previous": 1}
    assert promotion.history(PARAMS, "digits")[-1].reasons == ["the customer asked for it"]


def test_rolling_back_restores_the_one_before_step_by_step_and_what_was_withdrawn_stays_so(project):
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


def test_other_classes_are_refused_unless_allowed(project):
    register("bad", ["zero", "one", "two", "three"])
    promote()
    register("good")
    assert promote() == (2, "refused")
    assert "new: four; gone: none" in promotion.history(PARAMS, "digits")[-1].reasons[0]
    assert promote(new_classes=True) == (2, "accepted")


def test_data_that_is_not_what_the_challenger_was_evaluated_on_is_an_error_not_a_verdict(project):
    register("bad")
    promote()
    register("good")
    client = store.connect(store.store_uri(PARAMS))
    client.set_model_version_tag(NAME, "2", "pool_digest", "0" * 64)
    with pytest.raises(UserError, match="is not the data that version 2 was evaluated on; run `dvc repro`"):
        promote()
    assert aliases()["champion"] == 1


def test_an_altered_champion_is_found_out(project):
    register("bad")
    promote()
    [stored] = (project / "mlartifacts/digits").rglob("adapter.safetensors")
    register("good")
    stored.write_bytes(stored.read_bytes()[:-1] + b"\1")
    with pytest.raises(UserError, match="altered"):
        promote()


RACE = """
import sys
from flows.registry import promotion
from tests.flows.registry.test_promotion import PARAMS
print(promotion.promote(PARAMS, "digits", int(sys.argv[1]), force="race").version)
"""


def test_two_that_race_leave_one_champion_and_a_true_history(project):
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


def test_a_store_that_does_not_hand_out_the_champion_leaves_it_so_and_once_it_does_it_is_released_once(project):
    register("bad")
    promote()
    register("good")
    promote()
    artifacts = project / "mlartifacts"
    artifacts.rename(project / "away")
    with pytest.raises(store.StoreFailed, match="cannot be used"):
        releases.release(PARAMS, "digits")
    assert aliases() == {"champion": 2, "previous": 1}
    shutil.rmtree(artifacts, ignore_errors=True)  # MLflow may have made it anew
    (project / "away").rename(artifacts)
    with ThreadPoolExecutor(2) as pool:  # an event and a webhook
        found = list(pool.map(lambda _: releases.release(PARAMS, "digits"), range(2)))
    assert sorted(one.created for one in found) == [False, True]
    assert aliases() == {"champion": 2, "previous": 1, "released": 2}
    card = (project / found[0].folder / "README.md").read_text()
    assert card.startswith(f"# {NAME}, version 2") and "Apache-2.0 (made by this project" in card
    assert [one.verdict for one in promotion.history(PARAMS, "digits")] == ["first", "accepted", "released"]


def test_a_bundle_that_was_damaged_is_built_anew_and_a_champion_that_fails_its_check_is_rolled_back(project):
    folder = project / "releases" / NAME / "1"
    register("bad")
    promote()
    releases.release(PARAMS, "digits")
    client = store.connect(store.store_uri(PARAMS))
    built = (folder / "SHA256SUMS").stat().st_mtime_ns
    for damage in (False, True):
        client.delete_registered_model_alias(NAME, releases.RELEASED)  # as if another had been released meanwhile
        if damage:
            (folder / "README.md").write_text("another card")
        releases.release(PARAMS, "digits")
        assert ((folder / "SHA256SUMS").stat().st_mtime_ns == built) is not damage
    assert (folder / "README.md").read_text().startswith(f"# {NAME}, version 1")

    register("good")
    promote()
    stored = max((project / "mlartifacts/digits").rglob("adapter.safetensors"), key=lambda path: path.stat().st_mtime)
    stored.write_bytes(stored.read_bytes()[:-1] + b"\1")
    with pytest.raises(
        releases.ReleaseFailed, match="release of version 2 failed: .*altered.*; version 1 is the champion"
    ):
        releases.release(PARAMS, "digits")
    assert aliases() == {"champion": 1, "released": 1}
    assert not (project / "releases" / NAME / "2").exists()
    assert promote(version=2) == (2, "refused")
