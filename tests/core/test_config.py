"""params.yaml: what is refused and how it is said, and where a resolved value comes from."""

import math
import re

import pytest

from flows.settings.params import Params, load_params
from flows.settings.resolve import resolve
from mmrl_core.config import AdapterConfig, BaselineConfig, TrainConfig
from mmrl_core.errors import UserError
from mmrl_core.presets import published

MATRIX = {"datasets": ["digits"], "methods": ["mmrl"], "shots": [16], "seeds": [1]}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("datasets: [digits]\nmethods: [mmrl]\nshots: [16]\nseeds: [1]\n")
    return path


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
        ("search.space={train.precision: {choice: [1]}}", "no key of adapter or train that is a number"),
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
def test_a_mistake_in_the_settings_is_one_line_that_names_the_key(path, override, message):
    with pytest.raises(UserError, match=message) as error:
        load_params(path, [override])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("datasets=birds", r"datasets is 'birds', which cannot be: a list is needed; say \[birds\]$"),
        ("seeds=3", r"a list is needed; say \[3\]$"),
        ("datasets=[5]", r"datasets\.0 is 5, which cannot be: text is needed; quote it"),
        ("methods=[MMRL++]", "choose one of mmrl, mmrlpp; did you mean mmrlpp"),
        ("methods=[MMRL]", r"did you mean mmrl\?"),
        ("data.protocol=Base_To_Novel", r"did you mean base-to-novel\?"),
        ("data.own.birds=/some/where", "data.own.birds is '/some/where', .* say data.own.birds.images=/some/where"),
        ("data.own.birds.image=x", "unknown key 'data.own.birds.image'; did you mean 'images'"),
        ("data.own={2024: {images: x}}", "the key 2024 in data.own is no text; quote it"),
        ("data.own=birds", r"data.own is 'birds', which cannot be: it is a section of names, as {NAME: ...}"),
        ("backbone=ViT-B-16", "it is a section; say backbone.name=ViT-B-16"),
        ("train=null", "train is null, which cannot be: it is a section; its keys are epochs, batch_size, lr"),
        ("train.alpha=0.5", "unknown key 'train.alpha'; did you mean 'adapter.alpha'"),
        ("lr=0.1", "unknown key 'lr'; did you mean 'train.lr'"),
        ("train.lr=fast", "train.lr is 'fast', which cannot be: a number is needed$"),
        ("search.enabled=maybe", "search.enabled is 'maybe', which cannot be: true or false is needed"),
        ("search.trials=0", "search.trials is 0, which cannot be: at least 1 is needed"),
        ("search.space={adapter.beta: {choice: [a]}}", r"adapter.beta: a number is needed, not .a."),
        ("search.space={adapter.beta: {choice: [true]}}", "is true, which cannot be: a number is needed"),
        ("cluster.workers=[1]", r"cluster.workers is \[1\], which cannot be: give a number, or {min: 1, max: 4}"),
        ("tracking.uri=postgresql://me:s3cret@h:99999/db", r"tracking.uri is 'postgresql://\*\*\*@h:99999/db', which"),
        (f"backbone.name=[{'x' * 5000}]", r"text is needed$"),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_is_told_what_was_expected_in_plain_words(path, override, message):
    with pytest.raises(UserError, match=message) as error:
        load_params(path, [override])
    said = str(error.value).removeprefix(str(path))
    assert "Section" not in said and "nput should" not in said and len(said) < 300


@pytest.mark.parametrize("section", [name for name, field in Params.model_fields.items() if name not in MATRIX])
@pytest.mark.parametrize("value", ["5", "[1]", "words", "null", "{a: 1}"])
def test_no_section_of_another_kind_is_answered_with_the_name_of_a_class(path, section, value):
    with pytest.raises(UserError) as error:
        load_params(path, [f"{section}={value}"])
    assert not re.search(r"Section|Params\b|nput should|dictionary|instance", str(error.value))


@pytest.mark.parametrize("alias", ["released", "Released", "Latest", "LATEST", "v2", "V10", "a b", "9", "x" * 101])
def test_an_alias_that_the_registry_or_mlflow_has_taken_is_refused(path, alias):
    with pytest.raises(UserError, match="registry.alias is"):
        load_params(path, [f"registry.alias='{alias}'"])


def test_an_alias_that_mlflow_takes_is_taken(path):
    for alias in ("live", "v2-live", "champion_2"):
        assert load_params(path, [f"registry.alias={alias}"]).registry.alias == alias


