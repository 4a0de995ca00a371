"""The records: how they are written as JSON, what they take and what they refuse."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from cdc.message import describe, read
from employee import CDC_COLUMNS, EMPLOYEE_COLUMNS, CDCRecord, Employee
from harness.records import FULL, NEWEST, OLDEST, value

import pytest


def test_a_record_goes_out_as_json_and_comes_back_the_same() -> None:
    record = CDCRecord(**FULL)
    assert CDCRecord.from_json(record.to_json()) == record
    assert json.loads(record.to_json()) == FULL
    assert tuple(json.loads(record.to_json())) == CDC_COLUMNS


def test_a_record_of_any_text_comes_back_the_same() -> None:
    for text in (
        "",
        " ",
        "'",
        '"',
        "\\",
        "\n\r\t\x01\x7f",
        "Zürich",
        "漢字",
        "👩‍👩‍👧",
        '{"cdc_id":1}',
        "%(city)s",
        "a" * 100,
    ):
        record = CDCRecord(1, 2, text, text, None, text, None, "INSERT")
        assert CDCRecord.from_json(record.to_json()) == record
        assert CDCRecord.from_json(record.to_json().encode()) == record
        assert CDCRecord.from_json(json.dumps(asdict(record))) == record, "with \\u escapes"


def test_a_missing_data_column_is_null() -> None:
    assert CDCRecord.from_json('{"cdc_id":1,"emp_id":2,"action":"DELETE"}') == CDCRecord(1, 2, action="DELETE")


def test_unknown_fields_are_ignored() -> None:
    assert CDCRecord.from_json(value(department="Engines", nested={"a": [1, None]})) == CDCRecord(**FULL)


def test_the_order_of_the_fields_and_spaces_do_not_matter() -> None:
    assert CDCRecord.from_json(json.dumps(dict(reversed(FULL.items())), indent=2)) == CDCRecord(**FULL)


def test_a_record_is_called_by_action_and_employee() -> None:
    assert describe(value()) == ("UPDATE employee 3", 17)
    assert describe(b"nonsense") == ("a message that is no change", 0)
    assert describe(None) == ("a message that is no change", 0)


def test_the_columns_are_those_of_the_specified_tables() -> None:
    assert EMPLOYEE_COLUMNS == ("emp_id", "first_name", "last_name", "dob", "city", "salary")
    assert " ".join(CDC_COLUMNS) == "cdc_id emp_id first_name last_name dob city salary action"


TEXTS = ("first_name", "last_name", "city")
WHOLE = {"true": True, "a float": 1.0, "a numeric string": "1", "an array": [1], "an object": {}, "NaN": float("nan")}
TEXT = {
    "a number": 7,
    "false": False,
    "an array": ["Ada"],
    "an object": {"a": 1},
    "101 characters": "x" * 101,
    "101 astral characters": "😀" * 101,
    "100 characters and a space": "x" * 100 + " ",
    "a NUL": "a\0b",
    "a lone surrogate": "a\ud800b",
}
WRONG: dict[str, tuple[str, Any]] = {
    **{
        f"{name} that is {what}": (name, wrong)
        for name in ("cdc_id", "emp_id", "salary")
        for what, wrong in WHOLE.items()
    },
    **{f"{name} that is {what}": (name, wrong) for name in TEXTS for what, wrong in TEXT.items()},
    "emp_id above int4": ("emp_id", 2**31),
    "emp_id below int4": ("emp_id", -(2**31) - 1),
    "salary above int4": ("salary", 2**31),
    "salary below int4": ("salary", -(2**31) - 1),
    "salary of 4,000 digits": ("salary", 10**4000),
    "cdc_id 0": ("cdc_id", 0),
    "cdc_id negative": ("cdc_id", -1),
    "cdc_id above int8": ("cdc_id", 2**63),
    "dob that is a number": ("dob", 20000101),
    "dob that is an array": ("dob", ["2000-01-01"]),
    "dob that is empty": ("dob", ""),
    "dob that is nonsense": ("dob", "yesterday"),
    "dob on 30 February": ("dob", "2001-02-30"),
    "dob with a time": ("dob", "2001-02-03 04:05:06"),
    "dob with a line end": ("dob", "2001-02-03\n"),
    "dob in other digits": ("dob", "２００１-02-03"),
    "dob one day too early": ("dob", "4714-11-23 BC"),
    "dob one day too late": ("dob", "5874898-01-01"),
    "action unknown": ("action", "MERGE"),
    "action in lower case": ("action", "insert"),
    "action that is an array": ("action", ["INSERT"]),
    "action that is a number": ("action", 1),
    "action that is empty": ("action", ""),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_value_is_refused_by_its_name(what: str) -> None:
    name, wrong = WRONG[what]
    with pytest.raises(ValueError, match=f"^{name} (is|has|holds) ") as refusal:
        CDCRecord(**{**FULL, name: wrong})
    with pytest.raises(ValueError, match=re.escape(str(refusal.value))):
        CDCRecord.from_json(value(**{name: wrong}))
    assert len(str(refusal.value)) < 120
    assert str(refusal.value).isprintable()
    str(refusal.value).encode()
    if name in EMPLOYEE_COLUMNS:
        with pytest.raises(ValueError, match=re.escape(str(refusal.value))):
            Employee(**{name: wrong for name, wrong in {**FULL, name: wrong}.items() if name in EMPLOYEE_COLUMNS})


@pytest.mark.parametrize("name", ["cdc_id", "emp_id", "action"])
def test_what_identifies_a_change_must_be_there(name: str) -> None:
    for text in (value(**{name: None}), json.dumps({key: FULL[key] for key in FULL if key != name})):
        with pytest.raises(ValueError, match=f"^{name} missing$"):
            CDCRecord.from_json(text)


@pytest.mark.parametrize(
    "column",
    [
        {"emp_id": -(2**31)},
        {"emp_id": 2**31 - 1},
        {"salary": -(2**31)},
        {"salary": 2**31 - 1},
        {"salary": 0},
        {"cdc_id": 1},
        {"cdc_id": 2**63 - 1},
        {"city": "x" * 100},
        {"city": "😀" * 100},
        {"city": ""},
        {"dob": OLDEST},
        {"dob": NEWEST},
    ],
    ids=lambda column: f"{next(iter(column))} {str(next(iter(column.values())))[:20]}",
)
def test_the_last_value_inside_a_limit_is_taken(column: dict[str, Any]) -> None:
    assert CDCRecord.from_json(value(**column)) == replace(CDCRecord(**FULL), **column)


NOT_A_RECORD: dict[str, str | bytes | None] = {
    "no value": None,
    "an empty value": b"",
    "a space": b" ",
    "nonsense": b"nonsense",
    "null": b"null",
    "a number": b"17",
    "a text": b'"UPDATE"',
    "an array": f"[{value()}]",
    "two objects": f"{value()}{value()}",
    "two objects with a comma": f"{value()},{value()}",
    "a truncated object": value()[:-1],
    "a text cut short": value()[:40],
    "a trailing comma": value()[:-1] + ",}",
    "single quotes": value().replace('"', "'"),
    "invalid UTF-8": value().encode().replace(b"London", b"Lond\xff"),
    "a raw NUL": value().replace("London", "Lond\0n"),
    "a raw line end": value().replace("London", "Lond\nn"),
    "a number of 10,000 digits": value().replace("120000", "9" * 10_000),
    "a number with a leading zero": value().replace("120000", "0120000"),
    "an infinite number": value().replace("120000", "1e999"),
    "NaN": value().replace("120000", "NaN"),
}


@pytest.mark.parametrize("what", NOT_A_RECORD)
def test_a_value_that_is_no_record_is_refused_in_words(what: str) -> None:
    with pytest.raises(ValueError, match=r"not JSON|no value|JSON object|not a whole number") as refusal:
        CDCRecord.from_json(NOT_A_RECORD[what])
    str(refusal.value).encode()


@pytest.mark.parametrize(
    "other",
    [
        value().encode("utf-16"),
        value().encode("utf-32-le"),
        value(department="x").encode().replace(b'"x"', b'"\xed\xa0\x80"'),
        value(xyz=1).encode().replace(b"xyz", b"\xed\xa0\x80"),
    ],
    ids=["UTF-16", "UTF-32", "a surrogate in an unknown field", "a surrogate in a field's name"],
)
def test_bytes_that_are_not_utf_8_are_refused_as_by_the_consumer(other: bytes) -> None:
    with pytest.raises(ValueError, match=r"not JSON|codec"):
        read(other)
    with pytest.raises(ValueError, match="not JSON"):
        CDCRecord.from_json(other)


def arrays(depth: int) -> str:
    return "[" * depth + "]" * depth


def objects(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


@pytest.mark.parametrize(
    "nest",
    [
        pytest.param(arrays, id="arrays"),
        pytest.param(objects, id="objects"),
        pytest.param(lambda depth: f'{{"cdc_id":1,"emp_id":2,"action":{objects(depth)}}}', id="action"),
        pytest.param(lambda depth: value(city="*").replace('"*"', objects(depth)), id="city"),
    ],
)
def test_deep_nesting_is_refused_at_every_depth(nest: Callable[[int], str]) -> None:
    for depth in (*range(1, 1200), 100_000):
        with pytest.raises(ValueError, match=r"not JSON|JSON object|missing|not text|not one of"):
            CDCRecord.from_json(nest(depth))
