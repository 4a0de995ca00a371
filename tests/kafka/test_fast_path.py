"""The fast path: what msgspec reads and writes is what the record and PostgreSQL read and write."""

from __future__ import annotations

import json
import re
from dataclasses import astuple
from typing import get_args, get_type_hints

from cdc import apply as applying
from cdc import emp_cdc
from cdc.message import Change, Record, read, read_all, to_json
from employee import ACTIONS, CDC_COLUMNS, EMPLOYEE_COLUMNS, CDCRecord
from harness.database import query
from harness.pipeline import Pipeline
from harness.records import FULL, NEWEST, OLDEST, examples

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg2.extensions import connection as Connection

ARRAYS = """
%(cdc_id)s::bigint[], %(emp_id)s::int[], %(first_name)s::text[], %(last_name)s::text[], %(dob)s::date[],
%(city)s::text[], %(salary)s::int[], %(action)s::text[]
"""
READ = f"""
SELECT row_to_json(record)::text
FROM unnest({ARRAYS}) WITH ORDINALITY AS record ({", ".join(CDC_COLUMNS)}, ordinality) ORDER BY ordinality
"""
BEFORE, AFTER = CDCRecord(1, 1, city="before", action="INSERT"), CDCRecord(2, 2, city="after", action="DELETE")


def read_by_the_server(server: Connection, record: Record) -> CDCRecord:
    """The record as PostgreSQL reads it in the middle of two good ones."""
    three = [read(BEFORE.to_json().encode()), record, read(AFTER.to_json().encode())]
    arrays = applying.to_arrays(three)
    before, found, after = (CDCRecord.from_json(row) for (row,) in query(server, READ, arrays))  # three records
    assert (before, after) == (BEFORE, AFTER)
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
        FROM (SELECT {emp_cdc.CHANGE} FROM emp_cdc WHERE emp_id = %s ORDER BY cdc_id) change
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


ONE, TWO = (CDCRecord(number, number, city="Zürich", action="UPDATE").to_json().encode() for number in (1, 2))
NOT_PLAIN: dict[str, list[bytes | None]] = {
    "no value": [None],
    "no text": [ONE.replace("ü".encode(), b"\xff")],
    "no JSON": [b"7"],
    "an escape": [ONE.replace(b"Z", b"\\u005a")],
    "a date that Python does not know": [ONE.replace(b'"dob":null', b'"dob":"infinity"')],
    "a new column": [ONE.replace(b"{", b'{"team":1,')],
    # together as many records as messages, and none of the messages is one
    "two in one message, none in the next": [ONE + b" " + TWO, b""],
    "two lines in one message, none in the next": [ONE + b"\n" + TWO, b" "],
    "two in one message, one in two": [ONE + b"," + TWO, ONE[:12], ONE[12:]],
}


def test_plain_messages_are_read_together_as_each_is_alone() -> None:
    assert read_all([ONE, TWO]) == [read(ONE), read(TWO)]


@pytest.mark.parametrize("what", NOT_PLAIN)
def test_messages_of_which_one_is_not_plain_are_not_read_together(what: str) -> None:
    some = NOT_PLAIN[what]
    for values in some, [ONE, *some], [*some, TWO]:
        assert read_all(values) is None


def handed_and_read_are_equal(server: Connection, value: bytes) -> None:
    """Assert that what the consumer hands to PostgreSQL for a message is what CDCRecord reads in it, or that both
    refuse it."""
    try:
        handed = read(value)
    except ValueError:
        assert read_by_us(value) is None
    else:
        assert read_by_the_server(server, handed) == read_by_us(value), value
