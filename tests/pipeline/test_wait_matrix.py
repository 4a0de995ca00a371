"""Waits of every kind, in every script: reported within 10 s, ended by a signal within 5 s, over by themselves."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from harness.consuming import SAME_PLACE, change
from harness.database import WAITING, query
from harness.destination import wait_for_rows
from harness.pipeline import Pipeline
from harness.script import Script
from harness.waiting import wait_until

import pytest
from psycopg2.extensions import connection as Connection

SAID_WITHIN = 10.0
ENDED_WITHIN = 5.0
ADVISORY_LOCKS = """
SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database
WHERE locktype = 'advisory' AND datname = current_database()
"""
HOLDER = "held by pid {}, user postgres, application a user"


@contextmanager
def locked(connection: Connection, *tables: str) -> Iterator[str]:
    """A user holds tables in a transaction; gives the words in which a script names the user."""
    query(connection, "SET application_name = 'a user'")
    query(connection, f"BEGIN; LOCK TABLE {', '.join(tables)}")
    try:
        yield HOLDER.format(connection.info.backend_pid)
    finally:
        query(connection, "ROLLBACK")


def end(script: Script, number: int = signal.SIGTERM) -> int:
    """Stop a script that waits; returns its exit code."""
    started = time.monotonic()
    code = script.stop(number)
    assert time.monotonic() - started < ENDED_WITHIN, script.output()
    assert "Traceback" not in script.output()
    return code


@pytest.mark.timing
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_producer_that_waits_for_a_lock_says_for_whose_and_can_be_stopped(
    shared: Pipeline, number: signal.Signals
) -> None:
    script = shared.start("producer.py")
    script.wait_for("publishing from")
    with locked(shared.source(), "emp_cdc") as holder:
        script.wait_for(holder, SAID_WITHIN)
        assert end(script, number) == 0
    assert "goes on" not in script.output()
    assert query(shared.source(), ADVISORY_LOCKS) == [(0,)]


@pytest.mark.timing
def test_a_consumer_that_waits_for_a_row_keeps_its_group_says_for_whose_and_goes_on(shared: Pipeline) -> None:
    user = shared.destination()
    query(user, "INSERT INTO employees (emp_id) VALUES (1)")
    script = shared.start("consumer.py", KAFKA_MAX_POLL_INTERVAL_MS="6000", **SAME_PLACE)
    script.wait_for("partitions assigned")
    query(user, "SET application_name = 'a user'")
    query(user, "BEGIN; UPDATE employees SET city = 'mine' WHERE emp_id = 1")
    shared.send(change(1, 1), change(2, 2), partition=0)
    script.wait_for(HOLDER.format(user.info.backend_pid), SAID_WITHIN)
    assert shared.status()["kafka"]["members"] != []
    query(user, "COMMIT")
    script.wait_for("goes on after")
    wait_for_rows(shared, [1, 2])
    assert end(script) == 0
    assert "leaving" not in script.output()
    assert "revoked" not in script.output().partition("goes on")[0]


@pytest.mark.timing
def test_a_consumer_that_waits_for_a_table_can_be_stopped_and_loses_nothing(shared: Pipeline) -> None:
    user = shared.destination()
    query(user, "TRUNCATE employees, cdc_applied")
    script = shared.start("consumer.py", **SAME_PLACE)
    script.wait_for("partitions assigned")
    with locked(user, "employees"):
        shared.send(change(11, 11), partition=0)
        wait_until(lambda: query(user, WAITING) == [(1,)], what="the consumer waits for the table")
        assert end(script) == 0
        assert "will be read again" in script.output()
    script = shared.start("consumer.py", **SAME_PLACE)
    wait_for_rows(shared, [11])
    assert end(script) == 0


@pytest.mark.timing
@pytest.mark.parametrize("script", ["verify.py", "test_cdc.py", "db_setup.py"])
def test_a_script_that_waits_for_a_lock_is_ended_by_ctrl_c_in_one_line(shared: Pipeline, script: str) -> None:
    with locked(shared.source(), "employees"):
        started = shared.start(script)
        time.sleep(3)
        assert end(started, signal.SIGINT) == (3 if script == "verify.py" else 1)
        assert started.output().splitlines()[-1].startswith("stopped")


@pytest.mark.timing
def test_status_says_in_time_who_holds_a_table(shared: Pipeline) -> None:
    with locked(shared.source(), "employees") as source, locked(shared.destination(), "employees") as destination:
        result = shared.run("admin.py", "status", seconds=20)
    assert result.returncode == 1
    text = " ".join(result.stdout.replace("│", " ").split())
    assert source in text
    assert destination in text


def test_a_second_signal_ends_a_script_at_once(shared: Pipeline) -> None:
    with locked(shared.source(), "emp_cdc"):
        script = shared.start("producer.py")
        time.sleep(2)
        script.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        started = time.monotonic()
        assert script.stop() == -signal.SIGTERM
        assert time.monotonic() - started < 1
