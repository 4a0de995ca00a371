"""The producer's lock in a stranger's hands: any role that may connect can take it, so whoever has it is named."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from harness.database import WAITING, administer, query
from harness.own_servers import own_database
from harness.pipeline import Pipeline, new_pipeline
from harness.showing import screen, status_of
from harness.waiting import wait_until

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection

OFFSET = 5500  # of the port of the server here
TAKE = "SELECT pg_advisory_lock(6513763, 1)"


@pytest.fixture
def bob(pipeline: Pipeline) -> Iterator[str]:
    """A role that may connect and nothing else; its name holds what a terminal would act upon."""
    role = f"{pipeline.name}_bob\n[red]"
    administer(pipeline.source_url, f"CREATE ROLE \"{role}\" LOGIN PASSWORD 'bob'")
    yield role
    for connection in pipeline.connections:
        connection.close()
    administer(pipeline.source_url, f'DROP ROLE "{role}"')


def session(pipeline: Pipeline, role: str = "", application: str = "psql") -> tuple[Connection, str]:
    """A session with an application's name, and how it is to be called."""
    login: dict[str, Any] = {"user": role, "password": "bob"} if role else {}
    connection: Connection = psycopg2.connect(pipeline.source_url, application_name=application, **login)
    connection.autocommit = True
    pipeline.connections.append(connection)
    ((pid, user),) = query(connection, "SELECT pg_backend_pid(), current_user")
    return connection, f"pid {pid}, user {repr(user)[1:-1]}, application {application}"


def source_status(pipeline: Pipeline) -> dict[str, Any]:
    source: dict[str, Any] = json.loads(pipeline.run("admin.py", "status", "--json").stdout)["source"]
    return source


@pytest.fixture
def preparing(stack: None, tmp_path: Path) -> Iterator[Pipeline]:
    """A pipeline on a source that allows prepared transactions: PostgreSQL does not, unless its settings do."""
    with own_database("source", OFFSET, max_prepared_transactions="1"), new_pipeline(tmp_path) as pipeline:
        pipeline.set_up()
        yield pipeline


def test_a_standby_names_the_stranger_that_holds_the_lock_and_the_next_one_and_takes_over(
    pipeline: Pipeline, bob: str
) -> None:
    first, name = session(pipeline, bob)
    second, other_name = session(pipeline, application="x")
    query(first, TAKE)
    producer = pipeline.start("producer.py")
    producer.wait_for(f"standing by: the producer lock is held by {name}; if that is no producer, end it")
    first.close()
    query(second, TAKE)
    producer.wait_for(f"the producer lock is held by {other_name}; ")
    second.close()
    producer.wait_for("publishing from")
    assert producer.output().count("standing by") == 2
    assert "another producer" not in producer.output()


def test_a_standby_says_it_when_a_producer_follows_on_a_stranger(pipeline: Pipeline, bob: str) -> None:
    stranger, name = session(pipeline, bob)
    query(stranger, TAKE)
    producer = pipeline.start("producer.py")
    producer.wait_for(name)
    ours, _ = session(pipeline, application="employee-cdc")
    stranger.close()
    query(ours, TAKE)
    producer.wait_for("another producer is active; standing by")


def test_once_names_the_stranger_that_holds_the_lock(pipeline: Pipeline, bob: str) -> None:
    stranger, name = session(pipeline, bob)
    query(stranger, TAKE)
    result = pipeline.run("producer.py", "--once")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"nothing published: the producer lock is held by {name}; ")


