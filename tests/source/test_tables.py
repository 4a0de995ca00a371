"""Tables that are not the specified ones: refused, or reported while the pipeline runs."""

from __future__ import annotations

from harness.database import query
from harness.pipeline import Pipeline

import pytest

COLUMNS = "first_name VARCHAR(100), last_name VARCHAR(100), dob DATE, city VARCHAR(100), salary INT"
PLAIN = f"CREATE TABLE employees (emp_id INT PRIMARY KEY, {COLUMNS})"
LOG = f"""
CREATE TABLE emp_cdc (cdc_id BIGSERIAL PRIMARY KEY, emp_id INT, {COLUMNS}, action VARCHAR(100),
    txid xid8 NOT NULL DEFAULT pg_current_xact_id(), changed_at timestamptz NOT NULL DEFAULT clock_timestamp())
"""


def refuse(pipeline: Pipeline) -> str:
    """Run db_setup.py, which must refuse in one line and leave nothing; returns the line."""
    before = tables(pipeline)
    result = pipeline.run("db_setup.py")
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1), result.stdout + result.stderr
    assert tables(pipeline) == before
    return str(result.stderr)


def tables(pipeline: Pipeline) -> list[object]:
    sql = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1"
    return [query(pipeline.source(), sql), query(pipeline.destination(), sql)]


# What db_setup.py refuses


@pytest.mark.parametrize("side", ["source", "destination"])
@pytest.mark.parametrize(
    ("sql", "complaint"),
    [
        (
            f"CREATE TABLE employees (emp_id INT PRIMARY KEY, {COLUMNS}) PARTITION BY HASH (emp_id)",
            "a partitioned table",
        ),
        (f"{PLAIN}; CREATE TABLE child () INHERITS (employees)", "a table that others inherit from"),
        (f"CREATE TABLE parent (emp_id INT); {PLAIN} INHERITS (parent)", "a table that inherits from another"),
        (f"{PLAIN.replace('TABLE employees', 'TABLE people')}; CREATE VIEW employees AS TABLE people", "a view"),
        (PLAIN.replace("CREATE TABLE", "CREATE UNLOGGED TABLE"), "UNLOGGED"),
        (PLAIN.replace("city VARCHAR(100)", "city VARCHAR(50)"), "city character varying(50)"),
        (PLAIN.replace("salary INT", "salary INT GENERATED ALWAYS AS (1) STORED"), "generates salary"),
    ],
    ids=["partitioned", "with children", "a child", "a view", "unlogged", "a narrower column", "a generated column"],
)
def test_a_table_that_cannot_be_kept_equal_is_refused(
    bare_pipeline: Pipeline, side: str, sql: str, complaint: str
) -> None:
    query(bare_pipeline.source() if side == "source" else bare_pipeline.destination(), sql)
    line = refuse(bare_pipeline)
    assert line.startswith(f"{side}: the table employees")
    assert complaint in line


@pytest.mark.parametrize(
    ("column", "complaint"),
    [
        ("ADD email TEXT NOT NULL", "employees.email is NOT NULL without a default"),
        ("ALTER dob SET NOT NULL", "employees.dob is NOT NULL, and NULL is allowed at the source"),
    ],
    ids=["an extra column", "a captured column"],
)
def test_a_destination_that_is_stricter_than_the_source_is_refused(
    bare_pipeline: Pipeline, column: str, complaint: str
) -> None:
    query(bare_pipeline.destination(), f"{PLAIN}; ALTER TABLE employees {column}")
    assert complaint in refuse(bare_pipeline)


def test_what_the_source_forbids_too_the_destination_may_forbid(bare_pipeline: Pipeline) -> None:
    for connection in (bare_pipeline.source(), bare_pipeline.destination()):
        query(connection, f"{PLAIN}; ALTER TABLE employees ALTER dob SET NOT NULL")
    query(bare_pipeline.source(), "ALTER TABLE employees ADD email TEXT NOT NULL")
    query(bare_pipeline.destination(), "ALTER TABLE employees ADD email TEXT NOT NULL DEFAULT ''")
    bare_pipeline.set_up()
    query(bare_pipeline.source(), "INSERT INTO employees (emp_id, dob, email) VALUES (1, '1815-12-10', 'ada@example')")
    bare_pipeline.drain()
    assert bare_pipeline.equal()


@pytest.mark.parametrize("side", ["source", "destination"])
def test_keys_that_are_always_generated_are_carried_and_repaired(bare_pipeline: Pipeline, side: str) -> None:
    """The destination gets the source's keys all the same, and verify.py --repair does not write the source's."""
    identity = PLAIN.replace("emp_id INT", "emp_id INT GENERATED ALWAYS AS IDENTITY")
    source, destination = bare_pipeline.source(), bare_pipeline.destination()
    query(source, identity if side == "source" else PLAIN)
    query(destination, identity if side == "destination" else PLAIN)
    bare_pipeline.set_up()
    insert = "INSERT INTO employees (emp_id, city) OVERRIDING SYSTEM VALUE VALUES (7, 'Rome'), (8, 'Oslo')"
    query(source, insert)
    bare_pipeline.drain()
    query(source, "UPDATE employees SET salary = 1")
    bare_pipeline.drain()
    assert bare_pipeline.equal()
    query(destination, "UPDATE employees SET city = 'Paris' WHERE emp_id = 7; DELETE FROM employees WHERE emp_id = 8")
    bare_pipeline.start("producer.py")
    bare_pipeline.start("consumer.py")
    result = bare_pipeline.run("verify.py", "--repair")
    assert result.returncode == 0, result.stdout + result.stderr
    assert bare_pipeline.equal()


