"""The rights in PostgreSQL that we grant: with exactly these each script works, without one it cannot.

The statements are read out of sql/*_roles.sql and docs/operations.md, so that these cannot tell anything else.
"""

from __future__ import annotations

import json
import re

from employee import CDCRecord
from harness.database import query
from harness.rights import GRANTS, REFUSED, SIDES, Doors, Grant, impatient

import psycopg2
import pytest

# What each role does: all that its script may have to do, in one run if it can. Returns whether that was done, and what
# the script said.


def write(doors: Doors) -> tuple[bool, str]:
    try:
        with psycopg2.connect(doors.url("source", "app")) as connection:
            query(connection, "INSERT INTO employees (city) VALUES ('Rome')")
            query(connection, "UPDATE employees SET city = 'Paris' WHERE city = 'Rome'")
            query(connection, "DELETE FROM employees WHERE city = 'Paris'")
            query(connection, "TRUNCATE employees")
            connection.rollback()
    except psycopg2.Error as error:
        return False, f"source: {error}"
    return True, ""


def publish(doors: Doors) -> tuple[bool, str]:
    """Publish, save the position and prune, after a restore that left the log back in time, on another server."""
    doors.as_superuser("source", "INSERT INTO employees (emp_id) VALUES (-3) ON CONFLICT DO NOTHING")
    doors.as_superuser("source", "UPDATE employees SET salary = 1 WHERE emp_id = -3")
    doors.as_superuser("source", "UPDATE cdc_position SET system_identifier = 1")
    ((drawn,),) = doors.as_superuser("source", "SELECT last_value FROM emp_cdc_cdc_id_seq")
    doors.pipeline.send(CDCRecord(drawn + 5, -1, action="DELETE").to_json())

    def done() -> bool:
        return doors.as_superuser("source", "SELECT count(*) FROM emp_cdc") == [(0,)]

    return doors.watch("cdc_producer", "producer.py", done, RETENTION="0 s")


def consume(doors: Doors) -> tuple[bool, str]:
    """Apply an INSERT, an UPDATE of a known employee, and a DELETE."""
    ((newest,),) = doors.as_superuser("destination", "SELECT max(cdc_id) FROM cdc_applied")
    changes = [
        CDCRecord(newest + 1000, newest + 1000, city="Rome", action="INSERT"),
        CDCRecord(newest + 1001, 1, city=f"Rome {newest}", action="UPDATE"),
        CDCRecord(newest + 1002, 2, action="DELETE"),
    ]
    doors.as_superuser("destination", "INSERT INTO employees (emp_id) VALUES (2) ON CONFLICT DO NOTHING")
    doors.pipeline.send(*(change.to_json() for change in changes))

    def done() -> bool:
        rows = dict(doors.as_superuser("destination", "SELECT emp_id, city FROM employees"))
        return newest + 1000 in rows and rows.get(1) == f"Rome {newest}" and 2 not in rows

    return doors.watch("cdc_consumer", "consumer.py", done)


def look(doors: Doors) -> tuple[bool, str]:
    """By `status` and by `trace`."""
    result = doors.run("cdc_monitor", "admin.py", "status", "--json")
    found = json.loads(result.stdout)
    errors = [found[side]["error"] for side in SIDES if "error" in found[side]]
    if unknown := found["destination"].get("comparison_unknown"):
        errors.append(f"destination: {unknown}")
    traced = doors.run("cdc_monitor", "admin.py", "trace", "1", "--json")
    errors += json.loads(traced.stdout)["errors"].values()
    return not errors, "\n".join([result.stderr, traced.stderr, *errors])


def differ(doors: Doors) -> None:
    """A row that the destination lacks, one that it has too many, and changes applied that no log has drawn."""
    doors.as_superuser("source", "INSERT INTO employees (emp_id) VALUES (-4) ON CONFLICT DO NOTHING")
    doors.as_superuser("destination", "DELETE FROM employees WHERE emp_id = -4")
    doors.as_superuser("destination", "INSERT INTO employees (emp_id) VALUES (-1) ON CONFLICT DO NOTHING")
    ((drawn,),) = doors.as_superuser("source", "SELECT last_value FROM emp_cdc_cdc_id_seq")
    beyond = "INSERT INTO cdc_applied VALUES (-2, %(id)s) ON CONFLICT (emp_id) DO UPDATE SET cdc_id = %(id)s"
    doors.as_superuser("destination", beyond, {"id": drawn + 5000})


def monitor(doors: Doors) -> tuple[bool, str]:
    done, said = look(doors)
    if not done:
        return done, said
    differ(doors)
    result = doors.run("cdc_monitor", impatient(doors, "verify", "CONNECT_WAIT"), "--wait", "0")
    return "DIFFERENT: " in result.stdout, result.stdout + result.stderr