def test_status_counts_only_a_producer_as_the_active_one(pipeline: Pipeline, bob: str) -> None:
    stranger, name = session(pipeline, bob, "employee-cdc")  # a name is anybody's to take
    query(stranger, TAKE)
    found = source_status(pipeline)
    assert (found["active_producer"], found["producer_lock_held_by"]) == (None, name)
    assert f"none; the lock is held by {name}; end it with" in screen(pipeline)["producer"]
    query(stranger, "SELECT pg_advisory_unlock_all()")

    operator, name = session(pipeline, application="psql")  # may update cdc_position, but is no producer
    query(operator, TAKE)
    found = source_status(pipeline)
    assert (found["active_producer"], found["producer_lock_held_by"]) == (None, name)
    query(operator, "SELECT pg_advisory_unlock_all()")

    with pipeline.running("producer.py") as producer:
        producer.wait_for("publishing from")
        found = source_status(pipeline)
        assert re.fullmatch(r"pid \d+ at \S+", found["active_producer"])
        assert found["producer_lock_held_by"] is None
    assert screen(pipeline)["producer"].endswith("none; start python producer.py")


def test_a_producer_is_known_by_its_role_and_the_application_name_that_the_settings_give(pipeline: Pipeline) -> None:
    with pipeline.running("producer.py", PGAPPNAME="cdc-eu") as producer:
        producer.wait_for("publishing from")
        result = pipeline.run("producer.py", "--once", PGAPPNAME="cdc-eu")
        assert result.stderr.startswith("another producer is active")


def test_a_session_that_waits_for_the_lock_is_not_named(pipeline: Pipeline) -> None:
    holder, name = session(pipeline)
    query(holder, TAKE)
    with closing(psycopg2.connect(pipeline.source_url, async_=True)) as waiting:
        wait_until(lambda: waiting.poll() == psycopg2.extensions.POLL_OK)
        waiting.cursor().execute(TAKE)
        wait_until(lambda: query(holder, WAITING) == [(1,)])
        assert source_status(pipeline)["producer_lock_held_by"] == name


def test_another_lock_whose_two_halves_read_the_same_is_not_taken_for_it(pipeline: Pipeline) -> None:
    stranger, _ = session(pipeline)
    query(stranger, "SELECT pg_advisory_lock(6513763::bigint << 32 | 1)")
    found = source_status(pipeline)
    assert (found["active_producer"], found["producer_lock_held_by"]) == (None, None)


def test_a_prepared_transaction_that_holds_the_lock_is_named(preparing: Pipeline) -> None:
    """It has no session, and holds its locks until somebody ends it."""
    pipeline = preparing
    begin = "BEGIN; SET LOCAL cdc.notify = off; INSERT INTO employees (emp_id) VALUES (1)"
    query(pipeline.source(), f"{begin}; SELECT pg_advisory_xact_lock(6513763, 1); PREPARE TRANSACTION 'x'")
    assert "held by a prepared transaction" in pipeline.run("producer.py", "--once").stderr
    impatient = pipeline.sabotaged("import admin", "from cdc.status import alarms", "alarms.HELD_LONG = 0.01")
    found = status_of(pipeline, impatient)
    assert "a prepared transaction" in found["source"]["producer_lock_held_by"]
    (held,) = found["source"]["open_transactions"]
    assert (held["pid"], held["user"], held["prepared_as"]) == (None, "postgres", "x")
    (alarm,) = [alarm for alarm in found["alarms"] if alarm["stage"] == "log"]
    assert alarm["what"].startswith("the prepared transaction x of user postgres holds changes back for ")
    assert alarm["do"] == "COMMIT PREPARED or ROLLBACK PREPARED"
    query(pipeline.source(), "ROLLBACK PREPARED 'x'")
    assert pipeline.run("producer.py", "--once").returncode == 0


def test_a_stranger_that_holds_the_lock_of_the_sleep_costs_polls_and_no_change(pipeline: Pipeline, bob: str) -> None:
    stranger, _ = session(pipeline, bob)
    query(stranger, "SELECT pg_advisory_lock(6513763, 2)")
    with pipeline.running("producer.py") as producer, pipeline.running("consumer.py"):
        producer.wait_for("publishing from")
        query(pipeline.source(), "INSERT INTO employees (city) VALUES ('while it cannot sleep')")
        pipeline.wait_until_equal(10)
