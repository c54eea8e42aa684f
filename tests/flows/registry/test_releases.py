"""Releases of a project whose version 2 was promoted in place of 1, and released before."""

import os
import shutil
import signal
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from flows.registry import promotion, releases, versions
from flows.tracking import store
from mmrl_core.method.adapter_card import read_card
from tests.support.hold import Hold
from tests.support.processes import PATIENCE, wait_until
from tests.support.registry.promotions import NAME, PARAMS, aliases, crown, promote, register

BEFORE = ["forced", "accepted", "released"]  # verdicts of the project's history


def release() -> releases.ReleasedVersion:
    return releases.release(PARAMS, "digits")


def unname_released() -> None:
    """As if another version had been released meanwhile; its bundle stays."""
    store.connect(store.store_uri(PARAMS)).delete_registered_model_alias(NAME, releases.RELEASED)


def verdicts() -> list[str]:
    return [past.verdict for past in promotion.history(PARAMS, "digits")]


def test_a_store_that_does_not_hand_out_the_champion_leaves_it_so_and_once_it_does_it_is_released_once(
    released_project,
):
    register("better")
    promote(force="test")
    artifacts = released_project / "mlartifacts"
    artifacts.rename(released_project / "away")
    with pytest.raises(store.StoreFailed, match="cannot be used"):
        release()
    assert aliases() == {"champion": 3, "previous": 2, "released": 2}
    shutil.rmtree(artifacts, ignore_errors=True)  # MLflow may have made it anew
    (released_project / "away").rename(artifacts)
    with ThreadPoolExecutor(2) as pool:  # an event and a webhook
        done = list(pool.map(lambda _: release(), range(2)))
    assert sorted(one.created for one in done) == [False, True]
    assert aliases() == {"champion": 3, "previous": 2, "released": 3}
    card = (released_project / done[0].folder / "README.md").read_text()
    assert card.startswith(f"# {NAME}, version 3") and "Apache-2.0 (made by this project" in card
    assert verdicts() == [*BEFORE, "forced", "released"]


def test_a_bundle_that_was_damaged_is_built_anew_and_a_champion_that_fails_its_check_is_rolled_back(released_project):
    folder = released_project / "releases" / NAME / "2"
    built = (folder / "SHA256SUMS").stat().st_mtime_ns
    for damage in (False, True):
        unname_released()
        if damage:
            (folder / "README.md").write_text("another card")
        release()
        assert ((folder / "SHA256SUMS").stat().st_mtime_ns == built) is not damage
    assert (folder / "README.md").read_text().startswith(f"# {NAME}, version 2")

    register("better")
    promote(force="test")
    stored = max(
        (released_project / "mlartifacts/digits").rglob("adapter.safetensors"), key=lambda path: path.stat().st_mtime
    )
    stored.write_bytes(stored.read_bytes()[:-1] + b"\1")
    with pytest.raises(
        releases.ReleaseFailed, match="release of version 3 failed: .*altered.*; version 2 is the champion"
    ):
        release()
    assert aliases() == {"champion": 2, "previous": 1, "released": 2}
    assert not (released_project / "releases" / NAME / "3").exists()
    assert promote(version=3) == (3, "refused")


@pytest.fixture
def hold(tmp_path, monkeypatch):
    """The process that checks a bundle stops before it reads the sums."""
    hold = Hold(tmp_path / "hold", "*SHA256SUMS")
    for name, value in hold.environment.items():
        monkeypatch.setenv(name, value)
    yield hold
    hold.go()


def release_until_held(pool: ThreadPoolExecutor, hold: Hold) -> Future:
    releasing = pool.submit(release)
    wait_until(lambda: hold.held.exists() or releasing.done(), PATIENCE, lambda: "the check of the bundle")
    return releasing


def test_a_check_that_is_killed_says_nothing_about_the_champion(released_project, hold):
    unname_released()
    with ThreadPoolExecutor() as pool:
        releasing = release_until_held(pool, hold)
        os.kill(int(hold.held.read_text()), signal.SIGKILL)
        with pytest.raises(
            releases.NotChecked, match="the check of version 2 ended by signal 9 .* nothing was changed"
        ):
            releasing.result()
        assert aliases() == {"champion": 2, "previous": 1} and verdicts() == BEFORE
        hold.go()
        assert release().created
    assert aliases() == {"champion": 2, "previous": 1, "released": 2}


def test_a_version_that_is_replaced_while_it_is_checked_is_not_released_but_the_one_that_replaced_it(
    released_project, hold
):
    unname_released()
    register("better")
    with ThreadPoolExecutor() as pool:
        releasing = release_until_held(pool, hold)  # of version 2
        promote(version=3, force="meanwhile")
        hold.go()
        assert releasing.result().version == 3
    assert aliases() == {"champion": 3, "previous": 2, "released": 3}


def test_a_version_that_is_replaced_while_it_fails_its_check_takes_nobody_with_it(released_project, hold):
    register("better")
    promote(force="test")
    register("worse")
    with ThreadPoolExecutor() as pool:
        releasing = release_until_held(pool, hold)  # of version 3
        promote(version=4, force="meanwhile")
        [card] = Path(".mmrl/aside").rglob("README.md")
        card.write_text("another card")
        hold.go()
        with pytest.raises(releases.ReleaseFailed, match="release of version 3 failed: .* no longer the champion"):
            releasing.result()
    assert aliases() == {"champion": 4, "previous": 3, "released": 2}


def test_the_bundle_of_another_adapter_of_the_same_number_is_not_taken_for_this_one(released_project):
    store.connect(store.store_uri(PARAMS)).delete_registered_model(NAME)
    for quality in ("good", "better"):
        register(quality)
    promote(version=2)
    made = release()
    assert (made.version, made.created) == (2, True)
    tags = versions.tags_by_version(store.connect(store.store_uri(PARAMS)), NAME)[2]
    assert read_card(Path(made.folder, "adapter"))["sha256"] == tags["adapter_sha256"]


def test_a_full_disk_is_told_and_changes_nothing(digits_project):
    crown("bad")
    Path(".mmrl/aside").write_text("a file where the folder should be")
    with pytest.raises(releases.NotChecked, match="releases/.* could not be written .*; nothing was changed"):
        release()
    assert aliases() == {"champion": 1} and not Path("releases").exists()
