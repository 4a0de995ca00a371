"""db_setup.py and what it sets up: safe to run at any time, and every change of employees is in the log, once."""

from __future__ import annotations

import io
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from random import Random
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection

from harness import ROOT
from harness.database import WAITING, query
from harness.pipeline import Pipeline
from harness.waiting import wait_until

# All that a set-up makes, with the objects' identities: a table made anew would have another one.
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
LOG = "SELECT emp_id, city, salary, action FROM emp_cdc ORDER BY cdc_id"
# A log as it was specified, and its trigger.
SPECIFIED = """
CREATE TABLE employees (
    emp_id SERIAL PRIMARY KEY, first_name VARCHAR(100), last_name VARCHAR(100), dob DATE, city VARCHAR(100), salary INT
);
CREATE TABLE emp_cdc (
    cdc_id SERIAL PRIMARY KEY, emp_id INT, first_name VARCHAR(100), last_name VARCHAR(100), dob DATE,
    city VARCHAR(100), salary INT, action VARCHAR(100)
);
CREATE FUNCTION employee_cdc_trigger_func() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        INSERT INTO emp_cdc (emp_id, first_name, last_name, dob, city, salary, action)
        VALUES (OLD.emp_id, OLD.first_name, OLD.last_name, OLD.dob, OLD.city, OLD.salary, TG_OP);
        RETURN OLD;
    END IF;
    INSERT INTO emp_cdc (emp_id, first_name, last_name, dob, city, salary, action)
    VALUES (NEW.emp_id, NEW.first_name, NEW.last_name, NEW.dob, NEW.city, NEW.salary, TG_OP);
    RETURN NEW;
END
$$;
CREATE TRIGGER employee_cdc_trigger AFTER INSERT OR UPDATE OR DELETE ON employees
    FOR EACH ROW EXECUTE FUNCTION employee_cdc_trigger_func();
"""


SOURCE = (ROOT / "sql" / "source.sql").read_text(encoding="utf-8")


@pytest.fixture
def source(bare_pipeline: Pipeline) -> Connection:
    """A session at a source that is set up, in this process."""
    connection = bare_pipeline.source()
    query(connection, SOURCE)
    return connection


def db_setup(pipeline: Pipeline, **environment: str) -> subprocess.CompletedProcess[str]:
    result: subprocess.CompletedProcess[str] = pipeline.run("db_setup.py", seconds=90, **environment)
    return result


def set_up(pipeline: Pipeline) -> None:
    result = db_setup(pipeline)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""


# Running it


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


COLUMNS = "first_name VARCHAR(100), last_name VARCHAR(100), dob DATE, city VARCHAR(100), salary INT"


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


def test_a_long_transaction_makes_a_set_up_give_up_in_one_line_and_leave_nothing(bare_pipeline: Pipeline) -> None:
    writer, other = bare_pipeline.source(), bare_pipeline.source()
    query(writer, SPECIFIED)
    query(writer, "BEGIN; INSERT INTO employees (city) VALUES ('Rome')")
    started = time.monotonic()
    result = db_setup(bare_pipeline)
    assert time.monotonic() - started < 12  # other writers wait behind it
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        "source: a long transaction holds the tables; run db_setup.py again when it has ended"
    ]
    assert query(other, "SELECT 1 FROM pg_class WHERE relname = 'cdc_position'") == []
    query(writer, "COMMIT")
    set_up(bare_pipeline)


# A table in use


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


def newest_in_log(source: Connection) -> list[tuple[Any, ...]]:
    """What the destination will hold: of each employee what its newest change left."""
    return query(
        source,
        """
        SELECT emp_id, salary FROM (SELECT DISTINCT ON (emp_id) * FROM emp_cdc ORDER BY emp_id, cdc_id DESC) AS newest
        WHERE action <> 'DELETE' ORDER BY emp_id
        """,
    )


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


# What the triggers capture


def test_an_update_of_the_key_is_a_delete_of_the_old_and_an_update_of_the_new(source: Connection) -> None:
    query(source, "INSERT INTO employees (emp_id, city) VALUES (1, 'Rome'), (2, 'Oslo')")
    query(source, "UPDATE employees SET emp_id = 7, city = 'Paris' WHERE emp_id = 1")
    query(source, "UPDATE employees SET emp_id = 1 WHERE emp_id = 2")
    assert query(source, LOG)[2:] == [
        (1, "Rome", None, "DELETE"),
        (7, "Paris", None, "UPDATE"),
        (2, "Oslo", None, "DELETE"),
        (1, "Oslo", None, "UPDATE"),
    ]


