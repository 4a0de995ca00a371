"""What a role, a database or somebody with rights in `public` sets or plants does not change what our sessions do."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import config
from cdc import session
from cdc.postgres import connect
from harness.database import administer, query
from harness.pipeline import Pipeline, new_pipeline
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

PASSWORD = "only-for-tests"
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


def on_both(statement: str) -> None:
    for url in (config.SOURCE_DATABASE_URL, config.DESTINATION_DATABASE_URL):
        administer(url, statement)


@contextmanager
def a_role(logs: Path, attributes: str) -> Iterator[tuple[Pipeline, str]]:
    """A pipeline that is set up, whose scripts log in as a role of their own, and that role."""
    role = f"cdc_test_{os.getpid()}_{next(_numbers)}"
    on_both(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}' {attributes}")
    try:
        with new_pipeline(logs) as pipeline:
            pipeline.set_up()
            for side in ("SOURCE", "DESTINATION"):
                url = pipeline.environment[f"{side}_DATABASE_URL"]
                pipeline.environment[f"{side}_DATABASE_URL"] = f"postgresql://{role}:{PASSWORD}@{url.split('@')[-1]}"
            yield pipeline, role
    finally:
        on_both(f"DROP ROLE {role}")


def has(connection: Connection, setting: str) -> bool:
    return bool(query(connection, "SELECT name FROM pg_settings WHERE name = %s", (setting,)))


# Settings


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


# Roles that may not do everything


@pytest.fixture
def limited(stack: None, tmp_path: Path) -> Iterator[tuple[Pipeline, str]]:
    """A pipeline, no script of it running, and the role of its scripts, which has rights on our tables only."""
    with a_role(tmp_path, "NOSUPERUSER") as (pipeline, role):
        for connection in (pipeline.source(), pipeline.destination()):
            query(connection, f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}")
            query(connection, f"GRANT SELECT, UPDATE, USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}")
        query(pipeline.source(), "INSERT INTO employees (emp_id) VALUES (1), (2)")
        pipeline.drain()
        assert pipeline.equal()
        yield pipeline, role


def test_a_setting_that_our_role_may_not_set_is_touched_only_where_it_is_wrong(limited: tuple[Pipeline, str]) -> None:
    pipeline, role = limited
    on_both(f"ALTER ROLE {role} SET session_replication_role = replica")
    for script, *arguments in (
        ["producer.py", "--once"],
        ["consumer.py", "--once"],
        ["verify.py"],
        ["admin.py", "status"],
    ):
        result = pipeline.run(script, *arguments)
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert 'permission denied to set parameter "session_replication_role"' in line


HIDING = "ALTER TABLE {0} ENABLE ROW LEVEL SECURITY; CREATE POLICY part ON {0} USING (emp_id > 1) WITH CHECK (true)"
HIDDEN = {  # by script: the tables of the source and of the destination of which some rows are hidden; the exit code
    "producer.py": (["emp_cdc"], [], 2),
    "consumer.py": ([], ["employees"], 2),
    "verify.py": (["employees"], ["employees"], 3),
    "admin.py": (["employees"], ["employees"], 1),
    "test_cdc.py": (["employees"], ["employees"], 1),
}


@pytest.mark.parametrize("script", HIDDEN)
def test_a_script_to_which_rows_are_hidden_says_so_instead_of_passing_them_over(
    limited: tuple[Pipeline, str], script: str
) -> None:
    pipeline, role = limited
    source, destination = pipeline.source(), pipeline.destination()
    if script == "verify.py":
        query(destination, "UPDATE employees SET city = 'changed by somebody' WHERE emp_id = 1")
    elif script in ("producer.py", "consumer.py"):
        query(source, "DELETE FROM employees WHERE emp_id = 1")
    if script == "consumer.py":
        assert pipeline.run("producer.py", "--once").returncode == 0
    at_source, at_destination, code = HIDDEN[script]
    for connection, tables in ((source, at_source), (destination, at_destination)):
        for table in tables:
            query(connection, HIDING.format(table))
    arguments = {"admin.py": ["status", "--json"], "producer.py": ["--once"], "consumer.py": ["--once"]}.get(script, [])
    result = pipeline.run(script, *arguments)
    lines = [line for line in (result.stdout + result.stderr).splitlines() if "row-level security" in line]
    assert len(lines) == (2 if script == "admin.py" else 1)
    assert all("give it BYPASSRLS" in line for line in lines)
    assert (result.returncode, "Traceback" in result.stderr) == (code, False)
    on_both(f"ALTER ROLE {role} BYPASSRLS")
    if script in ("producer.py", "consumer.py"):
        pipeline.drain()
        assert pipeline.equal()


# Planted functions

# As anybody can up to PostgreSQL 14, where they may create in public. Each of these fits one of our calls better than
# PostgreSQL's own does.
PLANTED = """
CREATE FUNCTION public.planted() RETURNS void LANGUAGE plpgsql AS 'BEGIN RAISE ''a planted function has run''; END';
CREATE FUNCTION public.format(text, int, text) RETURNS text LANGUAGE sql AS 'SELECT planted()::text';
CREATE FUNCTION public.format(text, xid8) RETURNS text LANGUAGE sql AS 'SELECT planted()::text';
CREATE FUNCTION public.setval(text, int) RETURNS bigint LANGUAGE sql AS 'SELECT planted(); SELECT 1::bigint';
CREATE FUNCTION public.setval(text, bigint) RETURNS bigint LANGUAGE sql AS 'SELECT planted(); SELECT 1::bigint';
CREATE FUNCTION public.pg_visible_in_snapshot(xid8, text) RETURNS boolean
    LANGUAGE sql AS 'SELECT planted(); SELECT true';
