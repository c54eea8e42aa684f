"""YAML of params.yaml and of --set: what is refused before it is made anything of, and that DVC reads the same."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.settings.params import load_params
from flows.settings.reading import DEEPEST, LARGEST, LARGEST_VALUE, read_value, read_yaml
from mmrl_core.errors import UserError

MATRIX = "datasets: [digits]\nmethods: [mmrl]\nshots: [16]\nseeds: [1]\n"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("train: {lr: 1}\nadapter: {alpha: 0.5}\ntrain: {lr: 2}\n", "key 'train' is there twice, in line 5 and line 7"),
        ("train:\n  lr: 0.1\n  lr: 0.2\n", "the key 'lr' is there twice, in line 6 and line 7; keep one"),
        ("data: {own: {a: {images: x, images: y}}}\n", "the key 'images' is there twice, in line 5; keep one"),
        ("train: &all {lr: 0.1}\n", "line 5: anchors .* are not read here; write the value out"),
        ("train: *all\n", "line 5: anchors .* are not read here"),
        ("train: !!python/object:builtins.dict {}\n", r"line 5: tags \(!\) are not read here"),
        (f"data: {'[' * DEEPEST}{']' * DEEPEST}\n", f"line 5: nested deeper than {DEEPEST} levels"),
        (f"data: {'[' * 200_000}", "line 5: nested deeper than"),
        (f"data: {{root: {'x' * LARGEST}}}\n", "larger than 250,000 bytes"),
        ("train: {lr: 2024-99-99}\n", "not valid YAML: month must be"),
        (f"seeds_of_others: {'9' * 5000}\n", "not valid YAML"),
        ("serving: {url_prefixes: [https://HOST/]}\n", "line 5 is not valid YAML: .*':'; quote the value"),
    ],
)  # fmt: skip
def test_what_would_be_lost_or_would_take_long_is_one_line_that_says_where(tmp_path, more, message):
    path = tmp_path / "params.yaml"
    path.write_text(MATRIX + more)
    with pytest.raises(UserError, match=message) as error:
        load_params(path)
    assert len(str(error.value)) < 300 + len(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{lr: 0.1, lr: 0.2}", "the key 'lr' is there twice"),
        ("[&a [x], *a]", "anchors"),
        ("[" * (DEEPEST + 1), "nested deeper than"),
        ("x" * (LARGEST_VALUE + 1), "larger than 20,000 characters"),
        ("!!python/name:os.system", "tags"),
        ('"\\ud800"', "surrogates not allowed"),
        ("[", "not valid YAML"),
    ],
)
def test_values_of_set_have_the_same_bounds(tmp_path, text, message):
    path = tmp_path / "params.yaml"
    path.write_text(MATRIX)
    with pytest.raises(UserError, match=message) as error:
        load_params(path, [f"train={text}"])
    assert len(str(error.value)) < 400


def test_numbers_and_words_are_read_as_dvc_reads_them_by_yaml_1_2():
    text = "shots: 010\nlr: 1e-3\nname: on\nother: yes\nthird: 1:30\n"
    read = {"shots": 10, "lr": 0.001, "name": "on", "other": "yes", "third": "1:30"}
    assert read_yaml(text, "") == read_value(text, "") == read


@given(st.text(max_size=40) | st.text(alphabet="-:?{}[]#&*!|>'\"%@ \n\t0a.~<=\\e", max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_text_is_a_value_or_a_users_error(text):
    for read in (read_yaml, read_value):
        with contextlib.suppress(UserError):  # which is one line by itself
            read(text, "settings")
