"""A server that answers and refuses: said in time and once, ended by a signal, over by itself, and nothing is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from harness.consuming import SAME_PLACE, change
from harness.database import administer, query
from harness.destination import ids
from harness.kafka import delete_topics
from harness.log_reader import INSERT
from harness.pipeline import Pipeline
from harness.producing import create_topic, wait_until_published
from harness.script import Script
from harness.waiting import wait_until

import pytest

SAID_WITHIN, ENDED_WITHIN = 10.0, 5.0
SIDES = {"producer.py": "source", "consumer.py": "destination"}
NEEDED = {"producer.py": "cdc_position", "consumer.py": "cdc_applied"}
CLOSE = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND application_name LIKE 'employee-cdc%'
"""
READ_ONLY = "default_transaction_read_only"


def role(pipeline: Pipeline) -> str:
    return f"{pipeline.name}_role"


@pytest.fixture(scope="module")
def weak(shared: Pipeline) -> Iterator[Pipeline]:
    """Its scripts log in as a role that is no superuser, and may do all with the tables."""
    grants = f"""
    CREATE ROLE {role(shared)} LOGIN PASSWORD 'bob';
    GRANT ALL ON ALL TABLES IN SCHEMA public TO {role(shared)};
    GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role(shared)}
    """
    with pytest.MonkeyPatch.context() as patch:
        for side in SIDES.values():
            url = getattr(shared, f"{side}_url")
            administer(url, grants)
            login = f"postgresql://{role(shared)}:bob@{url.rpartition('@')[2]}"
            patch.setitem(shared.environment, f"{side.upper()}_DATABASE_URL", login)
        yield shared
    for side in SIDES.values():
        administer(getattr(shared, f"{side}_url"), f"DROP OWNED BY {role(shared)}; DROP ROLE {role(shared)}")


@contextmanager
def altered(pipeline: Pipeline, script: str, do: str, undo: str) -> Iterator[None]:
    url = getattr(pipeline, f"{SIDES[script]}_url")
    administer(url, do)
    try:
        yield
    finally:
        administer(url, undo)


@contextmanager
def refused(pipeline: Pipeline, script: str, how: str) -> Iterator[str]:
    """A server refuses; gives what the script is to say of it."""
    name, table = role(pipeline), NEEDED[script]
    if how == "full of connections":
        limit = f"ALTER ROLE {name} CONNECTION LIMIT"
        with altered(pipeline, script, f"{limit} 0", f"{limit} -1"):
            yield "too many connections for role"
    elif how == "without a right":
        with altered(pipeline, script, f"REVOKE UPDATE ON {table} FROM {name}", f"GRANT UPDATE ON {table} TO {name}"):
            yield f"permission denied for table {table}"
    else:
        do, undo = f"ALTER ROLE {name} SET {READ_ONLY} = on", f"ALTER ROLE {name} RESET {READ_ONLY}"
        with altered(pipeline, script, do, undo):
            yield "in a read-only transaction"


def wait_for_employee(pipeline: Pipeline) -> None:
    """Employee 1; what other tests have put into the topic may come along."""
    destination = pipeline.destination()
    wait_until(lambda: 1 in ids(destination), 10, "employee 1 at the destination")


def end(script: Script) -> None:
    started = time.monotonic()
    assert script.stop() == 0, script.output()
    assert time.monotonic() - started < ENDED_WITHIN
    assert "Traceback" not in script.output()


@pytest.mark.timing
@pytest.mark.parametrize("script", SIDES)
@pytest.mark.parametrize(
    "how",
    [
        "full of connections",
        pytest.param("without a right", marks=pytest.mark.long),
        pytest.param("read-only", marks=pytest.mark.long),
    ],
)
def test_a_server_that_refuses_is_reported_once_and_waited_for(weak: Pipeline, script: str, how: str) -> None:
    query(weak.destination(), "TRUNCATE employees, cdc_applied")
    if script == "producer.py":
        query(weak.source(), INSERT)
    else:
        weak.send(change(1_000_001, 1), partition=0)
    forget = f"del session.SETTINGS[{READ_ONLY!r}]"  # our sessions would not have it
    driver = weak.sabotaged(f"import {script.removesuffix('.py')}", "from cdc import session", forget)
    with refused(weak, script, how) as said:
        first = weak.start(driver, **SAME_PLACE)
        first.wait_for(said, SAID_WITHIN)
        end(first)
        second = weak.start(driver, **SAME_PLACE)
        second.wait_for(said, SAID_WITHIN)
        time.sleep(2)
        assert second.output().count("waiting") == 1, second.output()
        assert "answers again" not in second.output()
    second.wait_for("answers again")
    if script == "producer.py":
        wait_until_published(weak.source(), 10)
    else:
        wait_for_employee(weak)
    end(second)
    assert second.output().count("waiting") == 1, second.output()
    assert weak.dead_letters() == []