CREATE FUNCTION public.unnest(int[]) RETURNS SETOF int LANGUAGE sql AS 'SELECT planted(); SELECT 1';
CREATE FUNCTION public.json_build_array(int, varchar, varchar, date, varchar, int) RETURNS json
    LANGUAGE sql AS 'SELECT planted(); SELECT ''[]''::json';
CREATE FUNCTION public.planted(int, int) RETURNS boolean LANGUAGE sql AS 'SELECT planted(); SELECT true';
CREATE FUNCTION public.planted(oid, int) RETURNS boolean LANGUAGE sql AS 'SELECT planted(); SELECT true';
CREATE OPERATOR public.= (LEFTARG = oid, RIGHTARG = int, FUNCTION = public.planted);
CREATE FUNCTION public.planted(varchar, varchar) RETURNS boolean LANGUAGE sql AS 'SELECT planted(); SELECT true';
CREATE OPERATOR public.= (LEFTARG = varchar, RIGHTARG = varchar, FUNCTION = public.planted);
CREATE FUNCTION public.planted(int[], int) RETURNS int[] LANGUAGE sql AS 'SELECT planted(); SELECT $1';
CREATE AGGREGATE public.array_agg(int) (SFUNC = public.planted, STYPE = int[], INITCOND = '{}')
"""
RESTORED = "UPDATE cdc_position SET system_identifier = 1; ALTER SEQUENCE emp_cdc_cdc_id_seq RESTART"


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("admin.py", ["status"]),
        ("producer.py", ["--once"]),
        ("consumer.py", ["--once"]),
        ("verify.py", []),
        ("verify.py", ["--repair"]),
        ("test_cdc.py", []),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_planted_function_is_never_run(pipeline: Pipeline, script: str, arguments: list[str]) -> None:
    source, destination = pipeline.source(), pipeline.destination()
    query(source, "INSERT INTO employees (emp_id) VALUES (1), (2), (3)")
    query(source, "DELETE FROM employees WHERE emp_id = 1")
    pipeline.drain()
    query(destination, "DELETE FROM cdc_applied")  # so that the consumer has to register the keys that it finds
    query(source, "UPDATE employees SET city = 'new'; DELETE FROM employees WHERE emp_id = 2")
    if script != "producer.py":
        assert pipeline.run("producer.py", "--once").returncode == 0
    for connection in (source, destination):
        query(connection, PLANTED)
    if script == "producer.py":
        query(source, RESTORED)
    if script == "verify.py":
        query(destination, "INSERT INTO employees (emp_id) VALUES (4)")
    if script in ("admin.py", "test_cdc.py") or "--repair" in arguments:
        pipeline.start("producer.py").wait_for("publishing")
    if script in ("verify.py", "test_cdc.py"):
        pipeline.start("consumer.py").wait_for("partitions assigned")
    result = pipeline.run(script, *arguments)
    output = result.stdout + result.stderr + "".join(script.output() for script in pipeline.scripts)
    assert "planted" not in output
    if script == "producer.py":
        assert "position rebased" in output
        assert "WENT BACK IN TIME" in output
    assert result.returncode == (1 if (script, arguments) == ("verify.py", []) else 0), output


def test_a_trigger_function_of_somebody_elses_needs_a_search_path_of_its_own(pipeline: Pipeline) -> None:
    destination = pipeline.destination()
    query(
        destination,
        """
        CREATE TABLE audit (emp_id INT);
        CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN INSERT INTO audit VALUES (NEW.emp_id); RETURN NEW; END';
        CREATE TRIGGER audit BEFORE INSERT ON employees FOR EACH ROW EXECUTE FUNCTION audit();
        """,
    )
    query(pipeline.source(), "INSERT INTO employees (emp_id) VALUES (1)")
    pipeline.start("producer.py")
    with pipeline.running("consumer.py") as script:
        script.wait_for('→ dead letter: relation "audit" does not exist')
        query(destination, "ALTER FUNCTION audit SET search_path = public")
        assert pipeline.run("admin.py", "dead-letters", "--replay").returncode == 0
        pipeline.wait_until_equal()
    assert query(destination, "SELECT * FROM audit") == [(1,)]
