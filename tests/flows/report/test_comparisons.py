"""Methods compared with each other, whichever there are."""

import numpy as np
import pytest

from flows.report.comparisons import compare, table
from mmrl_core.errors import UserError
from mmrl_core.evaluation.bootstrap import Outcomes

ITEMS = [f"{i}.png" for i in range(4)]


def seeds(*right: int, parts=("base", "novel"), items=ITEMS) -> dict[int, dict[str, Outcomes]]:
    """Runs of the seeds 1, 2, ...: of four images a part the first `right` are classified rightly."""
    found = [np.arange(4) < count for count in right]
    return {seed: {part: Outcomes(items, one, one) for part in parts} for seed, one in enumerate(found, start=1)}


def of_digits(**methods) -> dict:
    return {("digits", "digits", 16, method): runs for method, runs in methods.items()}


def test_each_method_is_set_against_the_probe_in_base_accuracy_and_against_mmrl_in_the_harmonic_mean():
    found = compare(of_digits(linear_probe=seeds(4, 3), mmrl=seeds(2, 2), tip_adapter=seeds(1, 1)))
    pairs = [(one["method"], one["against"]) for one in found]
    assert pairs == [("linear_probe", "mmrl"), ("tip_adapter", "linear_probe"), ("tip_adapter", "mmrl"),
                     ("mmrl", "linear_probe")]  # fmt: skip
    names, lines = table(found)
    assert names[3:] == ["base against linear probe [95%]", "harmonic mean against MMRL [95%]"]
    assert [(line[2], *(cell.partition(" ")[0] for cell in line[3:])) for line in lines] == [
        ("linear probe", "", "+37.5"), ("Tip-Adapter", "-62.5", "-25.0"), ("MMRL", "-37.5", "")]  # fmt: skip
    assert found[0]["difference"].keys() == {"base", "novel", "harmonic_mean"}


def test_datasets_targets_and_shots_are_compared_each_by_itself():
    keys = [("digits", "digits", 16), ("digits", "letters", 16), ("objects", "objects", 1)]
    runs = {(*key, method): seeds(right, parts=("all",)) for key in keys for method, right in
            (("mmrl", 2), ("mmrlpp", 3))}  # fmt: skip
    names, lines = table(compare(runs))
    assert names[3:] == ["accuracy against MMRL [95%]"]
    assert [line[:3] for line in lines] == [["digits", "16", "MMRL++"], ["digits to letters", "16", "MMRL++"],
                                            ["objects", "1", "MMRL++"]]  # fmt: skip


@pytest.mark.parametrize(("methods", "expected"), [
    (["mmrl"], []), (["linear_probe"], []), (["tip_adapter", "tip_adapter_f"], []),
    (["mmrlpp", "tip_adapter"], [("tip_adapter", "mmrlpp")]),
    (["linear_probe", "tip_adapter"], [("tip_adapter", "linear_probe")]),
    (["mmrl", "mmrl+probe"], [("mmrl+probe", "mmrl")]),
])  # fmt: skip
def test_whatever_methods_there_are_and_nothing_of_a_single_one(methods, expected):
    found = compare({("digits", "digits", 16, method): seeds(2) for method in methods})
    assert [(one["method"], one["against"]) for one in found] == expected
    assert len(table(found)[1]) == len(expected)


def test_runs_are_paired_by_their_seeds_and_those_of_one_method_alone_are_left_out():
    one, other = seeds(1, 2, 4), seeds(1, 2, 3)
    del one[1], other[3]
    [found] = compare(of_digits(mmrl=other, mmrlpp=dict(reversed(one.items()))))
    assert found["seeds"] == [2] and set(found["difference"]["base"].values()) == {0.0}
    assert compare(of_digits(mmrl={1: other[1]}, mmrlpp=one)) == []


def test_methods_tested_on_other_images_are_named_with_what_to_do():
    words = "^digits, 16 shots, MMRL\\+\\+ against MMRL: tested on different images; run `mmrl evaluate` for all$"
    with pytest.raises(UserError, match=words):
        compare(of_digits(mmrl=seeds(2), mmrlpp=seeds(2, items=ITEMS[::-1])))
