"""Offsets: where a consumer begins, what it commits, and messages that are gone."""

from __future__ import annotations

from contextlib import closing

import consumer
from cdc.drain import Drain
from cdc.intake import kafka_settings
from cdc.kafka import Brokers, make_client
from harness.consuming import change, consuming, wait_until_read
from harness.destination import ids, let_in, shut_out, wait_for_rows
from harness.kafka import client_settings
from harness.pipeline import Pipeline
from harness.waiting import wait_until

import pytest
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition
from confluent_kafka.admin import AdminClient
from psycopg2.extensions import connection as Connection


def test_a_new_group_reads_from_the_first_message_in_silence(shared: Pipeline, destination: Connection) -> None:
    for partition in range(3):
        shared.send(change(3_000_000 + partition, 31 + partition), partition=partition)
    with consuming(shared, KAFKA_GROUP_ID=f"{shared.name}-new") as script:
        wait_until_read(shared, f"{shared.name}-new")
        assert {31, 32, 33} <= set(ids(destination))
    assert "ERROR" not in script.output().replace("→ dead letter", "").replace("ERROR   message at", "")
    with consuming(shared):
        wait_until_read(shared)


def remove_before(pipeline: Pipeline, **offsets: int) -> None:
    """Remove the messages before these offsets (p0=5: of partition 0 before 5), as retention does."""
    parts = [TopicPartition(pipeline.topic, int(part[1:]), offset) for part, offset in offsets.items()]
    admin = AdminClient(client_settings())
    for future in admin.delete_records(parts).values():
        future.result(10)


def test_messages_removed_before_they_were_read_are_reported_loudly_and_the_rest_is_read(pipeline: Pipeline) -> None:
    with consuming(pipeline):
        for partition in range(3):
            pipeline.send(change(1, partition), change(2, partition + 10), partition=partition)
        wait_until_read(pipeline)
    for partition in range(2):
        pipeline.send(*(change(100 + n, 100 + 10 * partition + n) for n in range(5)), partition=partition)
    remove_before(pipeline, p0=5, p1=7)
    pipeline.send(change(200, 200), partition=1)
    with consuming(pipeline) as script:
        rows = [0, 1, 2, 10, 11, 12, 103, 104, 200]
        wait_for_rows(pipeline, rows)
        wait_until_read(pipeline)
        lines = [line for line in script.output().splitlines() if "ERROR" in line]
        assert len(lines) == 2
        for partition, first in ((0, 5), (1, 7)):
            (line,) = (line for line in lines if f"partition {partition} was read up to offset 2" in line)
            assert "MESSAGES ARE GONE" in line
            assert f"from {first} to" in line
            assert "run python verify.py --repair" in line
        # and while it runs, but waits for the destination
        shut_out(pipeline)
        pipeline.send(change(300, 300), partition=2)
        script.wait_for("; waiting")
        pipeline.send(*(change(301 + n, 301 + n) for n in range(4)), partition=2)
        remove_before(pipeline, p2=6)
        let_in(pipeline)
        wait_for_rows(pipeline, [*rows, 300, 304])
        wait_until_read(pipeline)
        assert "partition 2 was read up to offset" in script.output()


def test_kafka_failing_while_the_first_message_is_looked_for_is_waited_out(shared: Pipeline) -> None:
    flaky = shared.sabotaged(
        "import consumer",
        "from confluent_kafka import KafkaError, KafkaException",
        "asked = []",
        "class Flaky(consumer.Consumer):",
        "    def get_watermark_offsets(self, *arguments, **keywords):",
        "        asked.append(arguments)",
        "        if len(asked) <= 4: raise KafkaException(KafkaError(KafkaError._TIMED_OUT))",
        "        return super().get_watermark_offsets(*arguments, **keywords)",
        "consumer.Consumer = Flaky",
    )
    shared.send(change(1, 1), partition=0)
    with consuming(shared, flaky, KAFKA_GROUP_ID=f"{shared.name}-flaky"):
        wait_until_read(shared, f"{shared.name}-flaky")
    with consuming(shared):
        wait_until_read(shared)


@pytest.mark.timing
def test_an_offset_that_kafka_did_not_take_is_committed_again(shared: Pipeline, destination: Connection) -> None:
    """A commit in the midst of a rebalance fails. Left so, an idle partition looks unread, and once retention has
    removed its messages, as if they had been lost."""
    forgetful = shared.sabotaged(
        "import consumer",
        "commits = []",
        "class Forgetful(consumer.Consumer):",
        "    def commit(self, *arguments, **keywords):",
        "        commits.append(keywords)",
        "        return super().commit(*arguments, **keywords) if len(commits) > 1 else None",
        "consumer.Consumer = Forgetful",
    )
    shared.send(change(1, 1), partition=0)
    with consuming(shared, forgetful):
        wait_for_rows(shared, [1])
        wait_until_read(shared, seconds=5)


def offset_events(reader: Consumer, count: int) -> list[Message]:
    """The events for partitions that have no committed offset."""
    events: list[Message] = []

    def all_there() -> bool:
        event = reader.poll(0.1)
        error = event.error() if event else None
        if event and error and error.code() == KafkaError._AUTO_OFFSET_RESET:
            events.append(event)
        return len(events) == count

    wait_until(all_there)
    return sorted(events, key=lambda event: event.partition() or 0)


@pytest.mark.parametrize(
    "revoked",
    [
        pytest.param([], id="none"),
        pytest.param([1], id="one"),
        pytest.param([0, 1, 2], id="all"),
    ],
)
def test_an_offset_event_of_a_partition_revoked_meanwhile_is_left_alone(shared: Pipeline, revoked: list[int]) -> None:
    """poll() gives the event, and consume() after it, in the same batch, lets the group take the partition away."""
    for partition in range(3):
        shared.send(change(1, 1), partition=partition)
    settings = {**kafka_settings(), "group.id": f"{shared.name}-{len(revoked)}"}
    with closing(make_client(Consumer, settings, Brokers())) as reader:
        reader.subscribe([shared.topic])
        events = offset_events(reader, 3)
        if revoked:
            reader.incremental_unassign([TopicPartition(shared.topic, number) for number in revoked])
        for event in events:
            consumer.handle(event, reader, Drain(once=False, give_up_after=60), Brokers())
        kept = {0, 1, 2} - set(revoked)
        assert {part.partition for part in reader.assignment()} == kept
        read: set[int | None] = set()

        def all_read() -> bool:
            message = reader.poll(0.1)
            if message is not None and message.error() is None:
                read.add(message.partition())
            return read == kept

        wait_until(all_read)
    with consuming(shared):
        wait_until_read(shared)
