"""What is set for a role, a database or both does not change what our sessions do."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing

import config
from cdc import session
from cdc.postgres import connect
from harness.database import administer, query
from harness.pipeline import Pipeline
from harness.roles import a_role, on_both
from harness.waiting import wait_until

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection

# What would change or stop what our sessions do.
HOSTILE = {
    "statement_timeout": "100",
    "lock_timeout": "100",
    "transaction_timeout": "100",
    "idle_session_timeout": "100",
    "idle_in_transaction_session_timeout": "100",
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "default_transaction_deferrable": "on",
    "row_security": "on",
    "session_replication_role": "replica",
    "synchronous_commit": "off",
    "array_nulls": "off",
    "DateStyle": "'SQL, DMY'",
    "IntervalStyle": "sql_standard",
}
COSTLY = {
    "jit": "on",
    "enable_indexscan": "off",
    "enable_nestloop": "off",
    "tcp_keepalives_idle": "7200",
    "tcp_keepalives_interval": "75",
    "tcp_keepalives_count": "9",
}
# What they set in another way, or never rely on.
NOT_SET = {"search_path": "nowhere", "standard_conforming_strings": "off", "client_encoding": "LATIN1"}

OURS = "SELECT pid FROM pg_stat_activity WHERE usename = %s"
ROWS = """
INSERT INTO employees VALUES
    (%(first)s + 1, NULL, NULL, NULL, NULL, NULL),
    (%(first)s + 2, 'null', '', '0044-03-15 BC', 'O''Hara {"a\\b",null} ü€', 0),
    (%(first)s + 3, 'NULL', E'\\t', '03-04-2005', 'slow', -1),
    (%(first)s + 4, '\\', NULL, 'infinity', 'x', 1);
UPDATE employees SET last_name = NULL, salary = NULL, dob = NULL WHERE emp_id = %(first)s;
DELETE FROM employees WHERE emp_id = %(first)s + 4
"""
# At the destination an employee of the city "slow" takes longer than the time-outs above.
SLOW = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_catalog.pg_sleep(0.3); RETURN NEW; END $$;
CREATE TRIGGER slow BEFORE INSERT OR UPDATE ON employees FOR EACH ROW WHEN (NEW.city = 'slow') EXECUTE FUNCTION slow();
ALTER TABLE employees ENABLE ALWAYS TRIGGER slow
"""

_numbers = iter(range(10, 1_000_000, 10))


def has(connection: Connection, setting: str) -> bool:
    return bool(query(connection, "SELECT name FROM pg_settings WHERE name = %s", (setting,)))


@pytest.fixture(scope="module")
def superuser(stack: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Pipeline, str]]:
    """A running pipeline, and the role of its scripts, which may set everything."""
    with a_role(tmp_path_factory.mktemp("superuser"), "SUPERUSER") as (pipeline, role):
        query(pipeline.destination(), SLOW)
        pipeline.start("producer.py")
        pipeline.start("consumer.py")
        yield pipeline, role


def log_in_again(pipeline: Pipeline, role: str) -> None:
    """End the sessions of a role: its scripts make new ones."""
    for connection in (pipeline.source(), pipeline.destination()):
        old = query(connection, OURS, (role,))
        query(connection, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (role,))
        wait_until(lambda: not set(old) & set(query(connection, OURS, (role,))))  # noqa: B023


@pytest.mark.parametrize("name", [*HOSTILE, *NOT_SET])
def test_the_pipeline_does_not_notice_what_is_set_for_its_role(superuser: tuple[Pipeline, str], name: str) -> None:
    pipeline, role = superuser
    source, destination = pipeline.source(), pipeline.destination()
    if not has(source, name):
        pytest.skip(f"this PostgreSQL has no {name}")
    first = next(_numbers)
    on_both(f"ALTER ROLE {role} SET {name} = {(HOSTILE | NOT_SET)[name]}")
    try:
        log_in_again(pipeline, role)
        query(source, "INSERT INTO employees VALUES (%s, 'a', 'b', '2000-01-01', 'c', 1)", (first,))
        pipeline.wait_until_equal(15)
        before = [len(script.output()) for script in pipeline.scripts]
        time.sleep(0.3)
        query(source, "BEGIN; SELECT FROM cdc_position FOR UPDATE")
        query(destination, "BEGIN; SELECT FROM cdc_applied WHERE emp_id = %s FOR UPDATE", (first,))
        query(pipeline.source(), ROWS, {"first": first})
        for holder in (source, destination):
            time.sleep(0.3)
            query(holder, "COMMIT")
        pipeline.wait_until_equal(15)
        for script, length in zip(pipeline.scripts, before, strict=True):
            assert "waiting" not in script.output()[length:]
        assert json.loads(pipeline.run("verify.py", "--json").stdout)["equal"]
    finally:
        on_both(f"ALTER ROLE {role} RESET ALL")


@pytest.mark.parametrize("whose", ["ROLE {role}", "DATABASE {database}", "ROLE {role} IN DATABASE {database}"])
def test_our_sessions_set_all_that_they_rely_on(superuser: tuple[Pipeline, str], whose: str) -> None:
    pipeline, role = superuser
    hostile = HOSTILE | COSTLY
    assert hostile.keys() == session.SETTINGS.keys()
    plain, url = pipeline.source(), pipeline.environment["SOURCE_DATABASE_URL"]
    owner = whose.format(role=role, database=pipeline.name)
    there = [name for name in hostile if has(plain, name)]
    values = f"SELECT name, setting FROM pg_catalog.pg_settings WHERE name = ANY ('{{{','.join(there)}}}')"
    try:
        for name in there:
            administer(config.SOURCE_DATABASE_URL, f"ALTER {owner} SET {name} = {hostile[name]}")
        administer(config.SOURCE_DATABASE_URL, f"ALTER {owner} SET search_path = nowhere")
        with closing(psycopg2.connect(url)) as theirs:
            theirs.autocommit = True
            wrong = dict(query(theirs, values))
        assert not [name for name in there if wrong[name] == session.SETTINGS[name]]
        with closing(connect("source", url)) as ours:
            assert dict(query(ours, values)) == {name: session.SETTINGS[name] for name in there}
            assert query(ours, "SHOW search_path") == [("pg_catalog, pg_temp",)]
            assert query(ours, "SHOW client_encoding") == [("UTF8",)]
    finally:
        administer(config.SOURCE_DATABASE_URL, f"ALTER {owner} RESET ALL")


@pytest.mark.parametrize("value", ["local", "remote_write", "remote_apply"])
def test_a_commit_that_waits_for_a_disk_stays_as_it_is_set(superuser: tuple[Pipeline, str], value: str) -> None:
    pipeline, role = superuser
    on_both(f"ALTER ROLE {role} SET synchronous_commit = {value}")
    try:
        with closing(connect("destination", pipeline.environment["DESTINATION_DATABASE_URL"])) as ours:
            assert query(ours, "SHOW synchronous_commit") == [(value,)]
    finally:
        on_both(f"ALTER ROLE {role} RESET ALL")
