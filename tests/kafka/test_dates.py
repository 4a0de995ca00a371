"""Dates: a record takes those that PostgreSQL writes, and no others."""

from __future__ import annotations

import random

from employee import Employee
from harness.database import query
from harness.records import NEWEST, OLDEST, examples

import psycopg2
from hypothesis import example, given
from hypothesis import strategies as st
from psycopg2.extensions import connection as Connection


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
