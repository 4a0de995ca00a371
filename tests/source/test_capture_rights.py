"""Nobody's hands but ours on the log: what a stranger tries with the capture functions, and what their owner may do."""

from __future__ import annotations

from collections.abc import Iterator

from harness.database import query
from harness.pipeline import Pipeline

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection

COLUMNS = "first_name VARCHAR(100), last_name VARCHAR(100), dob DATE, city VARCHAR(100), salary INT"
ROW_TRIGGER = "CREATE TRIGGER t AFTER INSERT ON mine FOR EACH ROW EXECUTE FUNCTION public.employee_cdc_trigger_func()"
TRUNCATE_TRIGGER = (
    "CREATE TRIGGER t BEFORE TRUNCATE ON mine FOR EACH STATEMENT EXECUTE FUNCTION public.employee_cdc_truncate_func()"
)
# A type of the stranger's whose cast into text, taken at an assignment, runs the stranger's code.
TRAP = """
CREATE SCHEMA traps;
CREATE TYPE traps.city AS (name TEXT);
CREATE FUNCTION traps.spring(traps.city) RETURNS VARCHAR LANGUAGE plpgsql AS $$
BEGIN
    RAISE 'trapped as %', current_user;
END
$$;
CREATE CAST (traps.city AS VARCHAR) WITH FUNCTION traps.spring(traps.city) AS ASSIGNMENT;
"""


@pytest.fixture
def source(pipeline: Pipeline) -> Connection:
    connection = pipeline.source()
    query(connection, "INSERT INTO employees (city) VALUES ('Rome'), ('Oslo')")
    return connection


@pytest.fixture
def role(pipeline: Pipeline, source: Connection) -> Iterator[str]:
    """A role that may do nothing but connect."""
    name = f"{pipeline.name}_stranger"
    query(source, f"CREATE ROLE {name} LOGIN PASSWORD 'stranger'")
    yield name
    with pipeline.source() as cleaner:
        query(cleaner, f"DROP OWNED BY {name}; DROP ROLE {name}")


def as_role(pipeline: Pipeline, name: str, password: str = "stranger") -> Connection:
    connection: Connection = psycopg2.connect(pipeline.source_url, user=name, password=password)
    connection.autocommit = True
    pipeline.connections.append(connection)
    return connection


def actions(source: Connection) -> list[str]:
    return [action for (action,) in query(source, "SELECT action FROM emp_cdc ORDER BY cdc_id")]


@pytest.mark.parametrize("again", [False, True], ids=["set up once", "set up twice"])
@pytest.mark.parametrize("trigger", [ROW_TRIGGER, TRUNCATE_TRIGGER], ids=["row", "truncate"])
def test_a_stranger_cannot_make_a_trigger_of_our_functions(
    pipeline: Pipeline, source: Connection, role: str, trigger: str, again: bool
) -> None:
    if again:
        assert pipeline.run("db_setup.py").returncode == 0
    stranger = as_role(pipeline, role)
    query(stranger, f"CREATE TEMPORARY TABLE mine (emp_id INT, {COLUMNS})")
    with pytest.raises(psycopg2.errors.InsufficientPrivilege, match="permission denied for function"):
        query(stranger, trigger)
    assert actions(source) == ["INSERT", "INSERT"]


def callable_by_all(source: Connection) -> list[str]:
    rights = query(source, "SELECT proname, proacl::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace")
    assert len(rights) == 4
    return [name for name, acl in rights if acl is None or any(one.startswith("=") for one in acl[1:-1].split(","))]


def test_none_of_our_functions_can_be_called_by_everybody(source: Connection) -> None:
    assert callable_by_all(source) == []


