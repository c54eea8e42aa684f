import json
import sys

import pytest

from mmrl_core.errors import Damaged
from mmrl_core.files import read_json, wrong_entry
from mmrl_core.parsing import DEEPEST, parse_json, whole_number
from mmrl_core.search.trial import SearchDocument


@pytest.mark.parametrize(
    "text", ["{}", "[1, 2.5, null]", '"\\ud83d\\ude00 é"', "[" * DEEPEST + "]" * DEEPEST, '"\\\\ud800"', "1e400", "NaN"]
)
def test_json_is_read_as_python_reads_it(text):
    assert repr(parse_json(text)) == repr(parse_json(text.encode())) == repr(json.loads(text))


def test_json_that_begins_with_a_byte_order_mark_is_read():
    assert parse_json("\ufeff[1]".encode()) == [1]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b'"\xed\xa0\x80"',
        "[" * 100_000,
        "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1),
        '{"x":' * 200 + "1" + "}" * 200,
        "9" * (sys.get_int_max_str_digits() + 1),
        '"\\ud800"',
        '{"\\udfff": 1}',
        '["\\ude00\\ud83d"]',
    ],
    ids=lambda content: repr(content[:12]),
)
def test_what_is_no_json_or_no_document_is_a_value_error_of_one_line(content):
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the kind alone is promised
        parse_json(content)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("007", 7), ("9" * 18, 10**18 - 1)])
def test_a_number_is_what_its_digits_say(text, number):
    assert whole_number(text) == number


@pytest.mark.parametrize("text", ["", "²", "٣", "-1", "+1", " 1", "1\n", "1_0", "1.0", "9" * 19, "9" * 5000])
def test_other_text_is_no_number(text):
    assert whole_number(text) is None


def test_a_document_without_a_key_or_with_an_entry_of_another_type_is_damaged(tmp_path):
    path = tmp_path / "search.json"
    path.write_text('{"schema_version": 1, "choice": {"train.lr": true}}')
    for asked, message in (
        ({"keys": ["trials"]}, "has no 'trials'; run `mmrl tune` again"),
        (
            {"shape": SearchDocument},
            "search.json: choice.train.lr.float: Input should be a valid number; run `mmrl tune`",
        ),
    ):
        with pytest.raises(Damaged, match=message):
            read_json(path, made_by="mmrl tune", **asked)


def test_an_entry_may_be_missing_but_not_one_within_an_entry():
    assert wrong_entry({}, SearchDocument) is None
    assert wrong_entry({"trials": [{"params": {}}]}, SearchDocument) == "trials.0.scores: Field required"
