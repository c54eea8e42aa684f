import json
import math
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrl_core.data.splits import Item, base_novel, sample_few_shot
from mmrl_core.errors import UserError

FOLDER = Path(__file__).parents[2] / "golden"
GOLDEN, LABEL_RUNS = FOLDER / "fewshot_caltech101.json", FOLDER / "caltech101_label_runs.json"
labels_lists = st.lists(st.integers(0, 6), min_size=1, max_size=60)


def rows(labels):
    return [[f"{index}.jpg", label, f"class {label}"] for index, label in enumerate(labels)]


def labels_of(split: str) -> list[int]:
    return [label for label, length in json.loads(LABEL_RUNS.read_text())[split] for _ in range(length)]


def test_sampling_gives_the_published_indices_of_caltech101():
    train, val = rows(labels_of("train")), rows(labels_of("val"))
    golden = json.loads(GOLDEN.read_text())
    assert len(golden) == 15
    for name, indices in golden.items():
        shots, seed = (int(part.split("=")[1]) for part in name.split())
        assert sample_few_shot(train, shots, seed, val) == (indices["train"], indices["val"]), name


def test_a_class_with_fewer_items_than_shots_is_taken_whole_and_draws_nothing():
    items = rows([0] * 6 + [1] * 2 + [2] * 6)
    train, val = sample_few_shot(items, 3, 7, items)
    rng = random.Random(7)
    expected = rng.sample(range(6), 3) + [6, 7] + rng.sample(range(8, 14), 3)
    assert train == expected
    assert val == rng.sample(range(6), 3) + [6, 7] + rng.sample(range(8, 14), 3)


def test_a_class_with_exactly_as_many_items_as_shots_is_drawn_and_so_reordered():
    rng = random.Random(1)
    assert sample_few_shot(rows([0] * 8 + [1] * 9), 8, 1)[0] == rng.sample(range(8), 8) + rng.sample(range(8, 17), 8)


def test_classes_come_in_order_of_first_appearance_not_of_label():
    labels = [5, 2, 5, 9, 2, 9, 5, 2, 9]
    train, _ = sample_few_shot(rows(labels), 2, 3)
    assert [labels[index] for index in train] == [5, 5, 2, 2, 9, 9]


def test_validation_takes_at_most_four_a_class():
    items = rows([0] * 20 + [1] * 20)
    assert [len(sample_few_shot(items, shots, 1, items)[1]) for shots in (1, 2, 4, 8, 16)] == [2, 4, 8, 8, 8]


@pytest.mark.parametrize("nothing", [None, []])
def test_without_validation_items_nothing_is_sampled_for_validation(nothing):
    assert sample_few_shot(rows([0, 0, 1, 1]), 1, 1, nothing)[1] == []


def test_items_and_plain_rows_give_the_same_sample():
    plain = rows([0, 1, 1, 0, 1, 0])
    assert sample_few_shot([Item(*row) for row in plain], 2, 5, plain) == sample_few_shot(plain, 2, 5, plain)


@pytest.mark.parametrize("shots", [0, -1])
def test_fewer_than_one_shot_is_the_users_mistake(shots):
    with pytest.raises(UserError, match=f"shots is {shots}"):
        sample_few_shot(rows([0]), shots, 1)


@given(labels_lists, st.integers(1, 8), st.integers(0, 2**32))
def test_every_class_gives_min_of_its_items_and_shots_each_once(labels, shots, seed):
    train, val = sample_few_shot(rows(labels), shots, seed, rows(labels))
    assert len(set(train)) == len(train) and len(set(val)) == len(val)
    available = Counter(labels)
    assert Counter(labels[i] for i in train) == {label: min(n, shots) for label, n in available.items()}
    assert Counter(labels[i] for i in val) == {label: min(n, shots, 4) for label, n in available.items()}


@given(labels_lists, st.integers(1, 8), st.integers(0, 2**32))
def test_the_validation_items_do_not_change_the_training_sample(labels, shots, seed):
    assert sample_few_shot(rows(labels), shots, seed)[0] == sample_few_shot(rows(labels), shots, seed, rows([0, 0]))[0]


@given(labels_lists)
def test_base_is_the_larger_first_half_of_the_sorted_labels(labels):
    base, novel = base_novel(labels)
    assert base + novel == sorted(set(labels))
    assert len(base) == math.ceil(len(set(labels)) / 2)
