"""The search's early stopping in a real Ray Tune run, on settings of known quality."""

import json
import subprocess
import sys

import pytest

from flows.cluster import Needs, connected
from flows.tuning.schedulers import race
from mmrl_core.sections import ClusterSection
from tests.workspace import ROOT

pytestmark = pytest.mark.slow

DIFFICULTY = (-1.0, -9.0, -3.0, -2.0, -5.0)  # of the partitions: they differ more than the settings do
NOISE = (0.02, -0.02, 0.01, -0.01, 0.0)
SETTINGS = [(0.5, 1), (0.6, -1), (0.5, -1), (0.0, 1), (0.5, -1), (0.0, -1)]  # (deficit, sign of the noise)


def make_trial():
    """A function of its own each time: Ray then sends it whole, and its workers need not find this file."""

    def trial(config: dict) -> None:
        from ray import tune

        scores = []
        for difficulty, noise in zip(DIFFICULTY, NOISE, strict=True):
            scores.append({"log_likelihood": difficulty - config["deficit"] + config["sign"] * noise})
            tune.report({"log_likelihood": scores[-1]["log_likelihood"], "scores": list(scores)})

    return trial


def main(address: str, storage: str) -> None:
    """Print how many partitions each trial saw."""
    from ray import tune
    from ray.tune.search.basic_variant import BasicVariantGenerator

    draws = BasicVariantGenerator(
        points_to_evaluate=[{"deficit": deficit, "sign": sign} for deficit, sign in SETTINGS], max_concurrent=1
    )
    config = tune.TuneConfig(
        metric="log_likelihood", mode="max", num_samples=len(SETTINGS), search_alg=draws, reuse_actors=True,
        scheduler=race("log_likelihood"),
    )  # fmt: skip
    with connected(ClusterSection(address=address), Needs(1)):
        tuner = tune.Tuner(
            make_trial(), param_space={"deficit": tune.uniform(0, 1), "sign": tune.choice([-1, 1])}, tune_config=config,
            run_config=tune.RunConfig(name="race", storage_path=storage, verbose=0),
        )  # fmt: skip
        seen = [len(result.metrics["scores"]) for result in tuner.fit()]
    print(json.dumps(seen))


def test_clearly_worse_settings_end_early_and_others_see_every_partition(tmp_path, ray_cluster):
    command = [sys.executable, "-m", "tests.slow.test_search_race", ray_cluster.address, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=ray_cluster.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [5, 3, 5, 5, 3, 5]  # the first leads, a tie goes on, the fourth takes the lead


if __name__ == "__main__":
    main(*sys.argv[1:])
