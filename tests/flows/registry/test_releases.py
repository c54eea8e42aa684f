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
from tests.support.registry.promotions import NAME, PARAMS, aliases, promote, register


def test_a_store_that_does_not_hand_out_the_champion_leaves_it_so_and_once_it_does_it_is_released_once(digits_project):
    register("bad")
    promote()
    register("good")
    promote()
    artifacts = digits_project / "mlartifacts"
    artifacts.rename(digits_project / "away")
    with pytest.raises(store.StoreFailed, match="cannot be used"):
        releases.release(PARAMS, "digits")
    assert aliases() == {"champion": 2, "previous": 1}
    shutil.rmtree(artifacts, ignore_errors=True)  # MLflow may have made it anew
    (digits_project / "away").rename(artifacts)
    with ThreadPoolExecutor(2) as pool:  # an event and a webhook
        found = list(pool.map(lambda _: releases.release(PARAMS, "digits"), range(2)))
    assert sorted(one.created for one in found) == [False, True]
    assert aliases() == {"champion": 2, "previous": 1, "released": 2}
    card = (digits_project / found[0].folder / "README.md").read_text()
    assert card.startswith(f"# {NAME}, version 2") and "Apache-2.0 (made by this project" in card
    assert [one.verdict for one in promotion.history(PARAMS, "digits")] == ["first", "accepted", "released"]


def test_a_bundle_that_was_damaged_is_built_anew_and_a_champion_that_fails_its_check_is_rolled_back(digits_project):
    folder = digits_project / "releases" / NAME / "1"
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
    stored = max(
        (digits_project / "mlartifacts/digits").rglob("adapter.safetensors"), key=lambda path: path.stat().st_mtime
    )
    stored.write_bytes(stored.read_bytes()[:-1] + b"\1")
    with pytest.raises(
        releases.ReleaseFailed, match="release of version 2 failed: .*altered.*; version 1 is the champion"
    ):
        releases.release(PARAMS, "digits")
    assert aliases() == {"champion": 1, "released": 1}
    assert not (digits_project / "releases" / NAME / "2").exists()
    assert promote(version=2) == (2, "refused")


@pytest.fixture
def hold(tmp_path, monkeypatch):
    """The process that checks a bundle stops before it reads the sums."""
    hold = Hold(tmp_path / "hold", "*SHA256SUMS")
    for name, value in hold.environment.items():
        monkeypatch.setenv(name, value)
    yield hold
    hold.go()


def release_until_held(pool: ThreadPoolExecutor, hold: Hold) -> Future:
    releasing = pool.submit(releases.release, PARAMS, "digits")
    wait_until(lambda: hold.held.exists() or releasing.done(), PATIENCE, lambda: "the check of the bundle")
    return releasing


def test_a_check_that_is_killed_says_nothing_about_the_champion(digits_project, hold):
    register("bad")
    promote()
    register("good")
    promote()
    with ThreadPoolExecutor() as pool:
        releasing = release_until_held(pool, hold)
        os.kill(int(hold.held.read_text()), signal.SIGKILL)
        with pytest.raises(
            releases.NotChecked, match="the check of version 2 ended by signal 9 .* nothing was changed"
        ):
            releasing.result()
        assert aliases() == {"champion": 2, "previous": 1}
        assert len(promotion.history(PARAMS, "digits")) == 2
        hold.go()
        assert releases.release(PARAMS, "digits").created
    assert aliases() == {"champion": 2, "previous": 1, "released": 2}


@pytest.mark.parametrize("damaged", [True, False])
def test_a_release_acts_on_the_version_that_it_checked_and_names_what_is_the_champion_then(
    digits_project, hold, damaged
):
    for quality in ("bad", "good"):
        register(quality)
        promote(force="test")
    register("better")
    with ThreadPoolExecutor() as pool:
        releasing = release_until_held(pool, hold)  # of version 2
        promote(version=3, force="meanwhile")
        if damaged:
            [card] = Path(".mmrl/aside").rglob("README.md")
            card.write_text("another card")
        hold.go()
        if damaged:
            with pytest.raises(releases.ReleaseFailed, match="release of version 2 failed: .* no longer the champion"):
                releasing.result()
        else:
            assert releasing.result().version == 3
    assert aliases() == {"champion": 3, "previous": 2} | ({} if damaged else {"released": 3})


def test_the_bundle_of_another_adapter_of_the_same_number_is_not_taken_for_this_one(digits_project):
    register("bad")
    promote()
    first = releases.release(PARAMS, "digits")
    store.connect(store.store_uri(PARAMS)).delete_registered_model(NAME)
    assert register("good") == first.version
    promote()
    second = releases.release(PARAMS, "digits")
    assert (second.folder, second.created) == (first.folder, True)
    [tags] = versions.tags_by_version(store.connect(store.store_uri(PARAMS)), NAME).values()
    assert read_card(Path(second.folder, "adapter"))["sha256"] == tags["adapter_sha256"]


def test_a_full_disk_is_told_and_changes_nothing(digits_project):
    register("bad")
    promote()
    Path(".mmrl/aside").write_text("a file where the folder should be")
    with pytest.raises(releases.NotChecked, match="releases/.* could not be written .*; nothing was changed"):
        releases.release(PARAMS, "digits")
    assert aliases() == {"champion": 1} and not Path("releases").exists()
