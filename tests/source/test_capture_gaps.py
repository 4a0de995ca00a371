"""What is not captured any more: reported by a running pipeline, by status and by verify.py, and mended by a set-up."""

from __future__ import annotations

import json
import time

from harness.database import query
from harness.pipeline import Pipeline
from harness.producing import wait_until_published
from harness.waiting import wait_until

import pytest

COLUMNS = "first_name VARCHAR(100), last_name VARCHAR(100), dob DATE, city VARCHAR(100), salary INT"
PLAIN = f"CREATE TABLE employees (emp_id INT PRIMARY KEY, {COLUMNS})"
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


def test_triggers_that_are_off_between_two_checks_are_noticed(pipeline: Pipeline) -> None:
    source = pipeline.source()
    script = pipeline.start(pipeline.sabotaged("import producer", "from cdc import capture", "capture.CHECK_EVERY = 1"))
    script.wait_for("publishing from")
    query(source, "INSERT INTO employees (city) VALUES ('Rome')")
    wait_until_published(source, 5)  # by then it has checked
    query(source, f"{TRIGGER_OFF}; ALTER TABLE employees ENABLE ALWAYS TRIGGER employee_cdc_trigger")
    script.wait_for("source: the triggers were off or changed for a while; run python verify.py --repair", 10)
    assert pipeline.run("db_setup.py").returncode == 0  # finds nothing to do
    time.sleep(2.5)
    assert script.output().count("for a while") == 1


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


def test_a_row_written_while_the_trigger_is_checked_waits_for_nobody(pipeline: Pipeline) -> None:
    """The checks read catalogues only."""
    source, other = pipeline.source(), pipeline.source()
    query(source, "BEGIN; LOCK TABLE employees IN ACCESS EXCLUSIVE MODE")
    with pipeline.running("producer.py") as producer:
        producer.wait_for("publishing from")
        query(other, "INSERT INTO emp_cdc (emp_id, action) VALUES (1, 'DELETE')")
        wait_until(lambda: len(pipeline.messages()) == 1, 15)
    query(source, "ROLLBACK")
