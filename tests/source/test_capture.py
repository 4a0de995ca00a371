"""What the triggers capture: every change of employees is in the log, once."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

from harness.capturing import LOG, SOURCE, SPECIFIED, newest_in_log
from harness.database import WAITING, query
from harness.pipeline import Pipeline
from harness.waiting import wait_until

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection


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