@pytest.mark.parametrize(
    ("trigger", "statement"),
    [(ROW_TRIGGER, "INSERT INTO mine (emp_id) VALUES (9)"), (TRUNCATE_TRIGGER, "TRUNCATE mine")],
    ids=["row", "truncate"],
)
def test_with_the_right_to_our_functions_another_table_cannot_write_the_log(
    pipeline: Pipeline, source: Connection, role: str, trigger: str, statement: str
) -> None:
    query(source, f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO {role}")
    stranger = as_role(pipeline, role)
    query(stranger, f"CREATE TEMPORARY TABLE mine (emp_id INT, {COLUMNS})")
    query(stranger, trigger)
    with pytest.raises(psycopg2.errors.InsufficientPrivilege, match=r"is for public\.employees only"):
        query(stranger, statement)
    assert actions(source) == ["INSERT", "INSERT"]


def test_a_strangers_cast_does_not_run_with_our_rights(pipeline: Pipeline, source: Connection, role: str) -> None:
    """On another table it does not run at all: the table is checked before the row is touched."""
    query(source, TRAP)
    query(source, f"GRANT USAGE ON SCHEMA traps TO {role}; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO {role}")
    stranger = as_role(pipeline, role)
    query(
        stranger, f"CREATE TEMPORARY TABLE mine (emp_id INT, {COLUMNS.replace('city VARCHAR(100)', 'city traps.city')})"
    )
    query(stranger, ROW_TRIGGER)
    with pytest.raises(psycopg2.errors.InsufficientPrivilege, match=r"is for public\.employees only"):
        query(stranger, "INSERT INTO mine (emp_id, city) VALUES (9, ROW('x'))")


def test_a_cast_on_employees_itself_runs_with_the_rights_of_cdc_capture_only(source: Connection) -> None:
    query(source, TRAP)
    query(source, "GRANT USAGE ON SCHEMA traps TO PUBLIC; ALTER TABLE employees DROP city, ADD city traps.city")
    with pytest.raises(psycopg2.errors.RaiseException, match="trapped as cdc_capture"):
        query(source, "INSERT INTO employees (city) VALUES (ROW('x'))")


def test_the_functions_owner_can_do_no_more_than_they_do(source: Connection) -> None:
    owners = (
        "SELECT DISTINCT proowner::regrole::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND prosecdef"
    )
    assert query(source, owners) == [("cdc_capture",)]
    may = "SELECT rolcanlogin, rolsuper, rolcreaterole, rolcreatedb, rolreplication FROM pg_roles WHERE rolname = %s"
    assert query(source, may, ("cdc_capture",)) == [(False, False, False, False, False)]
    assert query(source, "SELECT has_schema_privilege('cdc_capture', 'public', 'CREATE')") == [
        (query(source, "SELECT has_schema_privilege('public', 'public', 'CREATE')")[0][0],)
    ]
    query(source, "SET ROLE cdc_capture")
    for statement in (
        "SELECT FROM emp_cdc",
        "UPDATE emp_cdc SET emp_id = 1",
        "DELETE FROM emp_cdc",
        "TRUNCATE emp_cdc",
        "SELECT FROM cdc_position",
        "UPDATE cdc_position SET last_offset = 0",
        "INSERT INTO employees (emp_id) VALUES (9)",
        "UPDATE employees SET city = 'x'",
        "DELETE FROM employees",
        "SELECT setval('emp_cdc_cdc_id_seq', 1)",
        "CREATE ROLE another",
    ):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            query(source, statement)


# An operator who may not create roles


@pytest.fixture
def owner(bare_pipeline: Pipeline) -> Iterator[str]:
    """A role that may create tables in the source, and no role."""
    name = f"{bare_pipeline.name}_owner"
    source = bare_pipeline.source()
    query(source, f"CREATE ROLE {name} LOGIN PASSWORD 'owner'; GRANT ALL ON SCHEMA public TO {name}")
    query(source, f"GRANT CREATE ON DATABASE {bare_pipeline.name} TO {name}")
    yield name
    query(source, f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


def set_up_as(pipeline: Pipeline, name: str, password: str = "owner") -> str:
    url = pipeline.source_url.replace("//postgres:postgres@", f"//{name}:{password}@")
    assert url != pipeline.source_url
    result = pipeline.run("db_setup.py", SOURCE_DATABASE_URL=url)
    assert result.returncode == 0, result.stderr
    return str(result.stdout)


def test_an_operator_who_may_not_create_roles_is_warned_and_keeps_the_other_two_defences(
    bare_pipeline: Pipeline, owner: str
) -> None:
    assert f"the capture functions belong to {owner}, not to cdc_capture" in set_up_as(bare_pipeline, owner)
    set_up_as(bare_pipeline, owner)
    source = bare_pipeline.source()
    assert callable_by_all(source) == []
    query(as_role(bare_pipeline, owner, "owner"), "INSERT INTO employees (city) VALUES ('Rome')")
    assert actions(source) == ["INSERT"]
    query(source, "CREATE TEMPORARY TABLE mine (LIKE public.employees)")
    query(source, ROW_TRIGGER)
    with pytest.raises(psycopg2.errors.InsufficientPrivilege, match=r"is for public\.employees only"):
        query(source, "INSERT INTO mine (emp_id) VALUES (9)")


# Row-level security on the source


def hide_rows(source: Connection) -> None:
    query(source, "CREATE POLICY rome ON employees USING (city = 'Rome')")
    query(source, "ALTER TABLE employees ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")


def test_truncate_logs_the_rows_that_a_policy_hides_too(pipeline: Pipeline, source: Connection, role: str) -> None:
    hide_rows(source)
    query(source, f"GRANT TRUNCATE, SELECT ON employees TO {role}")
    query(as_role(pipeline, role), "TRUNCATE employees")
    assert actions(source)[2:] == ["DELETE", "DELETE"]


def test_truncate_is_refused_where_the_functions_owner_cannot_see_all_rows(bare_pipeline: Pipeline, owner: str) -> None:
    set_up_as(bare_pipeline, owner)
    operator = as_role(bare_pipeline, owner, "owner")
    query(operator, "INSERT INTO employees (city) VALUES ('Rome'), ('Oslo')")
    hide_rows(operator)
    with pytest.raises(psycopg2.errors.InsufficientPrivilege, match="row-level security"):
        query(operator, "TRUNCATE employees")
    assert query(bare_pipeline.source(), "SELECT count(*) FROM employees") == [(2,)]


def test_a_set_up_that_cannot_see_all_rows_is_refused(bare_pipeline: Pipeline, owner: str) -> None:
    operator = as_role(bare_pipeline, owner, "owner")
    query(operator, f"CREATE TABLE employees (emp_id INT PRIMARY KEY, {COLUMNS})")
    query(operator, "INSERT INTO employees (emp_id, city) VALUES (1, 'Rome'), (2, 'Oslo')")
    hide_rows(operator)
    url = bare_pipeline.source_url.replace("//postgres:postgres@", f"//{owner}:owner@")
    result = bare_pipeline.run("db_setup.py", SOURCE_DATABASE_URL=url)
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1), result.stderr
    assert "row-level security" in result.stderr


FUNCTIONS = {
    "emp_cdc_wake": "void",
    "employee_cdc_trigger_func": "trigger",
    "employee_cdc_truncate_func": "trigger",
    "emp_cdc_note_removed": "trigger",
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_that_a_stranger_made_first_is_the_strangers_no_more(
    bare_pipeline: Pipeline, owner: str, name: str
) -> None:
    """It would run with the rights of whoever changes employees or the log, and its owner could change it later."""
    stranger = as_role(bare_pipeline, owner, "owner")
    theirs = (
        f"CREATE OR REPLACE FUNCTION public.{name}() RETURNS {FUNCTIONS[name]} LANGUAGE plpgsql AS 'BEGIN RETURN; END'"
    )
    query(stranger, theirs.replace("RETURN;", "RETURN NULL;") if FUNCTIONS[name] == "trigger" else theirs)
    assert bare_pipeline.run("db_setup.py").returncode == 0
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        query(stranger, f"ALTER FUNCTION public.{name} SET search_path = public")
