"""Dotted and nested settings hold the same, and one is made of the other."""

import pytest
import yaml

from flows.settings.dotted import flatten, section_of, unflatten
from flows.settings.params import load_params
from flows.settings.resolve import resolve, settings_by_key, settings_from_keys
from tests.support.workspace import ROOT


def test_the_shipped_settings_come_back_from_their_dotted_keys():
    shipped = yaml.safe_load((ROOT / "params.yaml").read_text())
    nested = {name: shipped[name] for name in ("seeds", "backbone", "adapter", "train", "cluster", "serving")}
    dotted = flatten(nested)
    assert "train.lr" in dotted and not any(isinstance(value, dict) for value in dotted.values())
    assert unflatten(dotted) == nested
    assert flatten(unflatten(dotted)) == dotted


def test_the_settings_of_a_run_come_back_from_its_card():
    settings = resolve(load_params(ROOT / "params.yaml"), "digits", "mmrlpp", 3, 6)
    by_key = settings_by_key(settings)
    assert (by_key["adapter.method"], by_key["train.seed"]) == ("mmrlpp", 3)
    assert settings_from_keys(by_key) == (settings.adapter, settings.train)


def test_a_dotted_key_names_its_sections_in_order():
    assert flatten({"train": {"lr": 0.1}, "data": {"own": {"birds": {"images": "x"}}}, "seeds": [1]}) == {
        "train.lr": 0.1, "data.own.birds.images": "x", "seeds": [1],
    }  # fmt: skip


def test_a_section_that_is_missing_is_made_and_one_that_is_there_is_kept():
    document = {"train": {"lr": 0.1}}
    section, name = section_of(document, "train.epochs")
    assert (section, name) == ({"lr": 0.1}, "epochs") and section is document["train"]
    assert section_of(document, "data.own.birds") == ({}, "birds") and document["data"] == {"own": {}}


def test_a_key_below_a_value_is_refused():
    with pytest.raises(ValueError, match="'lr' is not a section of the settings"):
        unflatten({"train.lr": 0.1, "train.lr.first": 0.2})
