"""The gate: whatever arrives twice, late or in the wrong order, the newest state of an employee stays."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise

from cdc import apply as applying
from cdc import bulk
from cdc.message import read
from harness.consuming import change
from harness.database import ROWS, WAITING, query
from harness.destination import apply, ids
from harness.pipeline import Pipeline
from harness.waiting import wait_until

import pytest
from psycopg2.extensions import connection as Connection


@pytest.fixture(params=[1, 2_000], ids=["by COPY", "by the statement"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "LARGE", request.param)


@pytest.mark.usefixtures("way")
def test_a_duplicate_is_applied_once(destination: Connection) -> None:
    batch = [change(1, 1, city="Rome"), change(2, 1, "UPDATE", city="Oslo"), change(3, 2), change(4, 2, "DELETE")]
    assert apply(destination, *batch, *batch) == 2
    assert apply(destination, *batch) == 0
    for value in batch:
        assert apply(destination, value) == 0
    assert query(destination, ROWS) == [(1, None, None, None, "Oslo", None)]


@pytest.mark.usefixtures("way")
def test_in_reversed_order_the_newest_state_stays(destination: Connection) -> None:
    history = [change(1, 1, city="a"), change(2, 1, "DELETE"), change(3, 1, city="b"), change(4, 1, "UPDATE", city="c")]
    assert [apply(destination, value) for value in reversed(history)] == [1, 0, 0, 0]
    assert query(destination, ROWS) == [(1, None, None, None, "c", None)]


@pytest.mark.usefixtures("way")
def test_an_old_insert_does_not_bring_a_deleted_employee_back(destination: Connection) -> None:
    apply(destination, change(1, 1))
    apply(destination, change(3, 1, "DELETE"))
    assert apply(destination, change(2, 1, "UPDATE", city="old")) == 0
    assert ids(destination) == []
    assert apply(destination, change(4, 1, city="new")) == 1
    assert ids(destination) == [1]


@pytest.mark.usefixtures("way")
def test_a_delete_of_an_employee_never_seen_still_stops_its_older_insert(destination: Connection) -> None:
    assert apply(destination, change(2, 1, "DELETE")) == 1
    assert apply(destination, change(1, 1)) == 0
    assert ids(destination) == []


@pytest.mark.usefixtures("way")
def test_a_refused_batch_leaves_no_trace_and_the_connection_usable(destination: Connection) -> None:
    query(destination, "ALTER TABLE employees ADD CONSTRAINT positive CHECK (emp_id > 0)")
    try:
        for action in ("INSERT", "DELETE"):
            with pytest.raises(applying.Refused):
                apply(destination, change(8, 1, action), change(9, -2))
            assert query(destination, "SELECT count(*) FROM cdc_applied") == [(0,)]
    finally:
        query(destination, "ALTER TABLE employees DROP CONSTRAINT positive")
    assert apply(destination, change(1, 1), change(2, 2, "DELETE")) == 2


@pytest.mark.usefixtures("way")
def test_rows_that_were_there_before_the_pipeline_are_taken_over(destination: Connection) -> None:
    query(destination, "INSERT INTO employees (emp_id, city) VALUES (1, 'old'), (2, 'old'), (3, 'old')")
    assert apply(destination, change(1, 1, city="new"), change(2, 2, "DELETE"), change(3, 4, city="new")) == 3
    assert [(row[0], row[4]) for row in query(destination, ROWS)] == [(1, "new"), (3, "old"), (4, "new")]


@pytest.mark.usefixtures("way")
def test_dates_do_not_depend_on_the_way_the_destination_writes_them(destination: Connection) -> None:
    dates = ["2001-02-03", "0044-03-15 BC", "0001-02-03", "12345-06-07", "infinity"]
    for style in ("SQL, DMY", "Postgres, MDY", "German", "ISO, YMD"):
        query(destination, f"TRUNCATE employees, cdc_applied; SET datestyle = '{style}'")
        apply(destination, *(change(n, n, dob=date) for n, date in enumerate(dates, 1)))
        query(destination, "SET datestyle = 'ISO'")
        assert query(destination, "SELECT dob::text FROM employees ORDER BY emp_id") == [(date,) for date in dates]


def scans(destination: Connection) -> list[tuple[str, bool]]:
    """How the plan of the prepared statement reads tables, and whether each time by the key."""
    columns = applying.to_arrays([read(change(1, 1).encode())])
    explain = f"BEGIN; {applying.PASS}; EXPLAIN (COSTS off) {applying.APPLY}"
    plan = [line.strip(" ->") for (line,) in query(destination, explain, columns)]
    query(destination, "COMMIT")
    return [
        (line, below.startswith("Index Cond: (emp_id"))
        for line, below in pairwise(plan)
        if "Scan" in line and "cdc_" in line
    ]


@pytest.mark.parametrize("rows", [0, 20_000])
def test_the_gate_is_looked_up_by_key_whatever_the_statistics_said(shared: Pipeline, rows: int) -> None:
    """The plan is made once. Made while the gate was known to be empty, one that reads all of it for each batch, or for
    each record, looks as cheap as any: 300,000 changes then took 140 s instead of 3, until the next ANALYZE."""
    with closing(shared.destination()) as destination:
        query(destination, "TRUNCATE employees, cdc_applied")
        query(destination, "INSERT INTO cdc_applied SELECT generate_series(1, %(rows)s), 1", {"rows": rows})
        query(destination, "ANALYZE cdc_applied")
        apply(destination, change(1, 1))
        lookup = "Index Scan using cdc_applied_pkey on cdc_applied applied"
        assert scans(destination) == [(lookup, True), (f"{lookup}_1", True)]


DELETE_INSIDE = applying.SESSION.replace(
    "), upserted AS (",
    """), deleted AS (
    DELETE FROM employees WHERE emp_id IN (SELECT emp_id FROM newer WHERE action = 'DELETE')
), upserted AS (""",
)
assert DELETE_INSIDE != applying.SESSION


@pytest.mark.parametrize("delete", ["after the gate", "inside the first statement"])
def test_a_delete_that_waits_for_an_insert_deletes_it(
    shared: Pipeline, destination: Connection, monkeypatch: pytest.MonkeyPatch, delete: str
) -> None:
    """Inside the first statement it would look with a snapshot from before it waited: the row stays for good."""
    if delete == "inside the first statement":
        assert "deleted AS" in DELETE_INSIDE
        monkeypatch.setattr(applying, "SESSION", DELETE_INSIDE)
        monkeypatch.setattr(applying, "TRY_ALL", applying.TRY_ALL.replace(applying.DELETE, "NULL"))
    inserting, deleting = shared.destination(), shared.destination()
    apply(destination, change(1, 7))
    apply(destination, change(2, 7, "DELETE"))
    query(inserting, "BEGIN")
    apply(inserting, change(3, 7, city="Rome"))
    with ThreadPoolExecutor() as other:
        deletion = other.submit(apply, deleting, change(4, 7, "DELETE"))
        wait_until(lambda: query(destination, WAITING) == [(1,)], what="the DELETE waits for the gate")
        query(inserting, "COMMIT")
        assert deletion.result(20) == 1
    assert ids(destination) == ([] if delete == "after the gate" else [7])


def test_an_upsert_that_waits_for_an_insert_finds_its_row(shared: Pipeline, destination: Connection) -> None:
    inserting, updating = shared.destination(), shared.destination()
    query(inserting, "BEGIN")
    apply(inserting, change(1, 7, city="Rome"))
    with ThreadPoolExecutor() as other:
        update = other.submit(apply, updating, change(2, 7, "UPDATE", city="Oslo"))
        wait_until(lambda: query(destination, WAITING) == [(1,)], what="the UPDATE waits for the gate")
        query(inserting, "COMMIT")
        assert update.result(20) == 1
    assert query(destination, ROWS) == [(7, None, None, None, "Oslo", None)]
