"""db_setup.py --roles: with these roles the whole way works, and each of them can do nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from harness import ROOT
from harness.database import query
from harness.own_roles import APPLICATION, PASSWORD, Roles, new_roles

import psycopg2
import pytest
from psycopg2.errors import InsufficientPrivilege


@pytest.fixture(scope="module")
def roles(stack: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Roles]:
    """Set up with the roles, after an application that comes in by what everybody may."""
    with new_roles(tmp_path_factory.mktemp("roles")) as roles:
        roles.pipeline.set_up()
        query(roles.pipeline.source(), APPLICATION.format(roles.name("app")))
        result = roles.set_up()
        assert result.returncode == 0, result.stdout + result.stderr
        yield roles


@pytest.fixture
def new(stack: None, tmp_path: Path) -> Iterator[Roles]:
    with new_roles(tmp_path) as roles:
        yield roles


def test_the_whole_way_works_with_these_roles(roles: Roles) -> None:
    """Late rows, TRUNCATE, a bad message, a second start, pruning."""
    pipeline, late = roles.pipeline, roles.connect("source", "app")
    scripts = {"producer.py": "cdc_producer", "consumer.py": "cdc_consumer"}
    started = [pipeline.start(script, **roles.settings(role)) for script, role in scripts.items()]
    query(late, "BEGIN; INSERT INTO employees (emp_id, city) VALUES (1, 'late')")
    app = roles.connect("source", "app")
    query(app, "INSERT INTO employees (emp_id, city) VALUES (2, 'Rome'), (3, 'Oslo')")
    pipeline.wait_until_equal()
    query(late, "COMMIT")
    pipeline.wait_until_equal()
    for script in started:
        assert script.stop() == 0, script.output()
    query(app, "UPDATE employees SET city = 'Bern'; DELETE FROM employees WHERE emp_id = 3; TRUNCATE employees")
    query(app, "INSERT INTO employees SELECT FROM generate_series(1, 3)")
    pipeline.send("no change")
    for name, role in scripts.items():
        result = pipeline.run(name, "--once", **roles.settings(role), RETENTION="0 s")
        assert result.returncode == 0, result.stdout + result.stderr
        assert "permission denied" not in result.stdout
    assert pipeline.equal()
    assert len(pipeline.dead_letters()) == 1
    assert pipeline.run("admin.py", "dead-letters", "--discard", "--yes").returncode == 0


def test_the_monitor_sees_and_compares_everything_and_stores_nothing(roles: Roles) -> None:
    roles.pipeline.drain()
    status = roles.pipeline.run("admin.py", "status", "--json", **roles.settings("cdc_monitor"))
    assert json.loads(status.stdout)["in_sync"], status.stdout
    result = roles.pipeline.run("verify.py", **roles.settings("cdc_monitor"))
    assert (result.returncode, result.stdout[:5]) == (0, "EQUAL")
    assert "status will not show this comparison" in result.stderr
    assert query(roles.pipeline.destination(), "SELECT FROM cdc_verified") == []


REFUSED = {
    ("cdc_producer", "source"): [
        "SELECT FROM employees",
        "INSERT INTO employees DEFAULT VALUES",
        "UPDATE employees SET city = 'x'",
        "DELETE FROM employees",
        "TRUNCATE employees",
        "INSERT INTO emp_cdc (emp_id, action) VALUES (1, 'DELETE')",
        "TRUNCATE emp_cdc",
        "INSERT INTO cdc_position (last_offset) VALUES (1)",
        "DELETE FROM cdc_position",
        "SET ROLE cdc_capture",
        "CREATE TABLE public.mine ()",
    ],
    ("cdc_consumer", "destination"): [
        "TRUNCATE employees",
        "DELETE FROM cdc_applied",
        "TRUNCATE cdc_applied",
        "SELECT FROM cdc_verified",
        "INSERT INTO cdc_verified (compared) VALUES (1)",
        "SELECT FROM others",
        "CREATE TABLE public.mine ()",
    ],
    ("cdc_monitor", "source"): [
        "INSERT INTO employees DEFAULT VALUES",
        "UPDATE employees SET city = 'x'",
        "DELETE FROM employees",
        "UPDATE emp_cdc SET emp_id = 1",
        "DELETE FROM emp_cdc",
        "UPDATE cdc_position SET last_offset = 0",
        "SELECT setval('emp_cdc_cdc_id_seq', 1)",
        "SELECT nextval('emp_cdc_cdc_id_seq')",
        "CREATE TABLE public.mine ()",
    ],
    ("cdc_monitor", "destination"): [
        "INSERT INTO employees DEFAULT VALUES",
        "DELETE FROM employees",
        "UPDATE cdc_applied SET cdc_id = 1",
        "INSERT INTO cdc_verified (compared) VALUES (1)",
        "SELECT FROM others",
    ],
    ("app", "source"): [  # read, forge, change, stop
        "SELECT FROM emp_cdc",
        "SELECT FROM cdc_position",
        "INSERT INTO emp_cdc (emp_id, action) VALUES (1, 'DELETE')",
        "SELECT nextval('emp_cdc_cdc_id_seq')",
        "SELECT setval('emp_cdc_cdc_id_seq', 1)",
        "CREATE TEMP TABLE mine (LIKE employees); CREATE TRIGGER t AFTER INSERT ON mine FOR EACH ROW "
        "EXECUTE FUNCTION employee_cdc_trigger_func()",
        "SELECT emp_cdc_wake()",
        "UPDATE emp_cdc SET emp_id = 1",
        "DELETE FROM emp_cdc",
        "TRUNCATE emp_cdc",
        "UPDATE cdc_position SET last_offset = 0",
        "DO 'BEGIN LOCK TABLE emp_cdc; END'",
        "DO 'BEGIN LOCK TABLE cdc_position IN ACCESS SHARE MODE; END'",
        "ALTER TABLE employees DISABLE TRIGGER employee_cdc_trigger",
        "DROP TRIGGER employee_cdc_trigger ON employees",
        "CREATE RULE nothing AS ON INSERT TO employees DO INSTEAD NOTHING",
        "DROP FUNCTION employee_cdc_trigger_func CASCADE",
        "ALTER FUNCTION employee_cdc_trigger_func SET search_path = pg_temp",
        "ALTER TABLE employees RENAME TO others",
        "SET session_replication_role = replica",
        "SET ROLE cdc_capture",
        "GRANT SELECT ON emp_cdc TO PUBLIC",
        "CREATE TABLE public.mine ()",
    ],
}


@pytest.mark.parametrize(("role", "side"), REFUSED)
def test_a_role_can_do_nothing_else(roles: Roles, role: str, side: str) -> None:
    owner = roles.pipeline.source() if side == "source" else roles.pipeline.destination()
    query(owner, "CREATE TABLE IF NOT EXISTS others (id INT)")
    connection = roles.connect(side, role)
    for statement in REFUSED[role, side]:
        with pytest.raises(InsufficientPrivilege):
            query(connection, statement)


def test_what_the_application_sets_and_shadows_does_not_stop_the_log(roles: Roles) -> None:
    app = roles.connect("source", "app")
    query(
        app,
        """
        CREATE TEMP TABLE emp_cdc (LIKE employees); CREATE TEMP TABLE employees (LIKE employees);
        CREATE FUNCTION pg_temp.pg_try_advisory_xact_lock_shared(int, int) RETURNS boolean LANGUAGE sql
            AS 'DELETE FROM public.employees; SELECT true';
        SET search_path = pg_temp, public; SET row_security = off; SET cdc.nested = off; SET cdc.notify = off
        """,
    )
    query(app, "INSERT INTO public.employees (emp_id) VALUES (77); DELETE FROM public.employees WHERE emp_id = 77")
    logged = query(roles.pipeline.source(), "SELECT action FROM emp_cdc WHERE emp_id = 77 ORDER BY cdc_id")
    assert logged == [("INSERT",), ("DELETE",)]


def test_who_has_no_right_there_can_no_longer_connect(roles: Roles) -> None:
    query(roles.pipeline.source(), f"CREATE ROLE {roles.name('stranger')} LOGIN PASSWORD %s", (PASSWORD,))
    with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
        roles.connect("source", "stranger")


def test_a_second_run_takes_back_what_was_added_and_keeps_passwords_that_are_not_given(roles: Roles) -> None:
    source = roles.pipeline.source()
    query(source, f"GRANT ALL ON employees, emp_cdc TO {roles.name('cdc_producer')}")
    query(source, f"GRANT CREATE ON SCHEMA public TO {roles.name('cdc_producer')}")
    result = roles.set_up(password="")
    assert result.returncode == 0, result.stdout + result.stderr
    test_a_role_can_do_nothing_else(roles, "cdc_producer", "source")
    query(roles.connect("source", "cdc_producer"), "SELECT cdc_id FROM emp_cdc LIMIT 1")


def test_a_new_role_needs_a_password_and_nothing_is_set_up_without(new: Roles) -> None:
    result = new.set_up(password="")
    missing = f"{new.name('cdc_producer')}_PASSWORD".upper()
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert f"set {missing}, its password" in result.stderr
    assert query(new.pipeline.source(), "SELECT to_regclass('public.employees')") == [(None,)]


def test_a_role_that_no_right_binds_is_refused(new: Roles) -> None:
    query(new.pipeline.source(), f"CREATE ROLE {new.name('cdc_monitor')} SUPERUSER")
    result = new.set_up()
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert "is bound by no rights" in result.stderr


def test_another_schema_and_passwords_that_the_server_never_sees(new: Roles) -> None:
    for connection in (source := new.pipeline.source(), new.pipeline.destination()):
        query(connection, 'CREATE SCHEMA "hr-2"')
    query(source, f"ALTER DATABASE {new.pipeline.name} SET password_encryption = 'md5'")
    result = new.set_up(CDC_SCHEMA="hr-2")
    assert result.returncode == 0, result.stdout + result.stderr
    stored = "SELECT rolpassword FROM pg_authid WHERE rolname = %s"
    assert query(source, stored, (new.name("cdc_producer"),))[0][0].startswith("SCRAM-SHA-256$")
    query(source, "INSERT INTO \"hr-2\".employees (city) VALUES ('Rome')")
    producer = new.connect("source", "cdc_producer")
    assert query(producer, 'SELECT city FROM "hr-2".emp_cdc') == [("Rome",)]
    with pytest.raises(InsufficientPrivilege):
        query(producer, 'SELECT FROM "hr-2".employees')


def test_both_files_give_everybodys_rights_to_those_who_work_here_by_the_same_statement() -> None:
    """Each file runs alone, so it stands in both."""
    texts = [(ROOT / "sql" / f"{side}_roles.sql").read_text(encoding="utf-8") for side in ("source", "destination")]
    first, second = (text.partition("\nDO $$")[2].partition("\n$$;")[0] for text in texts)
    assert "GRANT %s TO %I" in first
    assert first == second
