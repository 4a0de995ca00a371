"""A large transaction that is open: the producer at rest skips its rows, and publishes them as late rows."""

from __future__ import annotations

import time
from collections.abc import Callable

from cdc import emp_cdc
from harness.database import query
from harness.log_reader import INSERT, Reader, leave_out
from harness.pipeline import Pipeline
from harness.producing import published

import pytest
from psycopg2.extensions import connection as Connection

ROWS = 100_000


def begin_bulk(session: Connection, rows: int) -> None:
    query(session, f"BEGIN; INSERT INTO employees (city) SELECT 'bulk' FROM generate_series(1, {rows})")


def test_its_rows_are_skipped_at_rest_and_published_once_in_their_order(
    read: Callable[[], Reader], sessions: list[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, *_ = sessions

    def offsets() -> tuple[int, list[int]]:
        begin_bulk(a, 2_000)
        reader = read()
        assert not reader.poll(500)
        ((skipped,),) = query(b, "SELECT last_offset FROM cdc_position")
        query(b, INSERT)
        assert reader.poll(500)
        query(a, "UPDATE employees SET city = 'late' WHERE emp_id = 1; COMMIT")
        query(b, "UPDATE employees SET city = 'newest' WHERE emp_id = 1")
        reader.drain(500)
        query(b, "DELETE FROM employees; ALTER SEQUENCE employees_emp_id_seq RESTART")
        query(b, "TRUNCATE emp_cdc RESTART IDENTITY")
        query(b, "UPDATE cdc_position SET last_offset = 0, snapshot = pg_current_snapshot()")
        return skipped, reader.ids()

    assert offsets() == (2_000, [2_001, *range(1, 2_001), 2_002, 2_003])
    with monkeypatch.context() as without:
        leave_out(without, emp_cdc.RUNNING_THEN)
        assert offsets() == (2_000, [2_001, 2_002, 2_003]), "the rows that were skipped are no late rows"


@pytest.mark.timing
def test_an_empty_poll_does_not_wade_through_its_rows(
    read: Callable[[], Reader], sessions: list[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    query(sessions[0], f"BEGIN; INSERT INTO emp_cdc (action) SELECT 'DELETE' FROM generate_series(1, {ROWS})")

    def seconds() -> float:
        reader, took = read(), []
        for _ in range(10):
            began = time.perf_counter()
            assert not reader.poll()
            took.append(time.perf_counter() - began)
        return min(took)

    with monkeypatch.context() as without:
        without.setattr(emp_cdc, "MANY_DRAWN", 2 * ROWS)
        wading = seconds()
    skipping = seconds()
    print(f"an empty poll beside {ROWS:,} open rows: {wading * 1000:.1f} ms, if it skips them {skipping * 1000:.2f} ms")
    assert skipping < wading / 5


def test_a_position_beyond_the_logs_head_is_no_other_history(
    pipeline: Pipeline, read: Callable[[], Reader], sessions: list[Connection]
) -> None:
    a, b, late, *_ = sessions
    query(late, f"BEGIN; {INSERT}")
    begin_bulk(a, 2_000)
    reader = read()
    assert not reader.poll()
    query(late, "COMMIT")
    assert reader.poll()
    query(a, "ROLLBACK")
    assert query(b, "SELECT last_offset, max(cdc_id) FROM cdc_position, emp_cdc GROUP BY 1") == [(2_001, 1)]
    query(b, INSERT)
    first = pipeline.run("producer.py", "--once").stdout
    query(b, f"TRUNCATE emp_cdc RESTART IDENTITY; {INSERT}")
    second = pipeline.run("producer.py", "--once").stdout
    assert ["BACK IN TIME" in output for output in (first, second)] == [False, True]
    assert [record.cdc_id for record in published(pipeline)] == [1, 2_002, 2_003]
