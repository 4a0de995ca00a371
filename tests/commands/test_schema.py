"""Tables in another schema than public, under whatever search_path a database or a role sets."""

from __future__ import annotations

import config
from harness import ROOT
from harness.database import administer, query
from harness.pipeline import Pipeline

import pytest
from psycopg2.extensions import connection as Connection

EMPLOYEES = """
(emp_id SERIAL PRIMARY KEY, first_name VARCHAR(100), last_name VARCHAR(100), dob DATE, city VARCHAR(100), salary INT)
"""
SCHEMAS = "SELECT DISTINCT relnamespace::regnamespace::text FROM pg_class WHERE relname ~ '^(employees|emp_cdc|cdc_)'"


def in_schema(pipeline: Pipeline, schema: str, path: str) -> tuple[Connection, Connection]:
    """Give both databases a schema and a search_path of their own; returns sessions that find the schema's tables."""
    pipeline.environment["CDC_SCHEMA"] = schema
    administer(config.SOURCE_DATABASE_URL, f"ALTER DATABASE {pipeline.name} SET search_path = {path}")
    administer(config.DESTINATION_DATABASE_URL, f"ALTER DATABASE {pipeline.name}_copy SET search_path = {path}")
    sessions = pipeline.source(), pipeline.destination()
    for session in sessions:
        query(session, f'CREATE SCHEMA IF NOT EXISTS "{schema}"; SET search_path = "{schema}"')
    return sessions


def rows(session: Connection) -> list[tuple[object, ...]]:
    return query(session, "SELECT emp_id, city, salary FROM employees ORDER BY emp_id")


@pytest.mark.parametrize("schema", ["app", "My-App$1"])
@pytest.mark.parametrize("path", ["public", "nowhere", "traps, public"])
def test_everything_works_in_a_schema_of_ones_own_whatever_the_search_path(
    bare_pipeline: Pipeline, schema: str, path: str
) -> None:
    source, destination = in_schema(bare_pipeline, schema, path)
    for session in (source, destination):  # what would be found by a name without a schema
        query(session, "CREATE SCHEMA traps; CREATE TABLE traps.emp_cdc (trap INT); CREATE TABLE traps.cdc_applied ()")
    bare_pipeline.set_up()
    query(source, "INSERT INTO employees (city) VALUES ('Rome'), ('Oslo')")
    query(source, "UPDATE employees SET salary = 1 WHERE emp_id = 1; DELETE FROM employees WHERE emp_id = 2")
    query(source, "INSERT INTO employees (city) VALUES ('Paris'); TRUNCATE employees")
    query(source, "INSERT INTO employees (city) VALUES ('Bonn')")
    bare_pipeline.drain()
    assert rows(source) == rows(destination) == [(4, "Bonn", None)]
    bare_pipeline.start("producer.py")
    bare_pipeline.start("consumer.py")
    for script, *arguments in (["test_cdc.py"], ["db_setup.py"]):
        result = bare_pipeline.run(script, *arguments)
        assert result.returncode == 0, result.stdout + result.stderr
    query(destination, "UPDATE employees SET city = 'nobody'; INSERT INTO employees (emp_id) VALUES (99)")
    result = bare_pipeline.run("verify.py", "--repair")
    assert result.returncode == 0, result.stdout + result.stderr
    assert rows(source) == rows(destination)
    status = bare_pipeline.run("admin.py", "status")
    assert status.returncode == 0, status.stdout
    assert status.stdout.startswith("in sync: yes"), status.stdout
    assert {name.strip('"') for (name,) in query(source, SCHEMAS)} == {schema, "traps"}


def test_the_triggers_write_the_log_of_their_schema_whatever_the_writers_search_path(bare_pipeline: Pipeline) -> None:
    source, _ = in_schema(bare_pipeline, "app", "public")
    bare_pipeline.set_up()
    writer = bare_pipeline.source()
    query(writer, "SET search_path = pg_temp; CREATE TEMPORARY TABLE emp_cdc (trap INT)")
    query(writer, "INSERT INTO app.employees (city) VALUES ('Rome'); TRUNCATE app.employees")
    assert [action for (action,) in query(source, "SELECT action FROM emp_cdc ORDER BY cdc_id")] == ["INSERT", "DELETE"]


@pytest.mark.parametrize("side", ["source", "destination"])
def test_employees_in_another_schema_of_the_search_path_is_not_mistaken_for_a_missing_one(
    bare_pipeline: Pipeline, side: str
) -> None:
    session = bare_pipeline.source() if side == "source" else bare_pipeline.destination()
    name = query(session, "SELECT current_database()")[0][0]
    query(session, f"CREATE SCHEMA app; ALTER DATABASE {name} SET search_path = app, public")
    query(session, f"CREATE TABLE app.employees {EMPLOYEES}")
    result = bare_pipeline.run("db_setup.py")
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        f"{side}: employees is in schema app, not in public; set CDC_SCHEMA=app, or create employees in public first"
    ]
    assert query(session, "SELECT to_regclass('public.employees')") == [(None,)]


def test_a_schema_that_does_not_exist_is_named(bare_pipeline: Pipeline) -> None:
    result = bare_pipeline.run("db_setup.py", CDC_SCHEMA="ap")
    assert result.returncode == 2
    assert result.stderr.splitlines() == ["source: there is no schema ap; create it, or correct CDC_SCHEMA"]


def test_the_sql_files_run_by_hand_whatever_the_search_path(bare_pipeline: Pipeline) -> None:
    for session, name in zip(in_schema(bare_pipeline, "app", "nowhere"), ("source", "destination"), strict=True):
        query(session, "SET search_path = nowhere")
        query(session, (ROOT / "sql" / f"{name}.sql").read_text(encoding="utf-8"))
        assert query(session, SCHEMAS) == [("public",)]


def test_deleted_employees_are_trimmed_whatever_the_search_path(bare_pipeline: Pipeline) -> None:
    _, destination = in_schema(bare_pipeline, "public", "nowhere")
    bare_pipeline.set_up()
    query(destination, "INSERT INTO public.cdc_applied VALUES (1, 1), (2, 9)")
    query(bare_pipeline.destination(), (ROOT / "sql" / "trim.sql").read_text(encoding="utf-8").replace(":oldest", "5"))
    assert query(destination, "SELECT emp_id FROM public.cdc_applied") == [(2,)]
