"""`python -m tests.slow.search.search_driver`: a search with a simulated cost, as a process that can be killed.

Every evaluation sleeps and then writes one line, so that what was done twice can be seen. Prints the records as JSON.
"""

import argparse
import json
from pathlib import Path

from flows.cluster.connection import Needs, connected
from flows.settings.sections import ClusterSection, SearchSection
from flows.tuning.tuner import Plan, run_trials

SPACE = {"train.lr": {"loguniform": [1e-4, 1e-2]}, "adapter.insertion_depth": {"choice": [3, 5]}}


def make_evaluate(log: str, seconds: float, gate: tuple[str, int] | None):
    """A function of its own, which Ray sends whole: a node that lacks this file runs it too.

    While someone listens at `gate`, an evaluation goes on once its connection there is closed. The process that finds a
    file named `fuse` beside the log dies as it is handed its next trial.
    """
    fuse = str(Path(log).with_name("fuse"))

    def evaluate(pieces: list):
        from mmrl_core.errors import UserError

        for place, (config, index) in enumerate(pieces):
            try:
                yield place, one(config, index)
            except UserError as error:
                yield place, error

    def one(config: dict, index: int) -> dict:
        import contextlib
        import math
        import os
        import signal
        import socket
        import time

        import ray
        from ray.train._internal.session import get_session

        from mmrl_core.errors import UserError

        if config["train.lr"] > 8e-3:
            raise UserError("training diverged; lower train.lr")
        if gate:
            with contextlib.suppress(OSError), socket.create_connection(gate) as connection:
                connection.recv(1)
        time.sleep(seconds)

        def burn(**_) -> None:
            os.rename(f"{fuse}.lit", f"{fuse}.burnt")
            os.kill(os.getpid(), signal.SIGKILL)

        with contextlib.suppress(FileNotFoundError):
            os.rename(fuse, f"{fuse}.lit")
            get_session().reset = burn  # what the next trial asks for
        node = float(ray.util.get_node_ip_address().rpartition(".")[2])
        if os.path.isdir(os.path.dirname(log)):  # a second node does not see the folder
            with open(log, "a") as file:
                file.write(f"{config} {index}\n")
        quality = -abs(math.log10(config["train.lr"]) + 3) - config["adapter.insertion_depth"] / 50
        return {"log_likelihood": quality - index / 10, "harmonic_mean": 0.5, "node": node}

    evaluate.trouble = None
    return evaluate


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--address", default="local")
    parser.add_argument("--seconds", type=float, default=0.1)
    parser.add_argument("--partitions", type=int, default=3)
    parser.add_argument("--gate", type=lambda text: (text.split(":")[0], int(text.split(":")[1])))
    parser.add_argument("--search", type=json.loads, default={})
    return parser.parse_args()


def main() -> None:
    options = parsed()
    search = SearchSection(space=SPACE, **{"scheduler": "none", **options.search})
    folder = Path(".mmrl/searches/simulated")
    plan = Plan("simulated", search, Needs(1), SPACE, [], options.partitions, folder)
    log = str(Path("evaluations.txt").absolute())
    with connected(ClusterSection(address=options.address), plan.needs):
        records = run_trials(plan, make_evaluate(log, options.seconds, options.gate))
    print(json.dumps(records))


if __name__ == "__main__":
    main()
