"""Statements on the databases of a test, and the queries that many tests ask."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import psycopg2
from psycopg2.extensions import connection as Connection

# Sessions of the connection's database that wait for a lock.
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
ROWS = "SELECT emp_id, first_name, last_name, dob::text, city, salary FROM employees ORDER BY emp_id"

# At the destination: every state that an employee has there, by the salary, which the test sets to ever higher numbers.
WATCH = """
CREATE TABLE seen (n BIGSERIAL, emp_id INT, cdc_id INT);
CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.seen (emp_id, cdc_id) VALUES (NEW.emp_id, NEW.salary);
    RETURN NULL;
END
$$;
CREATE TRIGGER watch AFTER INSERT OR UPDATE ON employees FOR EACH ROW EXECUTE FUNCTION watch();
"""
BACKWARDS = """
SELECT count(*) FROM (SELECT cdc_id, lag(cdc_id) OVER (PARTITION BY emp_id ORDER BY n) AS before FROM seen) AS s
WHERE before >= cdc_id
"""

# The capture as if the producer slept always: what writers are spared while it is awake.
ALWAYS_NOTIFY = """
DO $$
BEGIN
    EXECUTE replace(pg_get_functiondef('employee_cdc_trigger_func'::regproc),
                    'pg_catalog.pg_try_advisory_xact_lock_shared(6513763, 2)', 'false');
END
$$
"""


def query(connection: Connection, sql: str, values: Any = None) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        return cursor.fetchall() if cursor.description else []


def database_url(url: str, database: str) -> str:
    return url.rsplit("/", 1)[0] + f"/{database}"


def connect(url: str) -> Connection:
    """An autocommit connection; psycopg2.OperationalError from a server that does not answer within 10 s."""
    connection: Connection = psycopg2.connect(url, connect_timeout=10)
    connection.autocommit = True
    return connection


def administer(url: str, statement: str) -> None:
    with closing(connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
