"""Which settings are tried after the first ones: Optuna's samplers, or a grid."""

from itertools import product
from typing import TYPE_CHECKING

from ray.tune.search import Searcher

from flows.settings.sections import SearchSection
from mmrl_core.search.trial import Distribution, Space, TrialSettings

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

AT_RANDOM = 4  # trials that TPE draws before it models anything; the same however many there are in all


def searcher(search: SearchSection, space: Space, points: list[TrialSettings], begun: list[TrialSettings]) -> Searcher:
    """The searcher of that name, seeded: it proposes `points` first, then what an earlier process had `begun`."""
    if search.searcher == "grid":
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
    distributions = {key: _in_optuna(distribution) for key, distribution in space.items()}
    return OptunaSearch(
        distributions, metric=aims[0], mode=aims[1], points_to_evaluate=points + begun or None, sampler=sampler
    )


def _in_optuna(distribution: Distribution) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    kind, values = next(iter(distribution.items()))
    return CategoricalDistribution(values) if kind == "choice" else FloatDistribution(*values, log=kind == "loguniform")


class Listed(Searcher):
    """Settings from a list."""

    def __init__(self, metric: str, mode: str, settings: list[TrialSettings]):
        super().__init__(metric=metric, mode=mode)
        self.settings = list(settings)

    def suggest(self, trial_id: str) -> TrialSettings | str:
        return self.settings.pop(0) if self.settings else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass
