"""admin.py rewind: the group reads again what it has read, and never leaves out what it has not."""

from __future__ import annotations

from contextlib import closing
from datetime import datetime
from typing import Any

from harness.consuming import change
from harness.database import query
from harness.kafka import client_settings
from harness.pipeline import Pipeline

import pytest
from confluent_kafka import Consumer, TopicPartition


def committed(pipeline: Pipeline) -> list[int]:
    with closing(Consumer({**client_settings(), "group.id": pipeline.name})) as reader:
        partitions = [TopicPartition(pipeline.topic, number) for number in range(3)]
        return [partition.offset for partition in reader.committed(partitions, timeout=10)]


def rewind(pipeline: Pipeline, *arguments: str, script: str = "admin.py") -> Any:
    return pipeline.run(script, "rewind", *arguments)


def insert_and_publish(pipeline: Pipeline, city: str) -> None:
    query(pipeline.source(), "INSERT INTO employees (city) SELECT %(city)s FROM generate_series(1, 30)", {"city": city})
    assert pipeline.run("producer.py", "--once").returncode == 0


def test_a_rewind_to_a_time_leaves_out_nothing_that_is_unread_from_before_it(pipeline: Pipeline) -> None:
    insert_and_publish(pipeline, "read")
    assert pipeline.run("consumer.py", "--once").returncode == 0
    insert_and_publish(pipeline, "unread")
    before = committed(pipeline)
    insert_and_publish(pipeline, "unread, too")
    now = datetime.now().isoformat(timespec="milliseconds")
    insert_and_publish(pipeline, "since")
    result = rewind(pipeline, "--since", now)
    assert result.returncode == 0, result.stderr
    assert "reads 0 messages" in result.stdout
    assert committed(pipeline) == before
    assert pipeline.run("consumer.py", "--once").returncode == 0
    assert pipeline.equal()


def test_a_group_that_has_read_nothing_yet_still_reads_all_of_it_after_a_rewind_to_a_time(pipeline: Pipeline) -> None:
    insert_and_publish(pipeline, "unread")
    result = rewind(pipeline, "--since", datetime.now().isoformat())
    assert result.returncode == 0, result.stderr
    assert pipeline.run("consumer.py", "--once").returncode == 0
    assert pipeline.equal()


def test_what_a_rewind_sets_is_an_offset_of_ours(shared: Pipeline) -> None:
    for partition in range(3):
        shared.send(change(1, partition), change(2, partition), partition=partition)
    assert shared.run("consumer.py", "--once").returncode == 0
    result = rewind(shared)
    assert "reads 6 messages" in result.stdout
    assert committed(shared) == [0, 0, 0]
    again = shared.run("consumer.py", "--once").stdout
    assert "NOT OURS" not in again
    assert committed(shared) == [2, 2, 2]


@pytest.mark.parametrize(
    "time", ["yesterday", "0001-01-01", "1960-01-01", "2999-01-01", "9999-12-31T23:59:59", "2026-13-01"]
)
def test_a_time_that_is_none_or_not_between_1970_and_now_is_one_line_and_exit_2(databases: Pipeline, time: str) -> None:
    result = rewind(databases, "--since", time)
    assert result.returncode == 2
    (line,) = (line for line in result.stderr.splitlines() if "error" in line)
    assert repr(time) in line
    assert "Traceback" not in result.stderr


def test_a_partition_that_kafka_refuses_to_rewind_is_one_line_and_exit_1(shared: Pipeline) -> None:
    """Kafka says so at the partition alone, as where the right to read the topic is missing."""
    shared.send(change(3, 0), partition=0)
    assert shared.run("consumer.py", "--once").returncode == 0
    refused = shared.sabotaged(
        "import admin",
        "real = admin.set_offsets",
        "admin.set_offsets = lambda client, offsets, identity: real(client, {**offsets, 99: 0}, identity)",
    )
    result = rewind(shared, script=refused)
    assert result.returncode == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.endswith("Broker: Unknown topic or partition")


def test_a_rewind_reports_how_many_dead_letters_may_come_back_those_discarded_too(shared: Pipeline) -> None:
    assert "dead letter" not in rewind(shared).stdout
    shared.send("no change", "no change either")
    assert shared.run("consumer.py", "--once").returncode == 0
    assert shared.run("admin.py", "dead-letters", "--discard", "--yes").returncode == 0
    assert rewind(shared).stdout.endswith("becomes one again, even if it was discarded: up to 2\n")
    assert shared.run("consumer.py", "--once").returncode == 0
    assert len(shared.dead_letters()) == 2