def test_truncate_is_a_delete_per_row_and_waits_for_writers(bare_pipeline: Pipeline, source: Connection) -> None:
    writer = bare_pipeline.source()
    query(source, "INSERT INTO employees (city) VALUES ('Rome'), ('Oslo')")
    query(writer, "BEGIN; INSERT INTO employees (city) VALUES ('Paris')")
    with ThreadPoolExecutor(1) as pool:
        truncated = pool.submit(query, source, "TRUNCATE employees RESTART IDENTITY")
        try:
            wait_until(lambda: query(writer, WAITING) == [(1,)])
        finally:
            query(writer, "COMMIT")
        truncated.result(10)
    assert [(emp_id, action) for emp_id, _, _, action in query(source, LOG)[3:]] == [
        (1, "DELETE"),
        (2, "DELETE"),
        (3, "DELETE"),
    ]
    assert newest_in_log(source) == []


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_truncate_by_a_snapshot_that_may_not_show_all_rows_is_refused(
    bare_pipeline: Pipeline, source: Connection, level: str
) -> None:
    query(source, f"BEGIN ISOLATION LEVEL {level}; SELECT 1 FROM employees; COMMIT; BEGIN ISOLATION LEVEL {level}")
    query(source, "SELECT 1 FROM emp_cdc")
    query(bare_pipeline.source(), "INSERT INTO employees (city) VALUES ('Rome')")
    with pytest.raises(psycopg2.errors.RaiseException, match="READ COMMITTED"):
        query(source, "TRUNCATE employees")
    query(source, "ROLLBACK")
    assert query(source, "SELECT count(*) FROM employees") == [(1,)]


def test_a_session_in_replica_mode_is_captured(source: Connection) -> None:
    query(source, "SET session_replication_role = replica")
    query(source, "INSERT INTO employees (city) VALUES ('Rome')")
    query(source, "TRUNCATE employees")
    query(source, "SET session_replication_role = origin")
    assert query(source, LOG) == [(1, "Rome", None, "INSERT"), (1, "Rome", None, "DELETE")]


def test_an_application_without_any_right_on_the_log_can_write(bare_pipeline: Pipeline, source: Connection) -> None:
    role = f"{bare_pipeline.name}_application"
    query(source, f"CREATE ROLE {role}")
    try:
        query(source, f"GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON employees TO {role}")
        query(source, f"GRANT USAGE ON SEQUENCE employees_emp_id_seq TO {role}; SET ROLE {role}")
        for statement in ("SELECT FROM emp_cdc", "DELETE FROM emp_cdc", "UPDATE cdc_position SET last_offset = 0"):
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                query(source, statement)
        query(source, "INSERT INTO employees (city) VALUES ('Rome'); UPDATE employees SET salary = 1")
        query(source, "DELETE FROM employees; INSERT INTO employees (emp_id) VALUES (2); TRUNCATE employees")
        query(source, "RESET ROLE")
        actions = [action for *_, action in query(source, LOG)]
        assert actions == ["INSERT", "UPDATE", "DELETE", "INSERT", "DELETE"]
    finally:
        query(source, f"RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}")


def test_nobodys_function_or_operator_runs_with_the_owners_rights(bare_pipeline: Pipeline, source: Connection) -> None:
    query(
        source,
        """
        CREATE SCHEMA mine;
        CREATE FUNCTION mine.trap(INT, INT) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RAISE ''trapped''; END';
        CREATE OPERATOR mine.<> (LEFTARG = INT, RIGHTARG = INT, FUNCTION = mine.trap);
        CREATE OPERATOR mine.= (LEFTARG = INT, RIGHTARG = INT, FUNCTION = mine.trap);
        CREATE FUNCTION mine.trap(TEXT, TEXT) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RAISE ''trapped''; END';
        CREATE OPERATOR mine.<> (LEFTARG = TEXT, RIGHTARG = TEXT, FUNCTION = mine.trap);
        CREATE OPERATOR mine.= (LEFTARG = TEXT, RIGHTARG = TEXT, FUNCTION = mine.trap);
        CREATE FUNCTION mine.pg_try_advisory_xact_lock_shared(INT, INT) RETURNS boolean LANGUAGE sql
            AS 'SELECT mine.trap($1, $2)';
        CREATE FUNCTION mine.current_setting(TEXT, BOOLEAN) RETURNS text LANGUAGE plpgsql
            AS 'BEGIN RAISE ''trapped''; END';
        CREATE FUNCTION mine.pg_notify(TEXT, TEXT) RETURNS void LANGUAGE plpgsql AS 'BEGIN RAISE ''trapped''; END'
        """,
    )
    query(bare_pipeline.source(), "SELECT pg_advisory_lock(6513763, 2)")  # as a producer that sleeps
    for function in ("employee_cdc_trigger_func", "employee_cdc_truncate_func"):
        assert query(source, f"SELECT prosecdef FROM pg_proc WHERE proname = '{function}'") == [(True,)]
    query(source, "SET search_path = mine, public, pg_catalog; LISTEN emp_cdc")
    query(
        source,
        "INSERT INTO employees (emp_id) VALUES (1); UPDATE employees SET emp_id = 2; UPDATE employees SET salary = 1",
    )
    query(source, "TRUNCATE employees; INSERT INTO employees (emp_id) VALUES (3); DELETE FROM employees")
    query(source, "RESET search_path")
    assert source.notifies
    assert [(emp_id, action) for emp_id, _, _, action in query(source, LOG)] == [
        (1, "INSERT"),
        (1, "DELETE"),
        (2, "UPDATE"),
        (2, "UPDATE"),
        (2, "DELETE"),
        (3, "INSERT"),
        (3, "DELETE"),
    ]


