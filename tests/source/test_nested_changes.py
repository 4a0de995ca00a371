"""Triggers and functions of the user's own that change employees in the midst of a statement on employees."""

from __future__ import annotations

import random

from harness.database import query
from harness.pipeline import Pipeline

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection

COLUMNS = "emp_id, first_name, last_name, dob, city, salary"
# What the destination will hold, and what the source holds.
ARRIVES = f"""
SELECT {COLUMNS} FROM (SELECT DISTINCT ON (emp_id) * FROM emp_cdc ORDER BY emp_id, cdc_id DESC) AS newest
WHERE action <> 'DELETE' ORDER BY emp_id
"""
STANDS = f"SELECT {COLUMNS} FROM employees ORDER BY emp_id"

# Parts of the trigger, and what they are without the care for nested changes.
CHANGED_SINCE = ("NEW.xmax OPERATOR(pg_catalog.<>) '0'::pg_catalog.xid", "false")
MARK = ("pg_catalog.pg_trigger_depth() OPERATOR(pg_catalog.>) 1", "false")
THERE_AGAIN = ("pg_catalog.current_setting('cdc.nested', true) OPERATOR(pg_catalog.=) 'on'", "false")
LOCKED = ("FROM public.employees WHERE ctid OPERATOR(pg_catalog.=) NEW.ctid", "WHERE false")
HIDDEN = ("NOT pg_catalog.row_security_active('public.employees'::pg_catalog.regclass)", "true")


def leave_out(source: Connection, *parts: tuple[str, str]) -> None:
    ((definition,),) = query(source, "SELECT pg_get_functiondef('employee_cdc_trigger_func'::regproc)")
    for part, without in parts:
        assert part in definition
        definition = definition.replace(part, without)
    query(source, definition)


def trigger(name: str, when: str, body: str, level: str = "ROW", options: str = "") -> str:
    return f"""
    CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql {options} AS $$
    BEGIN
        IF pg_trigger_depth() <= 3 THEN
            {body};
        END IF;
        RETURN {"NEW" if when.startswith("BEFORE") else "NULL"};
    END
    $$;
    CREATE TRIGGER {name} {when} ON employees FOR EACH {level} EXECUTE FUNCTION {name}();
    """


def function(body: str) -> str:
    return f"CREATE FUNCTION f(INT) RETURNS INT LANGUAGE plpgsql AS $$ BEGIN {body}; RETURN $1; END $$;"


