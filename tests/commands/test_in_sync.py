"""admin.py status: `in sync: yes` only if it is so, and how old the last comparison is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import config
from harness.consuming import change
from harness.database import administer, query
from harness.kafka import client_settings
from harness.pipeline import Pipeline
from harness.showing import alarms, lag, screen
from harness.waiting import wait_until

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition


@pytest.fixture
def synced(shared: Pipeline) -> Pipeline:
    """In sync, as each test leaves it: one employee on both sides."""
    if not shared.messages():
        query(shared.source(), "INSERT INTO employees (emp_id) VALUES (1)")
        shared.drain()
    return shared


def test_the_end_of_a_transaction_is_no_lag(synced: Pipeline) -> None:
    """It takes an offset that nobody reads, and so nobody commits past it."""
    producer = Producer({**client_settings(), "transactional.id": synced.name})
    producer.init_transactions(10)
    producer.begin_transaction()
    for partition in range(3):
        producer.produce(synced.topic, change(1, 1), partition=partition)
    producer.commit_transaction(10)
    found = synced.status()
    assert (lag(found), found["in_sync"]) == (6, False), "a message and the end of the transaction in each partition"
    assert synced.run("consumer.py", "--once").returncode == 0
    found = synced.status()
    assert (lag(found), found["in_sync"]) == (0, True)
    assert all(part["committed_offset"] < part["end_offset"] for part in found["kafka"]["partitions"])


def test_another_program_in_the_group_is_named_and_not_in_sync(synced: Pipeline) -> None:
    settings = {**client_settings(), "group.id": synced.name, "client.id": "console-consumer"}
    with closing(Consumer({**settings, "enable.auto.commit": False})) as stranger:
        stranger.subscribe([synced.topic])
        wait_until(lambda: stranger.poll(0.1) or stranger.assignment())
        found = synced.status()
        (line,) = found["kafka"]["strangers"]
        assert re.fullmatch(r"\S+ at \S+ is a member, and not consumer.py", line)
        assert (lag(found), found["in_sync"]) == (0, False)
        ends = [(part["partition"], part["end_offset"]) for part in found["kafka"]["partitions"]]
        offsets = [TopicPartition(synced.topic, number, end) for number, end in ends]
        stranger.commit(offsets=offsets, asynchronous=False)
    found = synced.status()
    assert found["kafka"]["strangers"] == ["another program has committed offsets, partitions 0, 1, 2"]
    assert found["in_sync"] is False
    assert "another program is or was in the consumer group" in screen(synced)["answer"]
    (line,) = found["kafka"]["strangers"]
    assert ("group", "error", line, "look into the topic without our group") in alarms(synced)
    assert synced.run("consumer.py", "--once").returncode == 0
    assert synced.status()["in_sync"] is True


def test_the_last_comparison_that_was_equal_is_named_with_its_age(synced: Pipeline) -> None:
    destination = synced.destination()
    assert synced.status()["destination"]["last_found_equal"] is None
    assert screen(synced)["comparison"] == "none was equal; run python verify.py"
    assert synced.run("verify.py").returncode == 0
    found = synced.status()["destination"]["last_found_equal"]
    assert (found["rows"], found["seconds_ago"] < 60) == (1, True)
    query(destination, "UPDATE cdc_verified SET verified_at = now() - interval '3 hours'")
    assert screen(synced)["comparison"] == "1 row equal; 3 hours ago"
    query(destination, "INSERT INTO employees (emp_id) VALUES (2)")
    assert screen(synced)["destination"].endswith("; run python verify.py --repair")
    query(destination, "DELETE FROM employees WHERE emp_id = 2; UPDATE employees SET city = 'Oslo'")
    assert re.fullmatch(r"1 row; localhost:\d+", screen(synced)["destination"])
    assert synced.run("verify.py", "--wait", "0").returncode == 1
    assert screen(synced)["comparison"] == "1 row equal; 3 hours ago"
    query(destination, "UPDATE employees SET city = NULL")
    assert synced.run("verify.py").returncode == 0
    assert synced.status()["destination"]["last_found_equal"]["seconds_ago"] < 60


@pytest.fixture
def reader(synced: Pipeline) -> Iterator[dict[str, Any]]:
    """A role that may read what verify.py and status need of the destination, and write nothing."""
    role = f"{synced.name}_reader"
    administer(config.DESTINATION_DATABASE_URL, f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
    query(synced.destination(), f"GRANT SELECT ON employees, cdc_applied TO {role}")
    yield {"DESTINATION_DATABASE_URL": re.sub("//.*@", f"//{role}:secret@", synced.destination_url)}
    query(synced.destination(), f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_a_role_that_may_not_write_compares_all_the_same_and_one_line_says_so(
    synced: Pipeline, reader: dict[str, Any]
) -> None:
    result = synced.run("verify.py", **reader)
    assert result.returncode == 0
    assert "EQUAL" in result.stdout
    reason = "this role may not use the table cdc_verified"
    assert f"destination: {reason}; status will not show this comparison" in result.stderr.splitlines()
    status = synced.run("admin.py", "status", "--json", **reader)
    assert status.returncode == 0
    assert json.loads(status.stdout)["destination"]["comparison_unknown"] == reason


def test_a_destination_from_before_there_was_the_table_is_compared_and_shown(synced: Pipeline) -> None:
    query(synced.destination(), "DROP TABLE cdc_verified")
    result = synced.run("verify.py")
    assert result.returncode == 0
    assert "no table cdc_verified; run python db_setup.py" in result.stderr
    assert screen(synced)["comparison"] == "not known: there is no table cdc_verified; run python db_setup.py"
    assert synced.run("db_setup.py").returncode == 0
    assert screen(synced)["comparison"].startswith("none was equal")


def test_a_dead_letter_is_not_in_sync(synced: Pipeline) -> None:
    synced.send("no change")
    assert synced.run("consumer.py", "--once").returncode == 0
    found = synced.status()
    assert (lag(found), found["kafka"]["dead_letters"], found["in_sync"]) == (0, 1, False)
    assert ("dead letters", "error", "1 dead letter", "python admin.py dead-letters") in alarms(synced)
    assert screen(synced)["answer"] == "in sync: no; 1 dead letter"
    assert synced.run("admin.py", "dead-letters", "--discard", "--yes").returncode == 0
    assert synced.status()["in_sync"] is True