def test_nobodys_table_can_stand_in_for_the_log(source: Connection) -> None:
    for schema in ("pg_temp", "mine"):
        query(source, "CREATE SCHEMA IF NOT EXISTS mine; SET search_path = mine, public, pg_catalog")
        query(source, f"CREATE TABLE {schema}.emp_cdc (LIKE public.emp_cdc INCLUDING ALL)")
        query(source, f"CREATE TABLE {schema}.employees (LIKE public.employees)")
        query(source, "INSERT INTO public.employees (city) VALUES ('Rome')")
        query(source, "TRUNCATE public.employees")
        assert query(source, f"SELECT count(*) FROM {schema}.emp_cdc") == [(0,)]
        assert [action for _, action in query(source, "SELECT emp_id, action FROM public.emp_cdc")][-2:] == [
            "INSERT",
            "DELETE",
        ]


def test_what_a_savepoint_takes_back_is_not_logged(source: Connection) -> None:
    query(source, "BEGIN; INSERT INTO employees (city) VALUES ('kept'); SAVEPOINT here")
    query(source, "INSERT INTO employees (city) VALUES ('taken back'); UPDATE employees SET salary = 1")
    query(source, "ROLLBACK TO here; UPDATE employees SET salary = 2; COMMIT")
    assert query(source, LOG) == [(1, "kept", None, "INSERT"), (1, "kept", 2, "UPDATE")]


def test_copy_is_captured_row_by_row(source: Connection) -> None:
    with source.cursor() as cursor:
        cursor.copy_expert(
            "COPY employees (emp_id, city, salary) FROM STDIN CSV",
            io.StringIO("".join(f"{emp_id},Rome,{emp_id}\n" for emp_id in range(1, 1001))),
        )
    assert query(source, LOG) == [(emp_id, "Rome", emp_id, "INSERT") for emp_id in range(1, 1001)]


def test_delete_and_insert_again_ends_with_the_insert(source: Connection) -> None:
    query(source, "INSERT INTO employees (emp_id, city) VALUES (1, 'Rome')")
    query(source, "BEGIN; DELETE FROM employees; INSERT INTO employees (emp_id, city) VALUES (1, 'Oslo'); COMMIT")
    query(source, "DELETE FROM employees USING (VALUES (1)) AS v (id) WHERE emp_id = id")
    query(source, "INSERT INTO employees VALUES (1) ON CONFLICT (emp_id) DO UPDATE SET city = 'Paris'")
    assert query(source, LOG) == [
        (1, "Rome", None, "INSERT"),
        (1, "Rome", None, "DELETE"),
        (1, "Oslo", None, "INSERT"),
        (1, "Oslo", None, "DELETE"),
        (1, None, None, "INSERT"),
    ]


@pytest.mark.parametrize("log", ["new", "upgraded"])
def test_an_unknown_action_cannot_be_logged(bare_pipeline: Pipeline, log: str) -> None:
    source = bare_pipeline.source()
    query(source, SPECIFIED if log == "upgraded" else "SELECT")
    query(source, SOURCE)
    with pytest.raises(psycopg2.errors.CheckViolation):
        query(source, "INSERT INTO emp_cdc (emp_id, action) VALUES (1, 'UPSERT')")
