"""db_setup.py: safe to run at any time, and what it refuses."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from harness.capturing import COLUMNS, SOURCE, SPECIFIED, db_setup, set_up
from harness.database import WAITING, query
from harness.pipeline import Pipeline
from harness.waiting import wait_until

import pytest

# All that a set-up makes, with the objects' identities: a re-created table would have another one.
CATALOGUE = """
SELECT 'column', attrelid::regclass::text, attname::text, format_type(atttypid, atttypmod), attnotnull::text,
       attrelid::bigint, pg_relation_filenode(attrelid)::bigint
FROM pg_attribute
WHERE attnum > 0 AND attrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace)
UNION ALL
SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid), convalidated::text, oid, 0
FROM pg_constraint WHERE connamespace = 'public'::regnamespace
UNION ALL
SELECT 'trigger', tgrelid::regclass::text, tgname, pg_get_triggerdef(oid), tgenabled::text, oid, 0 FROM pg_trigger
UNION ALL
SELECT 'function', '', proname, pg_get_functiondef(oid), proacl::text, oid, 0
FROM pg_proc WHERE pronamespace = 'public'::regnamespace
UNION ALL
SELECT 'sequence', '', sequencename, data_type::text,
       CASE sequencename WHEN 'emp_cdc_cdc_id_seq' THEN '' ELSE last_value::text END,  -- the trial takes an offset
       cache_size, 0 FROM pg_sequences
UNION ALL
SELECT 'comment', '', '', description, '', objoid, objsubid FROM pg_description
WHERE objoid IN (SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace)
ORDER BY 1, 2, 3, 4, 5, 6
"""


def test_a_second_set_up_changes_nothing(pipeline: Pipeline) -> None:
    source, destination = pipeline.source(), pipeline.destination()
    query(source, "INSERT INTO employees (city) VALUES ('Rome'); UPDATE employees SET city = 'Oslo'")
    query(source, "UPDATE cdc_position SET last_offset = 1, snapshot = pg_current_snapshot()")
    query(destination, "INSERT INTO employees (city) VALUES ('Rome'); INSERT INTO cdc_applied VALUES (1, 1)")

    def everything() -> list[Any]:
        tables = ("employees", "emp_cdc", "cdc_position")
        return [
            query(source, CATALOGUE),
            *(query(source, f"SELECT xmin::text, * FROM {table} ORDER BY 2") for table in tables),
            query(destination, CATALOGUE),
            *(query(destination, f"SELECT xmin::text, * FROM {table}") for table in ("employees", "cdc_applied")),
        ]

    before = everything()
    assert len(before[0]) > 30
    result = db_setup(pipeline)
    assert (result.returncode, result.stdout) == (0, "source: ready\ndestination: ready\n")
    assert everything() == before


def test_a_set_up_waits_for_another_one(bare_pipeline: Pipeline) -> None:
    first, watcher = bare_pipeline.source(), bare_pipeline.source()
    query(first, SOURCE.rpartition("COMMIT;")[0])
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(db_setup, bare_pipeline)
        try:
            wait_until(lambda: query(watcher, WAITING) == [(1,)])
        finally:
            query(first, "COMMIT")
        assert second.result().returncode == 0, second.result().stderr


def test_one_database_for_both_sides_is_refused(bare_pipeline: Pipeline) -> None:
    same = bare_pipeline.source_url.replace("localhost", "127.0.0.1")
    result = db_setup(bare_pipeline, DESTINATION_DATABASE_URL=same)
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "source and destination are the same database; a change would go round for ever"
    ]
    assert query(bare_pipeline.source(), "SELECT 1 FROM pg_class WHERE relname = 'employees'") == []


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        pytest.param("CREATE TABLE employees (emp_id INT PRIMARY KEY, name TEXT)", "no column", id="other columns"),
        pytest.param(f"CREATE TABLE employees (emp_id INT, {COLUMNS})", "PRIMARY KEY (emp_id)", id="no key"),
        pytest.param(
            f"CREATE TABLE employees (emp_id INT, {COLUMNS}, PRIMARY KEY (emp_id, city))",
            "PRIMARY KEY (emp_id)",
            id="a wider key",
        ),
        pytest.param(
            f"CREATE TABLE employees (emp_id INT, {COLUMNS}, PRIMARY KEY (emp_id) DEFERRABLE)",
            "not deferrable",
            id="a deferrable key",
        ),
    ],
)
@pytest.mark.parametrize("side", ["source", "destination"])
def test_a_table_employees_that_cannot_be_captured_is_refused_in_one_line(
    bare_pipeline: Pipeline, side: str, table: str, complaint: str
) -> None:
    connection = bare_pipeline.source() if side == "source" else bare_pipeline.destination()
    query(connection, table)
    result = db_setup(bare_pipeline)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(f"{side}: ")
    assert complaint in result.stderr
    assert query(connection, "SELECT 1 FROM pg_class WHERE relname IN ('emp_cdc', 'cdc_applied')") == []


def test_a_table_employees_with_values_that_the_log_cannot_hold_is_refused(bare_pipeline: Pipeline) -> None:
    source = bare_pipeline.source()
    query(source, f"CREATE TABLE employees (emp_id BIGINT PRIMARY KEY, {COLUMNS.replace('100', '200')})")
    assert db_setup(bare_pipeline).returncode == 1
    query(source, "INSERT INTO employees (emp_id, city) VALUES (2::bigint ^ 40, repeat('x', 200))")


@pytest.mark.timing
def test_a_long_transaction_makes_a_set_up_give_up_in_one_line_and_leave_nothing(bare_pipeline: Pipeline) -> None:
    writer, other = bare_pipeline.source(), bare_pipeline.source()
    query(writer, SPECIFIED)
    query(writer, "BEGIN; INSERT INTO employees (city) VALUES ('Rome')")
    started = time.monotonic()
    result = db_setup(bare_pipeline)
    assert time.monotonic() - started < 12  # other writers wait for it
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        "source: a long transaction holds the tables; run db_setup.py again when it has ended"
    ]
    assert query(other, "SELECT 1 FROM pg_class WHERE relname = 'cdc_position'") == []
    query(writer, "COMMIT")
    set_up(bare_pipeline)