@pytest.mark.parametrize(
    ("side", "sql", "complaint"),
    [
        ("source", LOG.replace("city VARCHAR(100), ", ""), "emp_cdc that is there has no column city"),
        ("source", LOG.replace("city VARCHAR(100)", "city VARCHAR(50)"), "city character varying(50)"),
        ("source", f"{LOG}; ALTER TABLE emp_cdc ADD note TEXT NOT NULL", "note NOT NULL without a default"),
        ("source", "CREATE TABLE cdc_position (last_offset INT)", "cdc_position that is there has no column only_row"),
        ("source", "CREATE VIEW cdc_position AS SELECT 1 AS last_offset", "a view"),
        ("destination", "CREATE TABLE cdc_applied (emp_id INT PRIMARY KEY, cdc_id INT)", "cdc_id integer"),
        ("destination", "CREATE TABLE cdc_applied (emp_id INT, cdc_id BIGINT)", "PRIMARY KEY (emp_id)"),
    ],
)
def test_a_table_of_ours_that_was_changed_is_refused(
    bare_pipeline: Pipeline, side: str, sql: str, complaint: str
) -> None:
    query(bare_pipeline.source() if side == "source" else bare_pipeline.destination(), sql)
    assert complaint in refuse(bare_pipeline)


def test_a_trigger_that_fails_is_found_by_the_set_up_and_not_by_the_applications(pipeline: Pipeline) -> None:
    """As where somebody adds a column to employees and to the trigger, and forgets the log that is there."""
    source = pipeline.source()
    query(source, "ALTER TABLE emp_cdc RENAME COLUMN action TO kind; ALTER TABLE emp_cdc ADD action VARCHAR(100)")
    query(source, "ALTER TABLE emp_cdc ADD CHECK (kind IS NOT NULL)")
    result = pipeline.run("db_setup.py")
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1), result.stdout + result.stderr
    assert "writes of employees would fail in the trigger" in result.stderr
    assert "ready" not in result.stdout


def test_the_write_on_trial_leaves_nothing_and_leaves_the_tables_own_rules_alone(bare_pipeline: Pipeline) -> None:
    source = bare_pipeline.source()
    query(source, f"{PLAIN}; ALTER TABLE employees ADD CHECK (city IS NOT NULL)")
    query(source, "INSERT INTO employees (emp_id, city) VALUES (-2147483648, 'Rome')")
    bare_pipeline.set_up()
    assert query(source, "SELECT emp_id FROM employees") == [(-2147483648,)]
    assert query(source, "SELECT emp_id, action FROM emp_cdc") == [(-2147483648, "INSERT")]


# What it warns of


@pytest.mark.parametrize(
    ("side", "sql", "warning"),
    [
        ("source", "ALTER TABLE employees ADD email TEXT", "source: employees.email is not captured"),
        ("destination", "ALTER TABLE employees ADD CONSTRAINT paid CHECK (salary > 0)", "CHECK constraint paid"),
        ("destination", "ALTER TABLE employees ADD CONSTRAINT one UNIQUE (city)", "UNIQUE constraint one"),
        ("destination", "CREATE UNIQUE INDEX lonely ON employees (lower(city))", "unique index public.lonely"),
        ("destination", "ALTER TABLE employees ADD CONSTRAINT alone EXCLUDE (city WITH =)", "EXCLUDE constraint alone"),
        (
            "destination",
            "CREATE TABLE badges (emp_id INT CONSTRAINT badge REFERENCES employees)",
            "FOREIGN KEY constraint badge",
        ),
        (
            "destination",
            "CREATE TRIGGER mine BEFORE UPDATE ON employees FOR EACH ROW "
            "EXECUTE FUNCTION suppress_redundant_updates_trigger()",
            "trigger mine",
        ),
    ],
)
def test_what_may_keep_the_tables_from_being_equal_is_warned_of(
    pipeline: Pipeline, side: str, sql: str, warning: str
) -> None:
    assert pipeline.run("db_setup.py").stdout == "source: ready\ndestination: ready\n"
    query(pipeline.source() if side == "source" else pipeline.destination(), sql)
    result = pipeline.run("db_setup.py")
    assert result.returncode == 0, result.stderr
    (line,) = result.stdout.splitlines()[2:]
    assert line.startswith(f"{side}: employees")
    assert warning in line


def test_a_first_set_up_says_nothing_of_rows_where_there_are_none(bare_pipeline: Pipeline) -> None:
    assert bare_pipeline.run("db_setup.py").stdout == "source: ready\ndestination: ready\n"
