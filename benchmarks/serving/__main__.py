"""Serving with the bundled backbone, from a second process on the same machine.

    python -m benchmarks.serving [PART...] [--before FOLDER]

`rate` and `start` compare with MLflow's scoring server, a plain FastAPI, LitServe, and with `mmrl serve` of an older
checkout where --before names one (`git worktree add FOLDER COMMIT`); `overload`, `vit` and `lists` press one server.
These are what is measured by default. `swaps`, `malformed` and `soak` count what is lost, mixed up or failed.
"""

import argparse
import os
import shutil
import tempfile
from pathlib import Path

from benchmarks.serving import lists, malformed, overload, rate, soak, swaps, vit
from benchmarks.serving.servers import BEFORE, TWO, Server, ours, peers
from benchmarks.support.machine import describe, state
from tests.support.serving import predictor, promote, register
from tests.support.workspace import write_params

MEASURED, COUNTED = ("rate", "start", "overload", "vit", "lists"), ("swaps", "malformed", "soak")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(MEASURED + COUNTED)}")
    parser.add_argument("--before", type=Path, help="a checkout of an older commit")
    parser.add_argument("--rounds", type=int, default=3, help="in which the servers take turns")
    parser.add_argument("--seconds", type=float, default=10, help="of a measurement")
    parser.add_argument("--questions", type=int, help="of swaps, malformed and soak")
    options = parser.parse_args()
    for part in set(options.parts) - set(MEASURED + COUNTED):
        parser.error(f"no part {part}; there are {', '.join(MEASURED + COUNTED)}")
    if options.before and not (options.before / "params.yaml").exists():
        parser.error(f"{options.before} is no checkout: it has no params.yaml")
    return options


def compared(folder: Path, before: Path | None) -> list[Server]:
    own = [ours(folder), ours(folder, "serving.replicas=2", name=TWO)]
    own += [ours(folder, source=before.resolve(), name=BEFORE)] if before else []
    return [*own, *peers(folder)]


def measure(part: str, folder: Path, options: argparse.Namespace) -> None:
    seconds, questions = options.seconds, {"questions": options.questions} if options.questions else {}
    match part:
        case "rate":
            rate.rate(compared(folder, options.before), folder, options.rounds, seconds, predictor(1))
        case "start":
            rate.start(compared(folder, options.before), options.rounds, seconds)
        case "overload":
            overload.overload(ours(folder), seconds)
        case "vit":
            vit.vit(folder, 3 * seconds)
        case "lists":
            lists.lists(ours(folder), seconds)
        case "swaps":
            swaps.swaps(ours(folder, "serving.poll_seconds=0.5"), **questions)
        case "malformed":
            malformed.malformed(ours(folder), **questions)
        case "soak":
            soak.soak(ours(folder), **questions)


def main() -> None:
    options = parsed()
    folder = Path(tempfile.mkdtemp(prefix="mmrl-serving-"))
    os.chdir(folder)
    print(", ".join(f"{name} {value}" for name, value in describe().items()))
    print(f"load {state()['load']:.1f}; the load comes from this machine", flush=True)
    try:
        write_params(folder)
        for seed in (1, 2):
            register(seed)
        promote(1)
        for part in options.parts or MEASURED:
            measure(part, folder, options)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
