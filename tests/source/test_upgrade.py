"""A set-up on tables in use, and the upgrade of a log with only the specified columns: no row is missed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from random import Random

from harness.capturing import COLUMNS, LOG, SPECIFIED, newest_in_log, set_up
from harness.database import query
from harness.pipeline import Pipeline
from harness.waiting import wait_until

from psycopg2.extensions import connection as Connection


@contextmanager
def writing(pipeline: Pipeline) -> Iterator[Callable[[], None]]:
    """Four sessions that write as long as the block runs; one that fails fails the test. Yields a function that waits
    until each has committed a few more transactions."""
    stopped, commits = False, [0] * 4

    def write(number: int) -> None:
        at, connection = Random(number), pipeline.source()
        while not stopped:
            query(connection, "BEGIN")
            for emp_id in sorted(at.sample(range(1, 301), at.randint(1, 3))):  # in one order: no deadlocks
                if at.random() < 0.2:
                    statement = "DELETE FROM employees WHERE emp_id = %s"
                else:
                    statement = (
                        "INSERT INTO employees (emp_id, salary) VALUES (%s, 1) "
                        "ON CONFLICT (emp_id) DO UPDATE SET salary = coalesce(employees.salary, 0) + 1"
                    )
                query(connection, statement, (emp_id,))
            query(connection, "COMMIT" if at.random() < 0.9 else "ROLLBACK")
            commits[number] += 1

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write, number) for number in range(4)]

        def some_more() -> None:
            before = list(commits)
            wait_until(
                lambda: (
                    any(writer.done() for writer in writers)
                    or all(now >= then + 20 for now, then in zip(commits, before, strict=True))
                )
            )

        try:
            yield some_more
        finally:
            stopped = True
    for writer in writers:
        writer.result()


def test_a_set_up_on_a_table_in_use_misses_no_row(bare_pipeline: Pipeline) -> None:
    pipeline = bare_pipeline
    source = pipeline.source()
    query(source, f"CREATE TABLE employees (emp_id SERIAL PRIMARY KEY, {COLUMNS})")
    query(source, "INSERT INTO employees (salary) SELECT 0 FROM generate_series(1, 300)")
    with writing(pipeline) as some_more:
        some_more()
        set_up(pipeline)
        some_more()
        set_up(pipeline)
        some_more()
    assert newest_in_log(source) == query(source, "SELECT emp_id, salary FROM employees ORDER BY emp_id")


def test_an_upgrade_of_a_log_in_use_fails_no_writer_and_misses_no_row(bare_pipeline: Pipeline) -> None:
    pipeline = bare_pipeline
    source = pipeline.source()
    query(source, SPECIFIED)
    with writing(pipeline) as some_more:
        some_more()
        set_up(pipeline)
        some_more()
    assert newest_in_log(source) == query(source, "SELECT emp_id, salary FROM employees ORDER BY emp_id")


def test_a_log_with_only_the_specified_columns_is_upgraded_and_reaches_the_destination(bare_pipeline: Pipeline) -> None:
    pipeline = bare_pipeline
    source = pipeline.source()
    query(source, "CREATE TABLE employees (emp_id SERIAL PRIMARY KEY, " + COLUMNS + ")")
    query(source, "INSERT INTO employees (emp_id, city) VALUES (100, 'never logged')")
    query(source, SPECIFIED.split(";", 1)[1])
    query(source, "INSERT INTO employees (city) VALUES ('Rome'), ('Paris'), ('Oslo')")
    query(source, "UPDATE employees SET salary = 1 WHERE emp_id = 1")
    query(source, "DELETE FROM employees WHERE emp_id = 2")
    pipeline.set_up()
    assert query(
        source,
        "SELECT attname, format_type(atttypid, NULL) FROM pg_attribute "
        "WHERE attrelid = 'emp_cdc'::regclass AND attnum > 0 AND attname IN ('cdc_id', 'txid', 'changed_at')",
    ) == [("cdc_id", "bigint"), ("txid", "xid8"), ("changed_at", "timestamp with time zone")]
    assert query(source, "SELECT data_type::text FROM pg_sequences WHERE sequencename LIKE 'emp_cdc%'") == [("bigint",)]
    assert query(source, LOG) == [
        (1, "Rome", None, "INSERT"),
        (2, "Paris", None, "INSERT"),
        (3, "Oslo", None, "INSERT"),
        (1, "Rome", 1, "UPDATE"),
        (2, "Paris", None, "DELETE"),
        (1, "Rome", 1, "INSERT"),  # the rows that were there
        (3, "Oslo", None, "INSERT"),
        (100, "never logged", None, "INSERT"),
    ]
    query(source, "UPDATE employees SET emp_id = 4 WHERE emp_id = 3")
    pipeline.drain()
    assert pipeline.equal()


def test_a_trigger_that_was_dropped_or_disabled_is_mended_and_what_it_missed_is_logged(
    bare_pipeline: Pipeline, source: Connection
) -> None:
    damages = (
        "DROP TRIGGER employee_cdc_trigger ON employees",
        "DROP TRIGGER employee_cdc_truncate_trigger ON employees",
        "ALTER TABLE employees DISABLE TRIGGER employee_cdc_trigger",
        "ALTER TABLE employees DISABLE TRIGGER ALL",
    )
    for number, damage in enumerate(damages, start=1):
        query(source, damage)
        query(source, "INSERT INTO employees (city) VALUES ('missed')")
        set_up(bare_pipeline)
        assert query(source, "SELECT count(DISTINCT emp_id) FROM emp_cdc") == [(number,)], damage
        logged = query(source, LOG)
        query(source, "UPDATE employees SET salary = %s WHERE emp_id = %s", (number, number))
        assert query(source, LOG) == [*logged, (number, "missed", number, "UPDATE")]