def repair(doors: Doors) -> tuple[bool, str]:
    differ(doors)
    result = doors.run("cdc_repair", impatient(doors, "verify", "CONNECT_WAIT"), "--repair", "--wait", "0")
    if REFUSED in result.stderr:
        return False, result.stdout + result.stderr
    with doors.pipeline.running("producer.py"), doors.pipeline.running("consumer.py"):
        result = doors.run("cdc_repair", "verify.py", "--repair", "--wait", "20")
    return result.returncode == 0, result.stdout + result.stderr


def demonstrate(doors: Doors) -> tuple[bool, str]:
    """At first without the pipeline, and see what it says then."""
    result = doors.run("cdc_demo", impatient(doors, "test_cdc", "WAIT"))
    if "did not arrive" not in result.stdout:
        return False, result.stdout + result.stderr
    doors.pipeline.drain()  # what others have left
    for side in SIDES:
        doors.as_superuser(side, "TRUNCATE employees")
    with doors.pipeline.running("producer.py"), doors.pipeline.running("consumer.py"):
        result = doors.run("cdc_demo", "test_cdc.py")
    return result.returncode == 0, result.stdout + result.stderr


WORK = {
    "app": write,
    "cdc_producer": publish,
    "cdc_consumer": consume,
    "cdc_monitor": monitor,
    "cdc_repair": repair,
    "cdc_demo": demonstrate,
}
OF_SCRIPTS = [grant for grant in GRANTS if grant.role in WORK]


@pytest.mark.parametrize("role", WORK)
def test_with_exactly_its_rights_a_role_does_its_work(doors: Doors, role: str) -> None:
    done, said = WORK[role](doors)
    assert done, said
    assert REFUSED not in said


@pytest.mark.long
@pytest.mark.parametrize("grant", OF_SCRIPTS, ids=str)
def test_without_one_right_the_work_is_not_done_and_one_line_names_what_is_refused(doors: Doors, grant: Grant) -> None:
    with doors.without(grant):
        done, said = WORK[grant.role](doors)
    assert not done, said
    assert [line for line in said.splitlines() if grant.side in line and re.search(grant.refusal(), line)], said
    assert "Traceback" not in said


def test_a_script_that_waits_for_a_right_goes_on_once_it_is_granted(doors: Doors) -> None:
    missing = next(grant for grant in GRANTS if (grant.role, grant.name) == ("cdc_producer", "emp_cdc"))
    with doors.without(missing):
        producer = doors.pipeline.start("producer.py", **doors.urls("cdc_producer"))
        producer.wait_for(f"{REFUSED} for table emp_cdc; waiting")
    doors.as_superuser("source", "INSERT INTO employees (emp_id) VALUES (-5) ON CONFLICT DO NOTHING")
    producer.wait_for("published")
    assert producer.stop() == 0


def test_the_application_reaches_nothing_but_employees(doors: Doors) -> None:
    for statement in (
        "SELECT FROM emp_cdc",
        "INSERT INTO emp_cdc (emp_id, action) VALUES (1, 'DELETE')",
        "SELECT nextval('emp_cdc_cdc_id_seq')",
        "UPDATE cdc_position SET last_offset = 0",
        "CREATE TABLE mine ()",
        "CREATE TEMP TABLE mine ()",
    ):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege), psycopg2.connect(doors.url("source", "app")) as app:
            query(app, statement)


def test_the_table_of_status_does_not_call_a_server_that_refuses_one_that_does_not_answer(doors: Doors) -> None:
    missing = next(grant for grant in GRANTS if (grant.role, grant.name) == ("cdc_monitor", "emp_cdc"))
    with doors.without(missing):
        shown = doors.pipeline.run("admin.py", "status", COLUMNS="200", **doors.urls("cdc_monitor")).stdout
    assert re.search(rf"^! source at .*{REFUSED} for table emp_cdc$", shown, re.MULTILINE), shown
    assert "not answering" not in shown


def test_status_shows_where_the_producer_runs_to_a_role_that_may_read_it(doors: Doors) -> None:
    def shown() -> str:
        return str(
            json.loads(doors.run("cdc_monitor", "admin.py", "status", "--json").stdout)["source"]["active_producer"]
        )

    with doors.pipeline.running("producer.py") as producer:
        producer.wait_for("publishing from")
        assert re.fullmatch(r"pid \d+", shown())
        doors.as_superuser("source", f"GRANT pg_read_all_stats TO {doors.role('cdc_monitor')}")
        assert re.fullmatch(r"pid \d+ at \S+", shown())
