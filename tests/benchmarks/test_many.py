"""`python -m benchmarks.data.many` at toy size: what it counts in, and the projects that it compares."""

from benchmarks.data import many
from flows.settings.params import load_params
from tests.core.data.many import fill
from tests.support.workspace import ROOT


def test_a_project_has_the_images_and_every_seed_that_is_prepared(tmp_path):
    build = many.project_of(ROOT, tmp_path / "project", fill(tmp_path / "images", 4, 2))
    params = load_params(build.project / "params.yaml")
    assert params.data.own["many"].images == str(tmp_path / "images")
    assert (params.datasets, params.shots, params.seeds) == (["many"], [many.SHOTS], list(many.SEEDS))


def test_times_are_summed_and_of_the_peaks_the_largest_counts():
    then, now = many.together([many.Cost(2, 3, 50), many.Cost(4, 5, 40)]), many.Cost(2, 2, 25)
    assert then == many.Cost(6, 8, 50)
    row = many.row("all", then, now)
    assert (row["wall"], row["peak"], row["then_seconds"], row["now_seconds"]) == (3, 0.5, 8, 2)
