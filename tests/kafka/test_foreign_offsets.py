"""Offsets that the consumer did not commit itself, or no longer has: nothing is left out because of them."""

from __future__ import annotations

import json
from contextlib import closing

from harness.consuming import change, wait_until_read
from harness.destination import ids, wait_for_rows
from harness.kafka import client_settings, remove_messages
from harness.pipeline import Pipeline

from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient

NOT_OURS = "THE GROUP'S OFFSETS ARE NOT OURS"
GONE = "MESSAGES ARE GONE"


def send(pipeline: Pipeline, number: int) -> None:
    """A new employee in each partition, with the change's number."""
    for partition in range(3):
        pipeline.send(change(10 * number + partition, 10 * number + partition), partition=partition)


def employees(*numbers: int) -> list[int]:
    return [10 * number + partition for number in numbers for partition in range(3)]


def look_in(pipeline: Pipeline) -> None:
    """Read what the group has not read, and commit it, as kafka-console-consumer --group does."""
    settings = {"group.id": pipeline.name, "enable.auto.commit": False, "auto.offset.reset": "earliest"}
    with closing(Consumer({**client_settings(), **settings})) as stranger:
        stranger.subscribe([pipeline.topic])
        read = 0
        while read < 3:
            message = stranger.poll(1.0)
            read += message is not None and message.error() is None
        stranger.commit(asynchronous=False)


def consume(pipeline: Pipeline, script: str = "consumer.py") -> str:
    result = pipeline.run(script, "--once")
    assert result.returncode == 0, result.stderr
    return str(result.stdout)


def test_what_a_stranger_has_read_as_a_member_of_the_group_is_applied_all_the_same(pipeline: Pipeline) -> None:
    send(pipeline, 1)
    assert NOT_OURS not in consume(pipeline)
    send(pipeline, 2)
    look_in(pipeline)
    send(pipeline, 3)
    output = consume(pipeline)
    assert ids(pipeline.destination()) == employees(1, 2, 3)
    (line,) = (line for line in output.splitlines() if NOT_OURS in line)
    assert f"as group {pipeline.name}, partitions 0, 1, 2." in line
    assert GONE not in output
    assert NOT_OURS not in consume(pipeline)


def test_status_counts_from_where_the_consumer_will_read_on_and_not_from_a_strangers_offset(pipeline: Pipeline) -> None:
    send(pipeline, 1)
    consume(pipeline)
    send(pipeline, 2)
    assert lags(pipeline) == [1, 1, 1]
    look_in(pipeline)
    assert lags(pipeline) == [2, 2, 2]


def lags(pipeline: Pipeline) -> list[int]:
    status = json.loads(pipeline.run("admin.py", "status", "--json").stdout)
    return [partition["lag"] for partition in status["kafka"]["partitions"]]


def test_messages_that_are_gone_after_a_stranger_has_read_them_are_reported_loudly(pipeline: Pipeline) -> None:
    send(pipeline, 1)
    look_in(pipeline)
    remove_messages(pipeline.topic)
    send(pipeline, 2)
    output = consume(pipeline)
    assert ids(pipeline.destination()) == employees(2)
    assert output.count(GONE) == 3


def test_a_group_that_kafka_has_forgotten_is_warned_that_messages_are_gone(pipeline: Pipeline) -> None:
    """Kafka forgets the offsets of a group that was away for 7 days, and the messages of that time as well."""
    send(pipeline, 1)
    consume(pipeline)
    send(pipeline, 2)
    admin = AdminClient(client_settings())
    (future,) = admin.delete_consumer_groups([pipeline.name]).values()
    future.result(10)
    remove_messages(pipeline.topic)
    send(pipeline, 3)
    output = consume(pipeline)
    assert ids(pipeline.destination()) == employees(1, 3)
    assert output.count(f"{GONE}: partition 1 was read up to an offset that is not known, Kafka has those from 2") == 1
    assert output.count(GONE) == 3


def test_each_offset_that_is_committed_carries_the_topics_id_the_first_ones_too(pipeline: Pipeline) -> None:
    send(pipeline, 1)
    consume(pipeline)
    with closing(Consumer({**client_settings(), "group.id": pipeline.name})) as reader:
        partitions = [TopicPartition(pipeline.topic, number) for number in range(3)]
        found = {(part.offset, bool(part.metadata)) for part in reader.committed(partitions, timeout=10)}
    assert found == {(1, True)}


def test_a_strangers_offset_is_noticed_although_kafka_did_not_say_so_at_first(pipeline: Pipeline) -> None:
    send(pipeline, 1)
    look_in(pipeline)
    send(pipeline, 2)
    flaky = pipeline.sabotaged(
        "import consumer",
        "from confluent_kafka import KafkaError, KafkaException",
        "asked = []",
        "class Flaky(consumer.Consumer):",
        "    def committed(self, *arguments, **keywords):",
        "        asked.append(arguments)",
        "        if len(asked) == 1: raise KafkaException(KafkaError(KafkaError._TIMED_OUT))",
        "        return super().committed(*arguments, **keywords)",
        "consumer.Consumer = Flaky",
    )
    script = pipeline.start(flaky)
    script.wait_for(NOT_OURS)
    wait_for_rows(pipeline, employees(1, 2))
    wait_until_read(pipeline)
    assert script.stop() == 0