RAISE_SALARY = "UPDATE public.employees SET salary = coalesce(salary, 0) + 100 WHERE emp_id = NEW.emp_id"
ARCHIVE = "INSERT INTO employees (emp_id, city) VALUES (OLD.emp_id, 'archive') ON CONFLICT DO NOTHING"
TRY = "BEGIN {}; RAISE 'taken back'; EXCEPTION WHEN raise_exception THEN NULL; END"
# What is set up, and what is written then to the employees 1 and 2, and whether it needs care.
SHAPES = {
    "an insert that is updated": (trigger("a", "AFTER INSERT", RAISE_SALARY), "INSERT INTO employees VALUES (3)", True),
    "an update that is updated, level by level": (
        trigger("a", "AFTER UPDATE", RAISE_SALARY),
        "UPDATE employees SET salary = 1",
        True,
    ),
    "an update that is deleted": (
        trigger("a", "AFTER UPDATE", "DELETE FROM employees WHERE emp_id = NEW.emp_id"),
        "UPDATE employees SET salary = 1 WHERE emp_id = 1",
        True,
    ),
    "an update whose key is changed": (
        trigger("a", "AFTER UPDATE", "UPDATE employees SET emp_id = emp_id + 10 WHERE emp_id = NEW.emp_id"),
        "UPDATE employees SET salary = 1 WHERE emp_id = 1",
        True,
    ),
    "a changed key that is changed back": (
        trigger("a", "AFTER UPDATE", "UPDATE employees SET emp_id = 1 WHERE emp_id = 7"),
        "UPDATE employees SET emp_id = 7 WHERE emp_id = 1",
        True,
    ),
    "a delete that is inserted": (trigger("a", "AFTER DELETE", ARCHIVE), "DELETE FROM employees", True),
    "a delete that is inserted by a function with settings": (
        trigger("a", "AFTER DELETE", ARCHIVE, options="SET search_path = public"),
        "DELETE FROM employees",
        True,
    ),
    "an update of another row of the statement": (
        trigger("a", "AFTER UPDATE", "UPDATE employees SET city = 'x' WHERE emp_id = 3 - NEW.emp_id"),
        "UPDATE employees SET salary = 1",
        True,
    ),
    "a row of the same statement, before the next one": (
        trigger("a", "BEFORE INSERT", "UPDATE employees SET salary = 100 WHERE emp_id = 3"),
        "INSERT INTO employees VALUES (3), (4)",
        True,
    ),
    "a function that the statement calls": (
        function("UPDATE employees SET salary = 100 WHERE emp_id < $1"),
        "INSERT INTO employees (emp_id, salary) SELECT n, f(n) FROM generate_series(3, 5) AS n",
        True,
    ),
    "a function that deletes": (
        function("DELETE FROM employees WHERE emp_id < $1"),
        "INSERT INTO employees (emp_id, salary) SELECT n, f(n) FROM generate_series(3, 5) AS n",
        True,
    ),
    "a nested change that is taken back": (
        trigger("a", "AFTER INSERT OR UPDATE", TRY.format(RAISE_SALARY)),
        "INSERT INTO employees VALUES (3); UPDATE employees SET salary = 1",
        False,
    ),
    "a nested insert that is taken back": (
        trigger("a", "AFTER DELETE", TRY.format(ARCHIVE)),
        "DELETE FROM employees WHERE emp_id = 1",
        False,
    ),
    "a trigger after ours": (trigger("z", "AFTER UPDATE", RAISE_SALARY), "UPDATE employees SET salary = 1", False),
    "a trigger of the statement": (
        trigger("a", "AFTER UPDATE", "UPDATE employees SET salary = 100", level="STATEMENT"),
        "UPDATE employees SET salary = 1",
        False,
    ),
    "a constraint trigger at commit": (
        trigger("a", "AFTER UPDATE", RAISE_SALARY).replace("CREATE TRIGGER", "CREATE CONSTRAINT TRIGGER")
        .replace("FOR EACH ROW", "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.salary = 1)"),
        "BEGIN; UPDATE employees SET salary = 1; COMMIT",
        False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_the_newest_state_arrives_of(source: Connection, shape: str) -> None:
    nested, statements, needs_care = SHAPES[shape]

    def arrives() -> bool:
        query(source, "DROP FUNCTION IF EXISTS a, z, f CASCADE; DELETE FROM employees; DELETE FROM emp_cdc")
        query(source, "INSERT INTO employees (emp_id) VALUES (1), (2)")
        query(source, nested)
        query(source, statements)
        return query(source, ARRIVES) == query(source, STANDS)

    for level in ("read committed", "repeatable read"):
        query(source, f"SET default_transaction_isolation = '{level}'")
        assert arrives(), level
    leave_out(source, CHANGED_SINCE, THERE_AGAIN)
    assert arrives() != needs_care


def test_a_row_that_was_only_locked_is_logged(source: Connection) -> None:
    query(source, "INSERT INTO employees (emp_id) VALUES (1), (2)")

    def arrives() -> bool:
        query(source, "BEGIN; SELECT FROM employees FOR UPDATE; UPDATE employees SET salary = coalesce(salary, 0) + 1")
        query(source, "COMMIT; INSERT INTO employees VALUES (2) ON CONFLICT (emp_id) DO UPDATE SET city = 'Rome'")
        return query(source, ARRIVES) == query(source, STANDS)

    assert arrives()
    leave_out(source, LOCKED)
    assert not arrives()


def test_rows_that_a_policy_hides_from_the_trigger_are_logged(bare_pipeline: Pipeline, source: Connection) -> None:
    role = f"{bare_pipeline.name}_owner"
    query(source, f"CREATE ROLE {role}; GRANT USAGE, CREATE ON SCHEMA public TO {role}")
    try:
        query(source, f"GRANT ALL ON employees, emp_cdc, emp_cdc_cdc_id_seq TO {role}")
        query(source, f"ALTER FUNCTION employee_cdc_trigger_func() OWNER TO {role}")
        query(source, f"GRANT EXECUTE ON FUNCTION emp_cdc_wake() TO {role}")
        query(source, "ALTER TABLE employees ENABLE ROW LEVEL SECURITY; INSERT INTO employees VALUES (1)")
        upsert = "INSERT INTO employees VALUES (1) ON CONFLICT (emp_id) DO UPDATE SET city = %s"
        query(source, upsert, ("Rome",))
        assert query(source, ARRIVES) == query(source, STANDS)
        leave_out(source, HIDDEN)
        query(source, upsert, ("Oslo",))
        assert query(source, ARRIVES) != query(source, STANDS)
    finally:
        query(source, f"ALTER FUNCTION employee_cdc_trigger_func() OWNER TO current_user; DROP OWNED BY {role}")
        query(source, f"DROP ROLE {role}")


# Nested changes of all kinds, up to three levels deep, some of them taken back.
RANDOM = """
CREATE FUNCTION mess() RETURNS INT LANGUAGE plpgsql AS $$
DECLARE
    here  CONSTANT INT := 1 + random() * 5;
    there CONSTANT INT := 1 + random() * 5;
BEGIN
    CASE (random() * 8)::int
        WHEN 0, 1 THEN INSERT INTO employees (emp_id, salary) VALUES (here, random() * 1000);
        WHEN 2, 3 THEN UPDATE employees SET salary = random() * 1000 WHERE emp_id IN (here, there);
        WHEN 4 THEN UPDATE employees SET emp_id = there WHERE emp_id = here;
        WHEN 5 THEN DELETE FROM employees WHERE emp_id IN (here, there);
        ELSE NULL;
    END CASE;
    IF random() < 0.2 THEN
        RAISE 'taken back';
    END IF;
    RETURN random() * 1000;
EXCEPTION
    WHEN raise_exception OR unique_violation OR triggered_data_change_violation THEN RETURN NULL;
END
$$;
CREATE FUNCTION a_nested() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF pg_trigger_depth() <= 3 THEN
        PERFORM mess();
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER a_after AFTER INSERT OR UPDATE OR DELETE ON employees FOR EACH ROW EXECUTE FUNCTION a_nested();
CREATE TRIGGER a_before BEFORE INSERT OR UPDATE ON employees FOR EACH ROW EXECUTE FUNCTION a_nested();
"""
STATEMENTS = (
    "INSERT INTO employees (emp_id, salary) SELECT n, n FROM generate_series({0}, {0} + 2) AS n ON CONFLICT DO NOTHING",
    "INSERT INTO employees (emp_id, salary) SELECT n, mess() FROM generate_series({0}, {0} + 2) AS n "
    "ON CONFLICT (emp_id) DO UPDATE SET salary = 0",
    "UPDATE employees SET salary = salary + 1",
    "UPDATE employees SET salary = mess() WHERE emp_id < {0}",
    "UPDATE employees SET emp_id = {1} WHERE emp_id = {0}",
    "DELETE FROM employees WHERE emp_id <= {0}",
)


def differences(source: Connection, seed: int) -> int:
    """Return after how many of the statements what arrives is not what stands."""
    at = random.Random(seed)
    query(source, "DELETE FROM employees; SELECT setseed(%s)", (at.random(),))
    count = 0
    for _ in range(60):
        try:
            query(source, at.choice(STATEMENTS).format(at.randint(1, 6), at.randint(1, 6)))
        except (psycopg2.errors.UniqueViolation, psycopg2.errors.TriggeredDataChangeViolation):
            pass
        except psycopg2.errors.CardinalityViolation:
            pass
        count += query(source, ARRIVES) != query(source, STANDS)
    return count


def test_of_random_nested_changes_the_newest_state_arrives(source: Connection, run_seed: int) -> None:
    query(source, RANDOM)
    for seed in (1, 2, 3, *range(run_seed, run_seed + 3)):
        assert differences(source, seed) == 0, f"seed {seed}"
    ((definition,),) = query(source, "SELECT pg_get_functiondef('employee_cdc_trigger_func'::regproc)")
    for part in (CHANGED_SINCE, MARK, THERE_AGAIN):
        leave_out(source, part)
        assert any(differences(source, seed) for seed in range(1, 11)), f"the changes do not need {part[0]}"
        query(source, definition)