IMPOSSIBLE = {
    "serving.url_prefixes": ["[https://]", "[https://h:99999/]", "[ftp://h/a/]", "['https://a b/']", "[https://me@h/]",
                             "[https://256.1.1.1/]", "[https://h/a]", "['https://h/a?b/']", "[https://h:0/]"],
    "tracking.uri": ["mlruns", "nonsense://x", "http://", "http://h:0", "http://h:99999", "'http://my host/'", "sqlite://",
                     "sqlite:///", "postgresql://me:pw@h:x/db"],
    "cluster.address": ["h", "h:0", "h:70000", "'a b:3'", "ray://h:1", "h:٣"],
    "cluster.storage": ["here", "s3://", "s3:///x", "nonsense://x", "'s3://a b/c'"],
    "cluster.data": ["s3://", "'s3://a b/c'", "''"],
    "serving.host": ["''", "a b", "http://h", "1.2.3"],
    "backbone.name": ["''", "' '"],
    "data.root": ["''", '"a\\0b"'],
    "serving.poll_seconds": ["1e300", "1e-300", "0", ".nan", ".inf"],
    "serving.batch_wait_ms": ["1e300", "-1", ".inf"],
    "serving.max_bytes": ["1000000000000"],
    "registry.latency": ["1e300", "0"],
    "features.budget_gb": ["1e300", "-1"],
    "search.seed": ["4294967296"],
    "search.trials": ["1000000000"],
    "shots": ["[1000000000]"],
    "train.lr": ["1e300", "1e-300"],
    "train.epochs": ["1000000000"],
    "adapter.n_tokens": ["1001"],
    "adapter.reg_weight": ["1e300"],
    "cluster.cpus_per_trial": ["1e-9", "1e300"],
    "cluster.gpus_per_worker": ["1e300"],
    "cluster.workers": ["1000000000", "{min: 1, max: 1000000000}"],
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in IMPOSSIBLE.items() for value in values])
def test_what_can_be_no_address_and_no_number_for_a_machine_is_refused_by_its_key(path, key, value):
    with pytest.raises(UserError, match=f"{re.escape(key)}[.\\w]* is ") as error:
        load_params(path, [f"{key}={value}"])
    assert "\n" not in str(error.value)


POSSIBLE = {
    "serving.url_prefixes": ["[https://h/f/]", "['http://[::1]:80/a/']", "[http://127.0.0.1:9000/]"],
    "tracking.uri": ["sqlite:////a/b.db", "sqlite:///my file.db", "http://h:5000/prefix", "https://me:pw@h",
                     "postgresql+psycopg2://u:p%40@h1:1,h2:2/db", "postgresql:///db?host=/run"],
    "cluster.address": ["auto", "10.0.0.1:6379"],
    "cluster.storage": ["/shared", "file:///shared", "s3://b/x?endpoint_override=http%3A%2F%2F127.0.0.1%3A9000"],
    "cluster.data": ["/copy", "file:///copy", "s3://b/data"],
    "serving.host": ["0.0.0.0", "'::1'", "localhost", "a-b.example.org"],
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in POSSIBLE.items() for value in values])
def test_addresses_that_can_be_are_taken(path, key, value):
    assert load_params(path, [f"{key}={value}"]) != load_params(path)


def test_minus_zero_is_zero(path):
    assert math.copysign(1, load_params(path, ["adapter.alpha=-0.0"]).adapter.alpha) == 1


@pytest.mark.parametrize(
    ("datasets", "targets", "message"),
    [
        (["a", "a-b"], ["b-c", "c"], "a on b-c and a-b on c would share .* 'a-b-c'; rename one"),
        (["a", "a-to-b"], ["b-to-c", "c"], "a on b-to-c and a-to-b on c would share .* 'a-to-b-to-c'"),
        (["x-to-x", "x"], ["x-to-x-to-x"], "would share .* 'x-to-x-to-x-to-x'"),
        (["Birds", "birds"], ["c"], "Birds and birds would share"),
        (["a"], ["c", "C"], "c and C would share"),
    ],
)
def test_runs_that_would_have_one_name_are_refused_by_both(path, datasets, targets, message):
    with pytest.raises(UserError, match=message):
        load_params(path, ["data.protocol=cross-dataset", f"datasets={datasets}", f"targets={targets}"])


@pytest.mark.parametrize("name", ["../x", "a b", "a/b", "", "x" * 101])
def test_a_datasets_name_that_can_be_no_folder_is_refused(path, name):
    with pytest.raises(UserError, match="datasets.0 is .* a dataset's name"):
        load_params(path, [f"datasets=['{name}']"])


def test_data_that_would_be_written_into_is_refused(path):
    with pytest.raises(UserError, match="data.root is data/raw, where the shards of raw are written"):
        load_params(path, ["datasets=[raw]"])
    with pytest.raises(UserError, match="data.own.birds.images is data/birds, .* move the images"):
        load_params(path, ["datasets=[birds]", "data.own.birds.images=data/birds"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("a: [", "line 2 is not valid YAML"),
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
    assert {key: value for key, value in params.adapter.model_dump().items() if value is not None} == {"probe": "fused"}


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


@pytest.mark.parametrize(
    ("made", "line"),
    [
        (lambda: AdapterConfig(method="mrl"), "method is 'mrl', which cannot be: choose one of .*; did you mean mmrl"),
        (lambda: AdapterConfig(), "method is missing; add it"),
        (lambda: AdapterConfig(method="mmrl", alpha=2), "alpha is 2, which cannot be: at most 1 is possible"),
        (lambda: AdapterConfig(method="mmrl", dept=2), "unknown key 'dept'"),
        (lambda: TrainConfig(epochs=0), "epochs is 0, which cannot be: at least 1 is needed"),
        (lambda: TrainConfig(epochs=1, warmup_epochs=2), "warmup_epochs is 2, more than the 1 epochs"),
        (lambda: BaselineConfig(method="probe"), "method is 'probe', which cannot be: choose one of linear_probe"),
    ],
)
def test_settings_made_in_python_are_refused_in_one_line_by_what_programs_catch(made, line):
    with pytest.raises(ValueError, match=line) as error:
        made()
    assert isinstance(error.value, UserError) and "\n" not in str(error.value)
