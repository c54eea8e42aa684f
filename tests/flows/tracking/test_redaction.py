"""No password or token is printed, however it is written and whoever complains about it."""

import socket
import traceback
from urllib.parse import quote

import pytest

from flows.settings.params import Params
from flows.tracking.redaction import first_line, printable, redacted
from flows.tracking.run import tracked_run
from flows.tracking.store import absolute, connect
from mmrl_core.errors import UserError
from tests.flows.tracking.test_store import KEY

PASSWORDS = [
    "plain7Secret", "at@7Secret", "two@at@7Secret", "slash/7Secret", "12/7Secret", "colon:7Secret", "sp ace 7Secret",
    "12 7Secret", "quest?7Secret", "hash#7Secret", "per%cent7Secret", "7Secret&more", "[7Secret]", "ünï7Secret",
]  # fmt: skip
SHAPES = [
    "postgresql://owner:{raw}@127.0.0.1:{port}/mlflow", "postgresql://owner:{quoted}@127.0.0.1:{port}/mlflow",
    "postgresql://owner@127.0.0.1:{port}/mlflow?password={quoted}&sslmode=disable",
    "postgresql:///mlflow?host=127.0.0.1&port={port}&user=owner&password={raw}",
    "postgresql://owner@127.0.0.1:{port}/mlflow?sslpassword={quoted}",
    "http://owner:{raw}@127.0.0.1:{port}", "http://owner:{quoted}@127.0.0.1:{port}", "http://{quoted}@127.0.0.1:{port}",
    "mysql+pymysql://owner:{raw}@127.0.0.1:{port}/mlflow", "nonsense://owner:{raw}@127.0.0.1:{port}",
]  # fmt: skip


def shows(text: str) -> bool:
    """Whether a text has the part that all of these passwords have in common."""
    return "7secret" in text.lower()


@pytest.fixture(scope="module")
def closed_port():
    """Where nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_store_that_cannot_be_reached_is_named_without_its_password(shape, closed_port, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for password in PASSWORDS:
        uri = absolute(shape.format(raw=password, quoted=quote(password, safe=""), port=closed_port))
        with pytest.raises(UserError) as failed:
            connect(uri)
        line = str(failed.value)
        assert not shows(line) and not shows(printable(uri)), line
        assert not shows("".join(traceback.format_exception(failed.value))), "what Prefect logs"
        assert "cannot be used" in line and line.count("***") >= 1
        assert not shows(first_line(RuntimeError(f"it is at {uri}, and not at {password!r}"), uri))


def test_a_stage_warns_without_the_password(closed_port, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flows.tracking.run.PATIENCE", 0)
    uri = f"postgresql://owner:p@ss 7Secret@127.0.0.1:{closed_port}/mlflow"
    params = Params(datasets=["digits"], methods=["mmrl"], shots=[16], seeds=[1], tracking={"uri": uri})
    with tracked_run(params, KEY, "train", {}):
        pass
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and "owner:***@" in warning and not shows(warning) and "ss " not in warning


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at postgresql://owner:pw@host/db?sslmode=x", "at postgresql://owner:***@host/db?sslmode=x"),
        ("at postgresql://owner:p w@r/d@host/db now", "at postgresql://owner:***@host/db now"),
        ("at postgresql://owner@host/db?password=pw&x=1", "at postgresql://owner@host/db?password=***&x=1"),
        ("at https://token@host/x, https://a:b@host", "at https://***@host/x, https://***@host"),
        ("s3://key:secret@bucket", "s3://key:***@bucket"),
        ("host=h user=u password=pw dbname=d", "host=h user=u password=*** dbname=d"),
        (r"host=h password='p \' w' dbname=d", "host=h password=*** dbname=d"),
        ("sslpassword = pw", "sslpassword = ***"),
    ],
)
def test_a_text_loses_the_passwords_of_the_addresses_in_it(text, shown):
    assert redacted(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "models:/name@alias", "http://127.0.0.1:5000/api failed for digits@champion",
        "http://127.0.0.1:5000: refused, for digits@champion", "http://localhost:5000 and digits@champion",
        "sqlite:////home/a:b@c/mlflow.db", "postgresql://owner@host:5432/db", "file:///a:b@c", "adapter.n_tokens=5",
        'password authentication failed for user "owner"', "fe_sendauth: no password supplied",
    ],
)  # fmt: skip
def test_harmless_text_stays_as_it_is(text):
    assert redacted(text) == text
