"""The search space: which keys are open, which settings come first, and who proposes the others."""

from itertools import product
from typing import Any

from flows.settings.params import Params
from flows.settings.resolve import explicit_values
from flows.settings.sections import SearchSection
from flows.tuning.ledger import COMPLETE, Ledger
from mmrl_core.errors import UserError
from mmrl_core.presets import published
from mmrl_core.search.comparison import choose, overall

DEPTH = "adapter.insertion_depth"
EARLIER = 3  # settings taken over from earlier searches
AT_RANDOM = 4  # trials that TPE draws before it models anything; the same however many there are in all
Space = dict[str, dict[str, list]]


def open_dimensions(params: Params) -> Space:
    """The search space without the keys that params.yaml settles itself; nothing where the search is off."""
    fixed = explicit_values(params)
    return {key: values for key, values in params.search.space.items() if params.search.enabled and key not in fixed}


def check_depths(params: Params, space: Space, depth: int) -> None:
    """What is wrong with the space is better said before a cluster starts. `depth` is N of the shallower tower."""
    for value in space.get(DEPTH, {}).get("choice", []):
        if value > depth:
            raise UserError(
                f"search.space {DEPTH} {value} is beyond the {depth} layers of backbone {params.backbone.name}; "
                f"choose 1 to {depth}"
            )


def published_point(params: Params, dataset: str, method: str, space: Space, depth: int) -> dict[str, Any]:
    """The published values of the space's keys."""
    preset = published(dataset, method, depth, params.data.protocol)
    return {key: preset[key] for key in space}


def first_points(search: SearchSection, space: Space, start: dict[str, Any], earlier: list[Ledger]) -> list[dict]:
    """The settings to try first: the published ones within the space, then the best of earlier searches."""
    if search.warm_start == "none" or search.searcher == "grid":
        return []
    held = {key: value for key, value in start.items() if holds(space[key], value)}
    points = [held] if held and len(held) == len(space) else []
    if search.warm_start == "earlier":
        points += _best_earlier(search, space, earlier)
    return [point for index, point in enumerate(points) if point not in points[:index]][: search.trials]


def _best_earlier(search: SearchSection, space: Space, earlier: list[Ledger]) -> list[dict]:
    found = []
    for ledger in earlier:
        trials = [_scored(record, search) for record in ledger.all() if record["state"] == COMPLETE]
        best = choose([trial for trial in trials if within(space, trial["params"])], search.objective, {})
        found += [best["params"]] if best else []
    return found[:EARLIER]


def _scored(record: dict, search: SearchSection) -> dict:
    return {**record, **overall(record["scores"])}


def within(space: Space, point: dict[str, Any]) -> bool:
    return point.keys() == space.keys() and all(holds(space[key], value) for key, value in point.items())


def holds(distribution: dict[str, list], value: float) -> bool:
    kind, values = next(iter(distribution.items()))
    return value in values if kind == "choice" else values[0] <= value <= values[1]


def searcher(search: SearchSection, space: Space, points: list[dict], begun: list[dict]):
    """Who proposes settings, seeded; first `points`, then what an earlier process had `begun`."""
    if search.searcher == "grid":
        from flows.tuning.rounds import Listed

        values = [next(iter(distribution.values())) for distribution in space.values()]
        return Listed(search.objective, "max", [dict(zip(space, cell, strict=True)) for cell in product(*values)])
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seed = search.seed + len(begun)
    if search.searcher == "random":
        sampler = optuna.samplers.RandomSampler(seed=seed)
    else:
        sampler = optuna.samplers.TPESampler(
            seed=seed, multivariate=True, n_startup_trials=AT_RANDOM, constant_liar=True
        )
    second = [search.second_objective] if search.second_objective else []
    aims = ([search.objective, *second], ["max", "min"][: 1 + len(second)]) if second else (search.objective, "max")
    distributions = {key: _distribution(one) for key, one in space.items()}
    return OptunaSearch(
        distributions, metric=aims[0], mode=aims[1], points_to_evaluate=points + begun or None, sampler=sampler
    )


def _distribution(distribution: dict[str, list]):
    """A dimension in Optuna's terms."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    kind, values = next(iter(distribution.items()))
    return CategoricalDistribution(values) if kind == "choice" else FloatDistribution(*values, log=kind == "loguniform")
