"""params.yaml: what is refused and how it is said, and where a resolved value comes from."""

import pytest

from flows.settings.params import Params, load_params
from flows.settings.resolve import resolve
from mmrl_core.errors import UserError
from mmrl_core.presets import published

MATRIX = {"datasets": ["digits"], "methods": ["mmrl"], "shots": [16], "seeds": [1]}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("adapter.insertion_dept=3", "unknown key 'adapter.insertion_dept'; did you mean 'insertion_depth'"),
        ("trian.lr=1", "unknown key 'trian'; did you mean 'train'"),
        ("shots=[0]", r"shots\.0 is 0"),
        ("seeds=[]", "seeds is"),
        ("methods=[lora]", r"methods\.0 is 'lora'"),
        ("adapter.alpha=2", "adapter.alpha is 2"),
        ("train.lr=.nan", "train.lr is nan"),
        ("train.epochs=2.5", "train.epochs is 2.5"),
        ("data.protocol=few", "data.protocol is 'few'"),
        ("cluster.workers=0", "cluster.workers is 0, which cannot be: at least one is"),
        ("cluster.workers=two", "cluster.workers is 'two', which cannot be: give a number, or"),
        ("serving.replicas={min: 3, max: 2}", "serving.replicas is .*from 3 to 2 is no range"),
        ("serving.port=70000", "serving.port is 70000"),
        ("cluster.workers={min: 3, max: 2}", "from 3 to 2 is no range"),
        ("cluster.workers={min: 1, max: 2, mid: 1}", "unknown key 'cluster.workers.mid'"),
        ("search.space={adapter.beta: {choice: [2]}}", "search.space.beta is 2"),
        ("search.space={adapter.colour: {choice: [2]}}", "no key of adapter or train"),
        ("search.space={adapter.reg_weight: {loguniform: [0, 1]}}", "is no range"),
        ("search.space={adapter.reg_weight: {normal: [0, 1]}}", "exactly one of choice, uniform, loguniform"),
        ("seeds=[1, 1]", "an entry occurs twice"),
        ("datasets=[digits, digits]", "an entry occurs twice"),
        ("seeds=[100000000000000000000]", r"seeds\.0 is"),
        ("adapter.alpha=true", "a number is needed"),
        ("train.lr=2024-99-99", "not valid YAML"),
        ("search.space={adapter.insertion_depth: {uniform: [1, 5]}}", "give a choice instead of uniform"),
        ("train.lr", "not of the form key.path=value"),
        ("seeds.first=1", "is not a section"),
    ],
)
def test_a_mistake_in_the_settings_is_one_line_that_names_the_key(tmp_path, override, message):
    path = tmp_path / "params.yaml"
    path.write_text("datasets: [digits]\nmethods: [mmrl]\nshots: [16]\nseeds: [1]\n")
    with pytest.raises(UserError, match=message) as error:
        load_params(path, [override])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("a: [", "cannot be read as YAML"),
        ("", "holds no settings"),
        ("datasets: [x]", "missing"),
    ],
)
def test_a_settings_file_that_is_none_is_refused(tmp_path, content, message):
    path = tmp_path / "params.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        load_params(path)


def test_the_shipped_settings_are_valid_and_leave_the_published_values_alone():
    params = load_params("params.yaml")
    assert not any(value is not None for value in params.adapter.model_dump().values())


def test_an_explicit_value_wins_over_the_search_and_the_search_over_the_preset():
    params = Params(**MATRIX, adapter={"alpha": 0.5})
    chosen = {"adapter.alpha": 0.1, "adapter.reg_weight": 2.0}
    settings = resolve(params, "dtd", "mmrl", seed=3, depth=12, chosen=chosen)
    assert (settings.adapter.alpha, settings.sources["adapter.alpha"]) == (0.5, "params.yaml")
    assert (settings.adapter.reg_weight, settings.sources["adapter.reg_weight"]) == (2.0, "search")
    assert (settings.adapter.insertion_depth, settings.sources["adapter.insertion_depth"]) == (6, "preset published")
    assert settings.train.seed == 3


@pytest.mark.parametrize(
    ("dataset", "method", "expected"),
    [
        ("dtd", "mmrl", {"adapter.reg_weight": 6, "adapter.rep_dim": 512, "train.batch_size": 4, "train.epochs": 10}),
        ("dtd", "mmrlpp", {"adapter.reg_weight": 7, "adapter.beta": 0.9}),
        ("eurosat", "mmrl", {"adapter.reg_weight": 0.01, "adapter.rep_dim": 2048}),
        ("eurosat", "mmrlpp", {"adapter.beta": 0.2, "adapter.rep_dim": 512}),
        ("flowers102", "mmrlpp", {"adapter.reg_weight": 7, "adapter.beta": 0.4}),
        ("describable_textures", "mmrl", {"adapter.reg_weight": 6}),
        ("imagenet", "mmrl", {"train.batch_size": 32, "train.epochs": 5, "adapter.insertion_depth": 6}),
    ],
)
def test_the_preset_holds_the_published_values(dataset, method, expected):
    assert published(dataset, method, depth=12).items() >= expected.items()


def test_more_warm_up_epochs_than_epochs_are_refused():
    params = Params(**MATRIX, train={"epochs": 2, "warmup_epochs": 3})
    with pytest.raises(UserError, match="warmup_epochs is 3, more than the 2 epochs"):
        resolve(params, "dtd", "mmrl", seed=1, depth=12)


def test_the_published_depth_scales_with_the_backbone():
    assert published("digits", "mmrl", depth=6)["adapter.insertion_depth"] == 3
