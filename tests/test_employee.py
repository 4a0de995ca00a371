"""The two records: what they take, what they refuse, and that PostgreSQL is of the same opinion."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, astuple, replace
from typing import Any, get_args, get_type_hints

import psycopg2
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg2.extensions import connection as Connection

import apply as applying
import emp_cdc
from employee import ACTIONS, CDC_COLUMNS, EMPLOYEE_COLUMNS, CDCRecord, Change, Employee, Record, named, read, to_json
from harness.database import query
from harness.pipeline import Pipeline, new_pipeline

FULL: dict[str, Any] = {
    "cdc_id": 17,
    "emp_id": 3,
    "first_name": "Ada",
    "last_name": "Lovelace",
    "dob": "1815-12-10",
    "city": "London",
    "salary": 120000,
    "action": "UPDATE",
}
OLDEST, NEWEST = "4714-11-24 BC", "5874897-12-31"


def examples(count: int) -> settings:
    return settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def databases(stack: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """A source and a destination that are set up; the topics are not needed."""
    with new_pipeline(tmp_path_factory.mktemp("employee")) as pipeline:
        result = pipeline.run("db_setup.py")
        assert result.returncode == 0, result.stdout + result.stderr
        yield pipeline


@pytest.fixture(scope="module")
def server(databases: Pipeline) -> Connection:
    return databases.destination()


def value(**columns: Any) -> str:
    """A message's value: FULL with other columns."""
    return json.dumps({**FULL, **columns})


# JSON in and out


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
    assert named(value()) == ("UPDATE employee 3", 17)
    assert named(b"nonsense") == ("a message that is no change", 0)
    assert named(None) == ("a message that is no change", 0)


def test_the_columns_are_those_of_the_specified_tables() -> None:
    assert EMPLOYEE_COLUMNS == ("emp_id", "first_name", "last_name", "dob", "city", "salary")
    assert " ".join(CDC_COLUMNS) == "cdc_id emp_id first_name last_name dob city salary action"


# What is refused

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


# Dates, against the real server


def written(server: Connection, text: str) -> str | None:
    """The date as the server writes it into JSON, None if it refuses it."""
    try:
        ((date,),) = query(server, "SELECT to_json(%s::date) #>> '{}'", (text,))
    except (psycopg2.DataError, ValueError):  # ValueError: psycopg2 takes no NUL
        return None
    return str(date)


def taken(dob: str) -> bool:
    try:
        Employee(1, dob=dob)
    except ValueError:
        return False
    return True


years = st.one_of(
    st.integers(0, 10_000),
    st.integers(0, 5_900_000),
    st.sampled_from([0, 1, 4, 99, 100, 400, 1900, 2000, 4713, 4714, 4715, 9999, 5874897, 5874898]),
)
dates = st.builds(
    "{:0{}d}-{:02d}-{:02d}{}".format,
    years,
    st.sampled_from([1, 2, 4, 4, 4, 4]),
    st.one_of(st.just(2), st.integers(0, 13)),
    st.one_of(st.integers(28, 31), st.integers(0, 32)),
    st.sampled_from(["", "", "", " BC", " BC", "BC", " bc", " AD", " ", "\n", "Z"]),
)


@examples(400)
@given(text=dates)
@example(text="2000-02-29").via("a leap year")
@example(text="1900-02-29").via("none")
@example(text="0004-02-29").via("the first one")
@example(text="0100-02-29").via("none, proleptic")
@example(text="0001-02-29 BC").via("the year 0, a leap year")
@example(text="0004-02-29 BC").via("none")
@example(text="0005-02-29 BC").via("a leap year")
@example(text="0000-01-01").via("no such year")
@example(text=OLDEST)
@example(text="4714-11-23 BC")
@example(text=NEWEST)
@example(text="5874898-01-01")
@example(text="infinity")
@example(text="-infinity")
@example(text="+infinity")
@example(text="Infinity")
@example(text="today")
@example(text="epoch")
@example(text="20000101")
@example(text="01/02/2000")
@example(text="1-2-3")
@example(text="")
def test_a_date_is_taken_if_and_only_if_the_server_writes_it_back_unchanged(server: Connection, text: str) -> None:
    assert taken(text) == (written(server, text) == text)


def test_a_year_with_zeros_in_front_is_not_as_the_server_writes_it(server: Connection) -> None:
    for text in ("00001-02-28", "002000-02-28", "0000044-03-15 BC"):
        assert taken(text) == (written(server, text) == text)


