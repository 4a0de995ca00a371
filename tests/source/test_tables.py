"""Tables that are not the specified ones: refused, warned of, or told while the pipeline runs."""

from __future__ import annotations

import json

from harness.database import query
from harness.pipeline import Pipeline
from harness.waiting import wait_until

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


# What a running pipeline notices

TRIGGER_OFF = "ALTER TABLE employees DISABLE TRIGGER employee_cdc_trigger"
RENAME = "ALTER TABLE employees RENAME TO people"
CHANGES = {
    "a trigger disabled": (TRIGGER_OFF, "the trigger employee_cdc_trigger is disabled; run python db_setup.py"),
    "a trigger dropped": (
        "DROP TRIGGER employee_cdc_truncate_trigger ON employees",
        "the trigger employee_cdc_truncate_trigger is missing; run python db_setup.py",
    ),
    "triggers as pg_restore leaves them": (
        "ALTER TABLE employees DISABLE TRIGGER ALL; ALTER TABLE employees ENABLE TRIGGER ALL",
        "the trigger employee_cdc_trigger is not ALWAYS; run python db_setup.py",
    ),
    "a trigger narrowed": (
        "CREATE OR REPLACE TRIGGER employee_cdc_trigger AFTER INSERT ON employees FOR EACH ROW "
        "EXECUTE FUNCTION employee_cdc_trigger_func(); "
        "ALTER TABLE employees ENABLE ALWAYS TRIGGER employee_cdc_trigger",
        "the trigger employee_cdc_trigger is changed; run python db_setup.py",
    ),
    "the table renamed": (
        RENAME,
        "there is no table employees (the triggers are on public.people: was employees renamed?); "
        "run python db_setup.py",
    ),
    "the table replaced": (
        f"{RENAME}; {PLAIN}",
        "the trigger employee_cdc_trigger is missing (the triggers are on public.people: was employees renamed?); "
        "run python db_setup.py",
    ),
    "a column added": ("ALTER TABLE employees ADD email TEXT", "employees.email is not captured"),
    "a column dropped": ("ALTER TABLE employees DROP city", "employees has no column city; add or rename it"),
    "a column widened": (
        "ALTER TABLE employees ALTER city TYPE TEXT",
        "employees has city text; it must be character varying(100)",
    ),
    "a child": ("CREATE TABLE child () INHERITS (employees)", "employees is a table that others inherit from"),
    "row-level security forced": (
        "ALTER TABLE employees FORCE ROW LEVEL SECURITY",
        "row-level security is forced on employees",
    ),
}


@pytest.mark.parametrize(("sql", "line"), CHANGES.values(), ids=CHANGES.keys())
def test_status_and_verify_name_what_is_not_captured(pipeline: Pipeline, sql: str, line: str) -> None:
    source = pipeline.source()
    if "OR REPLACE TRIGGER" in sql and query(source, "SHOW server_version_num")[0][0] < "140000":
        sql = sql.replace("CREATE OR REPLACE", "DROP TRIGGER employee_cdc_trigger ON employees; CREATE")
    query(source, sql)
    verify = pipeline.run("verify.py", "--json", "--wait", "1")
    assert f"source: {line}" in verify.stderr
    said = json.loads(verify.stdout)
    if "error" not in said:  # without a table or a column it cannot compare
        assert any(line in text for text in said["not_captured"]), said
    result = json.loads(pipeline.run("admin.py", "status", "--json").stdout)
    if "error" not in result["source"]:
        said = result["source"]["capture_gaps"] + result["source"]["columns_not_captured"]
        assert any(line in text for text in said)
    assert result["in_sync"] is (line == "employees.email is not captured")


def test_a_running_producer_says_what_is_not_captured_once_and_when_it_is_captured_again(running: Pipeline) -> None:
    producer, source = running.scripts[0], running.source()
    query(
        source, f"{TRIGGER_OFF}; ALTER TABLE employees ADD email TEXT; ALTER TABLE employees FORCE ROW LEVEL SECURITY"
    )
    for line in ("employee_cdc_trigger is disabled", "employees.email is not captured", "row-level security is forced"):
        producer.wait_for(line, 15)
    query(source, "ALTER TABLE employees NO FORCE ROW LEVEL SECURITY; ALTER TABLE employees DROP email")
    assert running.run("db_setup.py").returncode == 0
    producer.wait_for("employees is captured", 15)
    assert producer.output().count("is disabled") == producer.output().count("email is not captured") == 1


def test_a_producer_started_on_a_table_that_is_not_captured_says_so_and_publishes_the_log(pipeline: Pipeline) -> None:
    source = pipeline.source()
    query(source, "INSERT INTO employees (city) VALUES ('Rome')")
    query(source, f"{TRIGGER_OFF}; ALTER TABLE employees ADD email TEXT")
    result = pipeline.run("producer.py", "--once")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "the trigger employee_cdc_trigger is disabled" in result.stdout
    assert "employees.email is not captured" in result.stdout
    assert len(pipeline.messages()) == 1


def test_a_set_up_after_the_triggers_were_off_says_that_deletes_need_a_repair(running: Pipeline) -> None:
    source = running.source()
    query(source, "INSERT INTO employees (emp_id, city) VALUES (1, 'kept'), (3, 'deleted meanwhile')")
    running.wait_until_equal()
    query(source, "ALTER TABLE employees DISABLE TRIGGER ALL")
    query(source, "DELETE FROM employees WHERE emp_id = 3; UPDATE employees SET salary = 1 WHERE emp_id = 1")
    result = running.run("db_setup.py")
    assert "run python verify.py --repair for employees that were deleted meanwhile" in result.stdout
    assert differences(running) == [3]
    assert running.run("verify.py", "--repair").returncode == 0
    assert running.equal()


def differences(pipeline: Pipeline) -> list[int]:
    result = json.loads(pipeline.run("verify.py", "--json").stdout)
    return [difference["emp_id"] for difference in result["differences"]]


def test_a_first_set_up_says_nothing_of_rows_where_there_are_none(bare_pipeline: Pipeline) -> None:
    assert bare_pipeline.run("db_setup.py").stdout == "source: ready\ndestination: ready\n"


def test_a_row_written_while_the_trigger_is_checked_waits_for_nobody(pipeline: Pipeline) -> None:
    """The checks read catalogues only."""
    source, other = pipeline.source(), pipeline.source()
    query(source, "BEGIN; LOCK TABLE employees IN ACCESS EXCLUSIVE MODE")
    with pipeline.running("producer.py") as producer:
        producer.wait_for("publishing from")
        query(other, "INSERT INTO emp_cdc (emp_id, action) VALUES (1, 'DELETE')")
        wait_until(lambda: len(pipeline.messages()) == 1, 15)
    query(source, "ROLLBACK")
