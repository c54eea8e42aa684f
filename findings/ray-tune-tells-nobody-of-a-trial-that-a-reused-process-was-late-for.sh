#!/usr/bin/env bash
# ray[tune] 2.60.0, Python 3.11.
#
# Expected: whatever ends a trial of Ray Tune is told to the callbacks (on_trial_error) and to the search algorithm
# (on_trial_complete with error=True), and a FailureConfig with retries applies to it.
# Seen: with reuse_actors=True a process that is still ending its last trial when it is handed the next one (later than
# TUNE_FUNCTION_THREAD_TIMEOUT_S, 2 s by default, which a busy machine exceeds) makes that next trial an ERROR: no
# callback is called, the searcher hears nothing, and no retry is made; only the results of fit() have it. What counts on
# being told, a ConcurrencyLimiter for one, goes on counting the trial as running.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check 'ray[tune]==2.60.0'

RAY_USAGE_STATS_ENABLED=0 RAY_AIR_NEW_OUTPUT=0 venv/bin/python - 2> log << 'EOF'
import time
from pathlib import Path

import ray
from ray import tune
from ray.tune.search import Searcher

told = []


class Three(Searcher):
    """Proposes three trials, and notes what it is told of their ends."""

    def __init__(self):
        super().__init__(metric="score", mode="max")
        self.left = 3

    def suggest(self, trial_id):
        self.left -= 1
        return {"x": self.left} if self.left >= 0 else Searcher.FINISHED

    def on_trial_complete(self, trial_id, result=None, error=False):
        told.append("searcher")

    def save(self, path):
        pass

    def restore(self, path):
        pass


class Tell(tune.Callback):
    def on_trial_complete(self, iteration, trials, trial, **info):
        told.append("complete")

    def on_trial_error(self, iteration, trials, trial, **info):
        told.append("error")


def slow_to_end(config):
    try:
        tune.report({"score": config["x"]})
        time.sleep(30)
    finally:
        time.sleep(5)  # it closes files, say


ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=str(Path("r").absolute()))
results = tune.Tuner(
    slow_to_end,
    tune_config=tune.TuneConfig(search_alg=Three(), num_samples=3, reuse_actors=True),
    run_config=tune.RunConfig(
        storage_path=str(Path("t").absolute()), verbose=0, callbacks=[Tell()], stop={"training_iteration": 1},
        failure_config=tune.FailureConfig(max_failures=3),
    ),
).fit()
statuses = sorted(trial.status for trial in results._experiment_analysis.trials)
print("trials:", *statuses)
print("told of a completed trial:", told.count("complete"), "callbacks,", told.count("searcher"), "searcher")
print("told of a failed trial:", told.count("error"))
print("errors of fit():", results.num_errors)
ray.shutdown()
assert "ERROR" in statuses and not told.count("error")
assert told.count("searcher") == statuses.count("TERMINATED")
EOF
grep -o "Could not re-use actor" log | sort -u

# Output seen:
#   trials: ERROR TERMINATED TERMINATED
#   told of a completed trial: 2 callbacks, 2 searcher
#   told of a failed trial: 0
#   errors of fit(): 1
#   Could not re-use actor
