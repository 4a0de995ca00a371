"""admin.py status: each alarm, raised by the real condition and gone with it."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from contextlib import closing

from cdc.schema import VERSION
from cdc.status.alarms import source_alarms
from harness.consuming import change
from harness.database import query
from harness.kafka import client_settings
from harness.pipeline import Pipeline
from harness.script import halted
from harness.showing import alarms, screen, status_of
from harness.waiting import wait_until

import pytest
from confluent_kafka import Consumer

SOON = (
    "import admin",
    "from cdc.status import alarms, flow",
    "alarms.STALLED_AFTER = alarms.HELD_LONG = 0.5; alarms.QUIET_AFTER = 3; flow.STILL_FOR = 0.6",
)
TAKE = "SELECT pg_advisory_lock(6513763, {})"
TRIGGERS = {
    "disabled": "ALTER TABLE employees DISABLE TRIGGER employee_cdc_trigger",
    "not ALWAYS": "ALTER TABLE employees ENABLE TRIGGER employee_cdc_trigger",
    "missing": "DROP TRIGGER employee_cdc_trigger ON employees",
}


@pytest.fixture(scope="module")
def carrying(shared: Pipeline) -> Iterator[Pipeline]:
    """Both scripts run, and nothing is wrong, neither before the tests here nor after them."""
    query(shared.source(), "INSERT INTO employees (emp_id) SELECT generate_series(1, 9)")
    scripts = [shared.start("producer.py"), shared.start("consumer.py")]
    wait_until_in_order(shared)
    yield shared
    wait_until_in_order(shared)
    assert [script.stop() for script in scripts] == [0, 0]


def wait_until_in_order(pipeline: Pipeline) -> None:
    def in_order() -> bool:
        found = status_of(pipeline)
        return bool(found["in_sync"] and not found["alarms"])

    wait_until(in_order, what="in sync and no alarm")


@pytest.fixture(scope="module")
def quick(shared: Pipeline) -> str:
    """admin.py, which raises its alarms sooner."""
    return shared.sabotaged(*SOON)


def update(pipeline: Pipeline, emp_id: int) -> None:
    query(pipeline.source(), "UPDATE employees SET salary = 1 WHERE emp_id = %(id)s", {"id": emp_id})


def test_a_quiet_system_is_no_stall(carrying: Pipeline, quick: str) -> None:
    time.sleep(1)
    found = status_of(carrying, quick)
    assert found["source"]["saved_seconds"] > 0.5
    assert (found["alarms"], found["oldest_change_seconds"]) == ([], 0)


def test_a_trigger_that_does_not_capture(carrying: Pipeline) -> None:
    for state, sql in TRIGGERS.items():
        query(carrying.source(), sql)
        what = f"the trigger employee_cdc_trigger is {state}"
        assert alarms(carrying) == [("source", "error", what, "run python db_setup.py")]
    assert screen(carrying)["answer"] == "in sync: no; not all changes are captured"
    assert carrying.run("db_setup.py").returncode == 0
    wait_until_in_order(carrying)


def test_an_active_producer_that_is_stopped(carrying: Pipeline, quick: str) -> None:
    producer = carrying.scripts[0]
    name = rf"the producer \(script {producer.process.pid} on {socket.gethostname()}\)"
    with halted(producer):
        time.sleep(3.2)
        ((_, level, idle, _),) = alarms(carrying, quick)
        update(carrying, 2)
        time.sleep(0.6)
        ((_, _, busy, do),) = alarms(carrying, quick)
    assert level == "error"
    assert re.fullmatch(rf"{name} has done nothing for \d\.\d s", idle)
    assert re.fullmatch(rf"{name} publishes nothing; the oldest of 1 change waits for \d\.\d s", busy)
    assert do == "it is stopped, or waits for Kafka: see its log, or start it again"


def test_a_consumer_that_does_not_progress(carrying: Pipeline, quick: str) -> None:
    user = carrying.destination()
    query(user, "BEGIN; UPDATE employees SET city = 'mine' WHERE emp_id = 5")
    update(carrying, 5)
    time.sleep(0.6)
    found = status_of(carrying, quick)
    check = carrying.run("admin.py", "status", "--check", "--max-delay", "0.5")
    query(user, "ROLLBACK")
    (part,) = [part for part in found["kafka"]["partitions"] if part["stuck"]]
    (alarm,) = found["alarms"]
    assert (alarm["stage"], alarm["level"]) == ("group", "error")
    what = rf"partition {part['partition']}: {part['member']} applies nothing, the oldest change waits for \d\.\d s"
    assert re.fullmatch(what, alarm["what"])
    assert 0.5 < found["oldest_change_seconds"] < 30
    assert check.returncode == 1
    assert re.fullmatch(r"FAILED: the oldest change that has not arrived was made \d\.\d s ago\n", check.stdout)


def test_an_open_transaction_that_holds_changes_back(carrying: Pipeline, quick: str) -> None:
    writer = carrying.source()
    query(writer, "SET application_name = 'a long report'; BEGIN; INSERT INTO employees (emp_id) VALUES (10)")
    time.sleep(0.6)
    found = status_of(carrying, quick)
    query(writer, "ROLLBACK")
    (held,) = found["source"]["open_transactions"]
    pid = writer.info.backend_pid
    assert (held["pid"], held["user"], held["application"]) == (pid, "postgres", "a long report")
    assert 0.6 <= held["seconds"] < 30
    (alarm,) = found["alarms"]
    assert (alarm["level"], alarm["do"]) == ("warning", f"end it with pg_terminate_backend({pid})")
    holder = f"pid {pid}, user postgres, application a long report"
    assert re.fullmatch(rf"an open transaction holds changes back for \d\.\d s: {holder}", alarm["what"])


def test_a_column_that_is_not_captured_is_a_warning_and_the_check_passes(carrying: Pipeline) -> None:
    source = carrying.source()
    query(source, "ALTER TABLE employees ADD COLUMN email TEXT")
    check = carrying.run("admin.py", "status", "--check", "--max-delay", "60")
    query(source, "ALTER TABLE employees DROP COLUMN email")
    assert (check.returncode, check.stderr) == (0, "")
    line = "OK: in sync; warning: employees.email is not captured: a further column cannot be captured\n"
    assert check.stdout == line


def test_tables_of_another_schema_version(carrying: Pipeline) -> None:
    for version, do in (VERSION + 1, "install newer scripts"), (0, "run python db_setup.py"):
        query(carrying.source(), f"COMMENT ON TABLE emp_cdc IS 'schema version {version}'")
        query(carrying.destination(), f"COMMENT ON TABLE cdc_applied IS 'schema version {version}'")
        what = f"the tables are of schema version {version}, these scripts need {VERSION}"
        assert alarms(carrying) == [(side, "error", f"{side}: {what}", do) for side in ("source", "destination")]
    assert carrying.run("db_setup.py").returncode == 0


def test_rows_that_nobody_sent(carrying: Pipeline) -> None:
    query(carrying.destination(), "INSERT INTO employees (emp_id) VALUES (-1), (-2)")
    found = alarms(carrying)
    query(carrying.destination(), "DELETE FROM employees WHERE emp_id < 0")
    what = "nothing is on its way, and the destination has 2 rows more than the source"
    assert found == [("destination", "error", what, "run python verify.py --repair")]


def test_nobody_at_work_strangers_on_the_locks_and_a_member_that_reads_something_else(pipeline: Pipeline) -> None:
    no_producer = ("producer", "error", "no producer is active", "start python producer.py")
    no_consumer = ("group", "error", f"no consumer is in the group {pipeline.name}", "start python consumer.py")
    assert alarms(pipeline) == [no_producer, no_consumer]
    check = pipeline.run("admin.py", "status", "--check")
    assert (check.returncode, check.stderr) == (1, "")
    lines = [f"{what}: {do}" for _, _, what, do in (no_producer, no_consumer)]
    assert check.stdout == f"FAILED: {'; '.join(lines)}\n"

    stranger = pipeline.source()
    pid = stranger.info.backend_pid
    query(stranger, "SET application_name = 'psql'")
    query(stranger, TAKE.format(2))
    asleep = f"the lock of the producer's sleep is held by pid {pid}, user postgres, application psql"
    end = f"end it with pg_terminate_backend({pid})"
    assert ("producer", "warning", f"{asleep}; the idle producer cannot sleep", end) in alarms(pipeline)
    query(stranger, TAKE.format(1))
    held = f"no producer is active; its lock is held by pid {pid}, user postgres, application psql"

    settings = {**client_settings(), "group.id": pipeline.name, "client.id": "employee-cdc"}
    with closing(Consumer(settings)) as member:
        member.subscribe([f"{pipeline.topic}_dlq"])
        wait_until(lambda: member.poll(0.1) or member.assignment(), what="a member")
        pipeline.send(change(1, 1), partition=1)
        time.sleep(0.6)
        errors = [alarm for alarm in alarms(pipeline, pipeline.sabotaged(*SOON)) if alarm[1] == "error"]
    unread = ("group", "error", "partition 1: no consumer reads it", "start python consumer.py again")
    assert errors == [("producer", "error", held, "end it with pg_terminate_backend(pid)"), unread]


def test_a_stranger_whose_pid_begins_like_the_producers_is_not_taken_for_it(shared: Pipeline) -> None:
    source = status_of(shared)["source"]
    lock = {"lock": "asleep", "user": "bob", "application": "psql"}
    for pid, expected in ((1234, []), (12, ["end it with pg_terminate_backend(12)"])):
        figures = {**source, "active_producer": "pid 1234 at db1", "advisory_locks": [{**lock, "pid": pid}]}
        found = [alarm.do for alarm in source_alarms(figures) if alarm.level == "warning"]
        assert found == expected