@pytest.mark.long
def test_a_wait_whose_reason_no_second_session_can_ask_for_is_reported(weak: Pipeline) -> None:
    user, limit = weak.destination(), f"ALTER ROLE {role(weak)} CONNECTION LIMIT"
    query(user, "TRUNCATE employees, cdc_applied")
    script = weak.start("consumer.py", **SAME_PLACE)
    script.wait_for("partitions assigned")
    with altered(weak, "consumer.py", f"{limit} 1", f"{limit} -1"):
        query(user, "BEGIN; LOCK TABLE employees")
        weak.send(change(1_000_001, 1), partition=0)
        script.wait_for("no second session may ask why (too many connections for role", SAID_WITHIN)
        query(user, "ROLLBACK")
        wait_for_employee(weak)
    end(script)


@pytest.mark.long
@pytest.mark.parametrize("script", SIDES)
def test_a_topic_that_is_missing_is_reported_once_and_waited_for(shared: Pipeline, script: str) -> None:
    missing = f"{shared.topic}_{script[0]}"
    query(shared.source(), INSERT)
    first = shared.start(script, KAFKA_TOPIC=missing)
    first.wait_for("run python admin.py; waiting", SAID_WITHIN)
    end(first)
    second = shared.start(script, KAFKA_TOPIC=missing)
    second.wait_for("run python admin.py; waiting", SAID_WITHIN)
    time.sleep(2)
    create_topic(shared, missing)
    try:
        second.wait_for("answers again")
        second.wait_for("→ published" if script == "producer.py" else "partitions assigned")
        end(second)
    finally:
        delete_topics(missing)
    assert second.output().count("waiting") == 1, second.output()


@pytest.mark.timing
def test_a_session_that_begins_and_fails_again_and_again_is_no_answer(weak: Pipeline) -> None:
    """The producer may read and publish, and not prune."""
    query(weak.source(), INSERT)
    result = weak.run("producer.py", "--once")  # what other tests have put into the topic is another history
    assert result.returncode == 0, result.stdout + result.stderr
    denial = (f"REVOKE DELETE ON emp_cdc FROM {role(weak)}", f"GRANT DELETE ON emp_cdc TO {role(weak)}")
    with altered(weak, "producer.py", *denial):
        script = weak.start("producer.py")
        script.wait_for("permission denied for table emp_cdc; waiting")
        time.sleep(3)  # several tries
        lines = [line.split(" ", 1)[1] for line in script.output().splitlines()]
        assert len(lines) == len(set(lines)) <= 3, script.output()
        assert "answers again" not in script.output()
    script.wait_for("answers again")
    end(script)


@pytest.mark.timing
def test_a_producer_that_waits_for_kafka_ends_at_a_signal_in_good_order(shared: Pipeline) -> None:
    script = shared.start("producer.py", KAFKA_BOOTSTRAP_SERVERS="localhost:1")
    script.wait_for("Kafka at localhost:1 does not answer; waiting", SAID_WITHIN)
    time.sleep(1)  # it asks again
    end(script)


@pytest.mark.timing
def test_a_session_that_is_closed_while_it_is_idle_is_no_outage(running: Pipeline) -> None:
    for connection in running.source(), running.destination():
        assert query(connection, CLOSE) != []
        query(connection, "SELECT")
    query(running.source(), INSERT)
    running.wait_until_equal()
    for script in running.scripts:
        assert "waiting" not in script.output(), script.output()
        assert "answers again" not in script.output()
        assert script.output().count("publishing from") <= 1
