"""The search space: which keys are open, and which settings come first."""

from typing import Any

from flows.settings.params import Params
from flows.settings.resolve import explicit_values, unflipped
from flows.settings.sections import SearchSection
from flows.tuning.ledger import Ledger
from mmrl_core.errors import UserError
from mmrl_core.presets import published
from mmrl_core.search.choice import choose
from mmrl_core.search.comparison import compared
from mmrl_core.search.trial import Distribution, Space, TrialSettings

DEPTH = "adapter.insertion_depth"
EARLIER = 3  # settings taken over from earlier searches


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


def published_point(params: Params, dataset: str, method: str, space: Space, depth: int) -> TrialSettings:
    """The published values of the space's keys."""
    preset = published(dataset, method, depth, params.data.protocol) | unflipped(params, dataset)
    return {key: preset[key] for key in space}


def first_points(
    search: SearchSection, space: Space, start: TrialSettings, earlier: list[Ledger]
) -> list[TrialSettings]:
    """The settings to try first: the published ones within the space, then the best of earlier searches."""
    if search.warm_start == "none" or search.searcher == "grid":
        return []
    held = {key: value for key, value in start.items() if holds(space[key], value)}
    points = [held] if held and len(held) == len(space) else []
    if search.warm_start == "earlier":
        points += _best_earlier(search, space, earlier)
    return [point for index, point in enumerate(points) if point not in points[:index]][: search.trials]


def _best_earlier(search: SearchSection, space: Space, earlier: list[Ledger]) -> list[TrialSettings]:
    best = []
    for ledger in earlier:
        records = [record for record in ledger.all() if record["state"] == "complete"]
        inside = [record for record in records if within(space, record["params"])]
        chosen = choose([compared(record) for record in inside], search.objective, {}, space)
        best += [chosen["params"]] if chosen else []
    return best[:EARLIER]


def within(space: Space, point: TrialSettings) -> bool:
    return point.keys() == space.keys() and all(holds(space[key], value) for key, value in point.items())


def holds(distribution: Distribution, value: Any) -> bool:
    kind, values = next(iter(distribution.items()))
    return value in values if kind == "choice" else values[0] <= value <= values[1]
