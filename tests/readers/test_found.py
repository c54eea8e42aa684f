"""What damaged files were found to do: each kind of mistake by one input, and what is said of it now."""

import io
import json
import re

import pyarrow
import pyarrow.parquet
import pytest

from flows.cli import flow, registry
from flows.project.predictions import LABELS
from flows.registry import versions
from flows.serving.drift import drift
from mmrl_core.clip.weights.pretrained import load_clip
from mmrl_core.errors import UserError
from mmrl_core.method.published_checkpoints import read_published, to_adapter_state
from tests.readers.damage import NO_END, inside
from tests.readers.results import KEY, make_registrable, read_registrable
from tests.readers.test_readers import READERS

BY_NAME = {reader.name: reader for reader in READERS}


def parquet(**columns) -> bytes:
    written = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), written)
    return written.getvalue()


def read(name: str, folder, change) -> None:
    """Let a reader of the list read what `change` makes of the whole file's content."""
    reader = BY_NAME[name]
    reader.make(folder)
    path = folder / reader.file
    path.write_bytes(change(path.read_bytes()))
    reader.read(folder)


def to(content: bytes | str):
    return lambda whole: content.encode() if isinstance(content, str) else content


def entry(*place, value):
    """A change of one entry of a JSON document."""

    def change(whole: bytes) -> bytes:
        document = json.loads(whole)
        parent = document
        for key in place[:-1]:
            parent = parent[key]
        parent[place[-1]] = value
        return json.dumps(document).encode()

    return change