def test_every_date_that_the_server_writes_is_taken(server: Connection) -> None:
    """20,000 days across the whole range, and the ends of February of each kind of year."""
    days = query(
        server,
        """
        SELECT to_json(day) #>> '{}' FROM (
            SELECT '4714-11-24 BC'::date + n * 107297 + %s FROM generate_series(0, 19998) AS n
            UNION ALL SELECT make_date(year, 3, 1) - back FROM generate_series(-4712, 5000) AS year,
                                                               generate_series(0, 2) AS back WHERE year <> 0
        ) AS days (day)
        """,
        (random.randrange(107297),),
    )
    assert len(days) > 40_000
    assert [day for (day,) in days if not taken(day)] == []


# Change, the fast path, against the real server

ARRAYS = """
%(cdc_id)s::bigint[], %(emp_id)s::int[], %(first_name)s::text[], %(last_name)s::text[], %(dob)s::date[],
%(city)s::text[], %(salary)s::int[], %(action)s::text[]
"""
READ = f"""
SELECT row_to_json(record)::text
FROM unnest({ARRAYS}) WITH ORDINALITY AS record ({", ".join(CDC_COLUMNS)}, ordinality) ORDER BY ordinality
"""
BEFORE, BEHIND = CDCRecord(1, 1, city="before", action="INSERT"), CDCRecord(2, 2, city="behind", action="DELETE")


def read_by_the_server(server: Connection, record: Record) -> CDCRecord:
    """The record as PostgreSQL reads it in the middle of two good ones."""
    three = [read(BEFORE.to_json().encode()), record, read(BEHIND.to_json().encode())]
    arrays = applying.arrays(three)
    before, found, behind = (CDCRecord.from_json(row) for (row,) in query(server, READ, arrays))  # three records
    assert (before, behind) == (BEFORE, BEHIND)
    return found


def read_by_us(record: bytes) -> CDCRecord | None:
    try:
        return CDCRecord.from_json(record)
    except ValueError:
        return None


PLAIN = {
    "everything NULL": (1, None, None, None, None, None),
    "everything given": (3, "Ada", "Lovelace", "1815-12-10", "London", 120000),
    "empty texts": (4, "", "", None, "", 0),
    "100 letters": (5, "x" * 100, "y" * 100, "0001-01-01", "z" * 100, 1),
    "letters of two bytes": (6, "ß" * 50, "é", "9999-12-31", "Zürich", 1),
    "the limits of int4": (2**31 - 1, "a", "b", "2000-02-29", "c", -(2**31)),
    "the other limits of int4": (-(2**31), "a", "b", "2000-02-29", "c", 2**31 - 1),
    "brackets and commas": (7, "{},{}", "[1]", None, "a:b, c;d'e%f", 1),
}


@pytest.mark.parametrize("what", PLAIN)
def test_a_row_of_the_log_takes_the_fast_path_and_comes_out_as_postgresql_writes_it(
    databases: Pipeline, what: str
) -> None:
    source = databases.source()
    ((emp_id,),) = query(
        source, f"INSERT INTO employees ({', '.join(EMPLOYEE_COLUMNS)}) VALUES %s RETURNING emp_id", (PLAIN[what],)
    )
    query(source, "UPDATE employees SET city = city WHERE emp_id = %s", (emp_id,))
    query(source, "DELETE FROM employees WHERE emp_id = %s", (emp_id,))
    log = f"""
        SELECT row_to_json(change)::text, change.*
        FROM (SELECT {emp_cdc.LOGGED} FROM emp_cdc WHERE emp_id = %s ORDER BY cdc_id) change
    """
    rows = query(source, log, (emp_id,))
    assert [Change(*row[1:]).action for row in rows] == ["INSERT", "UPDATE", "DELETE"]
    for text, *columns in rows:
        value = to_json(Change(*columns))
        assert value == text.encode()
        found = read(value)
        assert isinstance(found, Change)
        assert read_by_the_server(source, found).to_json() == text
        assert CDCRecord.from_json(value).to_json() == text


def test_the_fast_path_has_the_columns_of_the_record() -> None:
    assert Change.__struct_fields__ == CDC_COLUMNS
    assert set(get_args(get_type_hints(Change)["action"])) == set(ACTIONS)


def text_of(characters: str, longest: int) -> st.SearchStrategy[str]:
    return st.text(st.sampled_from(characters), max_size=longest)


