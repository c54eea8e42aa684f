"""`make bench`: the product's own steps, search and evaluation against the plain model, on a random ViT-B/16.

Everything runs in one process; what is compared is taken in turn. Free the machine first: load averages and
matrix-multiply rates around every section say how free it was.
"""

import argparse
import json
import logging
import textwrap
import time
from pathlib import Path

from benchmarks import counting, evaluation, families, gains, loader, peaks, profile, scaling, search, steps
from benchmarks.support.cases import Plan
from benchmarks.support.machine import describe, state
from mmrl_core.clip.backbone import load_backbone

SECTIONS = {
    "costs": counting.measure, "evaluation": evaluation.measure, "search": search.measure, "loader": loader.measure,
    "profile": profile.measure, "gains": gains.measure, "scaling": scaling.measure, "steps": steps.measure,
    "families": families.measure, "memory": peaks.measure,
}  # fmt: skip
# Without memory, which the steps hold, and families, which take as long as all the rest.
DEFAULT = [name for name in SECTIONS if name not in ("families", "memory")]

METHODS = ["mmrl", "mmrlpp"]


def listed(text: str) -> list[str]:
    return text.split(",")


def numbers(text: str) -> list[int]:
    return sorted(int(part) for part in listed(text))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="a JSON file for all that was measured")
    parser.add_argument("--only", type=listed, default=DEFAULT, help=f"sections, of {','.join(SECTIONS)}")
    parser.add_argument("--methods", type=listed, default=METHODS)
    parser.add_argument("--classes", type=numbers, default=None, help="10,50,100,500,1000")
    parser.add_argument("--batches", type=numbers, default=None, help="4,32")
    parser.add_argument("--backbone", default=None, help="an open_clip name; ViT-B-16 with random weights")
    parser.add_argument("--quick", action="store_true", help="the bundled tiny CLIP and few measurements: does it run?")
    options = parser.parse_args()
    for what, chosen, known in (("section", options.only, SECTIONS), ("method", options.methods, METHODS)):
        for name in set(chosen) - set(known):
            parser.error(f"no {what} {name}; there are {', '.join(known)}")
    return options


def plan_of(options: argparse.Namespace) -> Plan:
    logging.disable(logging.WARNING)  # open_clip warns that weights are random
    name = options.backbone or ("tiny" if options.quick else "ViT-B-16")
    return Plan(
        load_backbone(name, None if name == "tiny" else "random"),
        options.methods,
        options.classes or ([10, 50] if options.quick else [10, 50, 100, 500, 1000]),
        options.batches or ([4] if options.quick else [4, 32]),
        rounds=1 if options.quick else 3,
        quick=options.quick,
    )


def said(when: str, found: dict) -> dict:
    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in found["gflops"].items())
    print(f"  {when}: load {found['load']:.1f}, matrix products {rates} GFLOP/s", flush=True)
    return found


def section(name: str, plan: Plan) -> dict:
    """A section's result, its duration in seconds, and the machine's state before and after."""
    print()
    before, start = said(f"before {name}", state()), time.monotonic()
    result = SECTIONS[name](plan)
    duration = time.monotonic() - start
    return {"result": result, "seconds": duration, "before": before, "after": said(f"after {name}", state())}


def main() -> None:
    options = parsed()
    plan, machine = plan_of(options), describe()
    print(f"{plan.backbone.name}, insertion depth {plan.backbone.depth // 2}, K = 5; all in one process")
    print(textwrap.fill(", ".join(f"{name} {value}" for name, value in machine.items()), 118))
    found = {"machine": machine, "backbone": plan.backbone.name, "sections": {}}
    start = time.monotonic()
    for name in options.only:
        found["sections"][name] = section(name, plan)
        if options.out:
            options.out.write_text(json.dumps(found, indent=2))
    print(f"\n{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