FAR = pyarrow.array([2**62, 1], pyarrow.timestamp("us"))
REFUSED = {
    "nesting without end": ("CoOp's split file", to(NO_END), "is not valid JSON (it is nested without end)"),
    "half a surrogate pair": ("CoOp's split file", entry("train", 0, 2, value="\ud800"), "half a surrogate pair"),
    "half a surrogate pair in a tar": ("JSON in own shards", to('{"label": "\\ud800"}'), "half a surrogate pair"),
    "a time out of range": ("own table, Parquet", to(parquet(path=FAR, label=["x", "y"])), "cannot read the table"),
    "an entry of another type": ("manifest with a right digest", entry("base", value=["0"]), "base.0: Input should be"),
    "no shard, though its digest is right": ("shard with a right digest", to(b"x" * 600), "cannot be read"),
    "a part without scores": ("metrics.json in the report", entry("parts", value=["all"]), "scores.all: Input should"),
    "a part without scores where the probe is left out": (
        "metrics.json in the report",
        entry("without_probe", value={}),
        "without_probe.base: Input should",
    ),
    "an accuracy beyond 1": (
        "metrics.json to be registered",
        entry("validation", "base", "accuracy", value=1e300),
        "less",
    ),
    "other parts for one seed": ("metrics.json in the report", entry("parts", value=[]), "other parts"),
    "a class without a name": ("metrics.json in the report", entry("class_names", value={}), "names no class 0"),
    "columns of another type": (
        "predictions.parquet",
        to(parquet(item=["x"], part=["base"], label=["0"], **{name: [0] for name in LABELS[1:]})),
        "has columns of another type",
    ),
    "predictions of another part": (
        "predictions.parquet",
        to(parquet(item=["x"], part=["all"], **{name: [0] for name in LABELS})),
        "tested on different",
    ),
    "a time out of range to predict": ("table to predict, Parquet", to(parquet(path=FAR)), "two.parquet"),
    "a list for an object": ("adapter.json in the report", entry("settings", value=[]), "settings: Input should be"),
    "a choice that is not there": ("a search in the report", entry("chosen", value=7), "it names a trial 7"),
    "a choice of another type": ("a search to train by", entry("choice", value=[1]), "choice: Input should be"),
    "an objective that is none": (
        "a search to train by",
        entry("search", "objective", value="x"),
        "search.objective is",
    ),
    "trials that do not compare": ("a search to train by", entry("trials", 1, "params", value={}), "does not compare"),
    "no path to the adapter": (
        "MLmodel of a version",
        to("flavors: {python_function: {artifacts: {adapter: {}}}}"),
        "no MLmodel that can be read",
    ),
    "a path that is none": (
        "MLmodel of a version",
        to('flavors: {python_function: {artifacts: {adapter: {path: "\\0"}}}}'),
        "no MLmodel that can",
    ),
    "an MLmodel that is nested without end": ("MLmodel of a version", to("[" * 5000), "no MLmodel that can be read"),
    "a decision of no version": (
        "intent of a decision",
        to('{"alias": "x", "before": "1"}'),
        "before: Input should be",
    ),
    "pyproject.toml that is none": (
        "pyproject.toml that Prefect reads",
        to("[tool"),
        "pyproject.toml, which Prefect reads",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_mistake_of_each_kind_is_refused_in_one_line(name, tmp_path):
    reader, change, message = REFUSED[name]
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        read(reader, tmp_path, change)
    assert "\n" not in str(refused.value)


HARMLESS = {
    "a card of the feature store that is a list": ("card of frozen features", to("[1]")),
    "a size of records that is text": ("card of frozen features", entry("record_bytes", value="1")),
    "a score that is no float": ("a trial of a search", entry("scores", 1, "harmonic_mean", value=10**400)),
    "a name of two lines in the log": ("log of predictions", lambda log: log.replace(b"pets", b"pets\\nand")),
    "a trial with other scores": ("a trial of a search", entry("scores", 1, value={"x": 1})),
    "a finished search without its choice": ("a search that is through", entry("chosen", value=3)),
    "first points that are none": ("first points of a search", entry("points", value=[1])),
    "facts that are none": ("facts of a search", entry("search", value=[1])),
    "a summary that is none": ("an output made ahead", entry("summary", value=[1])),
    "a length in superscripts": ("length of a request", to("²".encode("latin-1"))),
    "a length of five thousand digits": ("length of a request", to(b"9" * 5000)),
    "a time of a prediction without a zone": ("log of predictions", lambda log: log.replace(b"+00:00", b"", 1)),
    "a line of the log that is a list": ("log of predictions", lambda log: b"[1]\n" + log),
    "a line of the log that has no end": ("log of predictions", lambda log: NO_END.encode() + b"\n" + log),
    "settings of Prefect in another encoding": (".env that Prefect reads", to("NAME=ä".encode("latin-1"))),
    "a verdict that is a list": ("intent of a decision", entry("verdict", value="refused")),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_damage_that_nothing_rests_on_stops_nothing(name, tmp_path):
    reader, change = HARMLESS[name]
    read(reader, tmp_path, change)


def test_labels_of_thousands_of_digits_are_text(tmp_path):
    read("own table, CSV", tmp_path, lambda table: table.replace(b",1,", b"," + b"9" * 5000 + b","))


def test_an_adapter_without_its_tensors_is_not_registered(tmp_path):
    inside(make_registrable)(tmp_path)
    (tmp_path / KEY.model / "adapter.safetensors").unlink()
    with pytest.raises(UserError, match=r"adapter.safetensors is missing; run `dvc repro`"):
        inside(read_registrable)(tmp_path)


@pytest.mark.parametrize("digit", ["00", "٠", "9" * 5000])
def test_a_layer_of_a_checkpoint_has_a_number_in_plain_digits(tmp_path, digit):
    BY_NAME["the authors' checkpoint"].make(tmp_path)
    state = read_published(tmp_path / "model.pth.tar")
    prefix = "representation_learner.compound_rep_tokens_r2vproj."
    state[f"{prefix}{digit}.weight"] = state.pop(f"{prefix}0.weight")
    with pytest.raises(UserError, match=r"has layers \[1\] of"):
        to_adapter_state(state, "mmrl")


@pytest.mark.parametrize("seed", ["²", "٣", "9" * 5000, "9" * 30])
def test_a_seed_of_random_weights_is_a_number_in_plain_digits(seed):
    with pytest.raises(UserError, match="the seed after `random:` must be a whole number"):
        load_clip("ViT-B-32", f"random:{seed}")


@pytest.mark.parametrize("version", ["²", "9" * 5000])
def test_a_version_is_a_number_in_plain_digits(version):
    with pytest.raises(UserError, match="is not of the form models:/NAME@ALIAS or models:/NAME/VERSION"):
        versions.resolve(None, f"models:/pets/{version}")


@pytest.mark.parametrize("port", ["²", "65536", "9" * 5000, ""])
def test_a_port_to_listen_at_is_one(port):
    with pytest.raises(UserError, match="is not of the form HOST:PORT"):
        flow.release(listen=f"127.0.0.1:{port}", dataset=None, watch=None, set_=[])


@pytest.mark.parametrize("hours", [1e300, float("inf"), float("nan")])
def test_drift_looks_no_further_back_than_time(hours, tmp_path):
    with pytest.raises(UserError, match="is before all time"):
        drift(tmp_path, hours)


def test_a_decision_at_no_time_is_shown_by_its_number():
    assert registry._when(10**30) == str(10**30)
    assert registry._when(0).startswith(("1969", "1970"))