records = st.builds(
    CDCRecord,
    st.integers(1, 2**63 - 1),
    st.integers(-(2**31), 2**31 - 1),
    st.none() | text_of('aß漢😀 ,:{}[]"\\\n', 100),
    st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30),
    st.none() | st.sampled_from(["1815-12-10", "2000-02-29", "0044-03-15 BC", "infinity", "-infinity", OLDEST, NEWEST]),
    st.none() | text_of("ab", 5),
    st.none() | st.integers(-(2**31), 2**31 - 1),
    st.sampled_from(["INSERT", "UPDATE", "DELETE"]),
)
visible = rb"""{ } {},{} },{ [ ] , : " \ \u0000 \ud800 null true 7 - + . e9 99999999999 NaN infinity BC %s /* -- delete
"cdc_id":2, ,"action":"DELETE" ,{} {}, ,{"cdc_id":2,"emp_id":2} """
invisible = [b"", b" ", b" BC", b"\0", b"\n", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf"]
scraps = st.sampled_from([*visible.split(), *invisible])


HOSTILE = re.split(
    r"  +|\n *",
    r"""null  true  {}  []  ""  " "  "7"  " 7 "  "7.0"  7.0  7e0  7E2  -7  +7  07  -0  0x7  1_000  ٧  "٧"  NaN  Infinity
    2147483647  2147483648  -2147483648  -2147483649  9223372036854775807  9223372036854775808  0  7 7  7,8  "a"b  'a'
    "infinity"  "-infinity"  "+infinity"  "Infinity"  "today"  "now"  "epoch"  "tomorrow"  "allballs"  "NaN"  "null"
    "2001-02-30"  "2001-13-01"  "0000-01-01"  "2001-2-3"  "1-2-3"  "20010203"  "01/02/2003"  "2001.02.03"  "2001-034"
    "2001-02-03T04:05:06"  "2001-02-03 04:05"  "2001-02-03Z"  "2001-02-03 "  " 2001-02-03"  "February 3, 2001"
    "J2451944"  "99999-01-01"  "5874897-12-31"  "5874898-01-01"  "4714-11-24 BC"  "4714-11-23 BC"  "0044-03-15 BC"
    "0044-03-15 bc"  "0044-03-15BC"  "2001-02-03 AD"  "insert"  "INSERT "  " INSERT"  "MERGE"  "DELETE"  "\u0049NSERT"
    "\u0000"  "\ud800"  "\ud83d\ude00"  "\u0041"  "\q"  "\"  "a","city":"b"  "a","emp_id":4  7,"cdc_id":8
    7},{"cdc_id":8,"emp_id":9  "INSERT"},{"cdc_id":8,"emp_id":9  "DELETE"},{"cdc_id":8,"emp_id":9,"action":"DELETE"
    null,"x":[1,{"y":null}]""",
)


@pytest.mark.parametrize("name", CDC_COLUMNS)
def test_a_hostile_value_gets_through_as_what_it_is_or_not_at_all(server: Connection, name: str) -> None:
    whole = CDCRecord(**FULL).to_json()
    ours = json.dumps(FULL[name])
    for raw in [*HOSTILE, f'"{"x" * 101}"', f'"{"x" * 100} "', '"a\nb"', '"a\0b"']:
        handed_and_read_are_equal(server, whole.replace(f'"{name}":{ours}', f'"{name}":{raw}').encode())


@examples(400)
@given(record=records)
def test_the_fast_path_writes_what_the_record_writes(record: CDCRecord) -> None:
    value = to_json(Change(*astuple(record)))
    assert CDCRecord.from_json(value) == record
    found = read(value)
    assert {column: getattr(found, column) for column in CDC_COLUMNS if column != "dob"} == {
        column: getattr(record, column) for column in CDC_COLUMNS if column != "dob"
    }
    assert record.dob == (None if found.dob is None else str(found.dob))


@examples(600)
@given(
    record=records,
    edits=st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0, 0, 1, 1, 2, 8]), scraps), max_size=3),
)
def test_a_mutated_message_never_gets_through_as_something_else(
    server: Connection, record: CDCRecord, edits: list[tuple[float, int, bytes]]
) -> None:
    mutated = record.to_json().encode()
    for where, removed, scrap in edits:
        at = int(where * len(mutated))
        mutated = mutated[:at] + scrap + mutated[at + removed :]
    handed_and_read_are_equal(server, mutated)


def handed_and_read_are_equal(server: Connection, value: bytes) -> None:
    """Assert that what the consumer hands to PostgreSQL for a message is what CDCRecord reads in it, or that both
    refuse it."""
    try:
        handed = read(value)
    except ValueError:
        assert read_by_us(value) is None
    else:
        assert read_by_the_server(server, handed) == read_by_us(value), value
