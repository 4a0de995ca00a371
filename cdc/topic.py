"""What the topic and the consumer group hold now: partitions, offsets, members, the changes at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import config
from cdc import cli
from cdc.kafka import NO_BROKER, TOPIC_REFUSED, Brokers, find_controller, make_client
from cdc.message import read
from cdc.signature import signature_of

from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec, TopicMetadata  # type: ignore[attr-defined]

ANSWER_WAIT = 5  # seconds for an answer of Kafka
LIST_STEP = 1.25  # seconds of that for one question
COORDINATOR_WAIT = 5.0  # seconds for a group's coordinator to start
COORDINATOR_STARTS = (
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
    KafkaError._WAIT_COORD,
)
Answer = TypeVar("Answer")
GUARD_DEPTH = 1_000  # messages at the end of each partition that Tail reads

GUARD_SETTINGS = {
    "group.id": "employee-cdc-guard",  # required by the client; nothing is committed
    "enable.auto.commit": False,
    "enable.partition.eof": True,
    "fetch.wait.max.ms": 5,  # a partition's end is told at once: the producer waits for it
}
READER_SETTINGS = {
    **GUARD_SETTINGS,
    "auto.offset.reset": "earliest",
    "queued.min.messages": 1,  # a few of each partition are all that is asked for
}


def result(admin: AdminClient, answer: Future[Any]) -> Any:
    """Return an answer of Kafka's controller. Without one, the next call goes to whoever is it then."""
    try:
        return answer.result()
    except KafkaException as error:
        if error.args[0].code() in NO_BROKER:
            with suppress(KafkaException):
                find_controller(admin)
        raise


def describe_topic(admin: AdminClient, topic: str) -> Any:
    """Return a topic's partitions, with the replicas of each, and its id; None if it does not exist.

    Raises KafkaException if Kafka does not let us see it: a list of all topics would just leave it out.
    """
    (answer,) = admin.describe_topics(TopicCollection([topic]), request_timeout=ANSWER_WAIT).values()
    try:
        return result(admin, answer)
    except KafkaException as error:
        reason = error.args[0]
        if reason.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            return None
        raise KafkaException(KafkaError(reason.code(), f"topic {topic}: {reason.str()}")) from None


def partition_numbers(admin: AdminClient, topic: str) -> list[int]:
    """Return the topic's partitions, none if it does not exist. Raises KafkaException."""
    found = describe_topic(admin, topic)
    return sorted(partition.id for partition in found.partitions) if found else []


def count_brokers(admin: AdminClient) -> int:
    return len(result(admin, admin.describe_cluster(request_timeout=ANSWER_WAIT)).nodes)


def offset_bounds(admin: AdminClient, topic: str, partitions: list[int]) -> dict[int, tuple[int, int]]:
    """Return the first offset and the one after the last, by partition."""
    first, end = (
        offsets_at(admin, topic, partitions, spec)
        for spec in (OffsetSpec.earliest(), OffsetSpec.latest())  # type: ignore[no-untyped-call]
    )
    return {number: (first[number], end[number]) for number in partitions}


def offsets_at(admin: AdminClient, topic: str, partitions: list[int], spec: OffsetSpec) -> dict[int, int]:
    """Return the offset that spec names, by partition; -1 where there is none."""
    futures = admin.list_offsets(
        {TopicPartition(topic, number): spec for number in partitions},
        isolation_level=IsolationLevel.READ_UNCOMMITTED,
        request_timeout=ANSWER_WAIT,
    )
    return {partition.partition: future.result().offset for partition, future in futures.items()}


def topic_id(admin: AdminClient) -> str:
    """Return the topic's id: a topic that is re-created has another one."""
    (answer,) = admin.describe_topics(TopicCollection([config.KAFKA_TOPIC]), request_timeout=ANSWER_WAIT).values()
    return str(result(admin, answer).topic_id)


def committed_offsets(partitions: list[int]) -> dict[int, TopicPartition]:
    """Return what the consumer group has committed, by partition, where it has.

    By a consumer that joins nothing: librdkafka's ListConsumerGroupOffsets can crash when the group's coordinator
    moves, as on a fresh cluster (issue 5040).
    """
    places = [TopicPartition(config.KAFKA_TOPIC, number) for number in partitions]
    settings = {**GUARD_SETTINGS, "group.id": config.KAFKA_GROUP_ID}
    with closing(make_client(Consumer, settings, Brokers())) as reader:
        committed = wait_for_coordinator(lambda: reader.committed(places, timeout=ANSWER_WAIT))
    return {partition.partition: partition for partition in without_errors(committed) if partition.offset >= 0}


def wait_for_coordinator(ask: Callable[[], Answer]) -> Answer:
    """Return the answer of a group's coordinator, which may be starting for a few seconds."""
    end = time.monotonic() + COORDINATOR_WAIT
    while True:
        try:
            return ask()
        except KafkaException as error:
            if error.args[0].code() not in COORDINATOR_STARTS or time.monotonic() > end:
                raise
        time.sleep(0.2)


def trusted_offsets(
    committed: dict[int, TopicPartition], bounds: dict[int, tuple[int, int]], identity: str
) -> dict[int, int]:
    """Return the offsets from which consumer.py goes on, by partition.

    Where it is missing, not of this topic, another program's or beyond the end, it reads from the first message.
    """
    return {
        number: partition.offset
        for number, partition in committed.items()
        if partition.metadata == identity and partition.offset <= bounds[number][1]
    }


def set_offsets(admin: AdminClient, offsets: dict[int, int], identity: str) -> None:
    """Set the group's offsets, by partition, with the topic's id: consumer.py takes no others for its own."""
    partitions = [TopicPartition(config.KAFKA_TOPIC, number, offset, identity) for number, offset in offsets.items()]
    request = ConsumerGroupTopicPartitions(config.KAFKA_GROUP_ID, partitions)
    futures = admin.alter_consumer_group_offsets([request], request_timeout=ANSWER_WAIT)
    without_errors(futures[config.KAFKA_GROUP_ID].result().topic_partitions)


def without_errors(partitions: list[TopicPartition]) -> list[TopicPartition]:
    """Return the partitions of an answer. Raises KafkaException: a refusal can stand at a partition alone."""
    for partition in partitions:
        if partition.error is not None:
            raise KafkaException(partition.error)
    return partitions


@dataclass(frozen=True)
class Member:
    """A member of the consumer group."""

    name: str
    is_ours: bool
    partitions: list[int]


def group_members(admin: AdminClient) -> list[Member]:
    """Return the members of the consumer group. Ours go by the name that the clients of this script have, too."""

    def ask() -> list[Any]:
        futures = admin.describe_consumer_groups([config.KAFKA_GROUP_ID], request_timeout=ANSWER_WAIT)
        return list(futures[config.KAFKA_GROUP_ID].result().members)

    try:
        members = wait_for_coordinator(ask)
    except KafkaException as error:
        if error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
            return []
        raise
    return [
        Member(
            f"{member.group_instance_id or member.member_id[-12:]} at {member.host.lstrip('/')}",
            member.client_id == config.KAFKA["client.id"],
            share_of(member),
        )
        for member in members
    ]


def share_of(member: Any) -> list[int]:
    """Return the topic's partitions that a member of a group has, as Kafka describes it."""
    assigned = member.assignment.topic_partitions if member.assignment else []
    return [partition.partition for partition in assigned if partition.topic == config.KAFKA_TOPIC]


def read_messages(brokers: Brokers, starts: dict[int, int], count: int) -> dict[int, list[Message]] | None:
    """Return up to count messages of each partition from these offsets on; None without the right to read them.

    A partition that does not answer in time is left out. The end of a transaction takes an offset, and is no message:
    nobody reads it, and nobody commits past it.
    """
    read: dict[int, list[Message]] = {number: [] for number in starts}
    left = set(starts)
    with closing(make_client(Consumer, READER_SETTINGS, brokers)) as reader:
        reader.assign([TopicPartition(config.KAFKA_TOPIC, number, start) for number, start in starts.items()])
        end = time.monotonic() + ANSWER_WAIT
        while left and (message := reader.poll(max(0.0, end - time.monotonic()))):
            number, error = message.partition() or 0, message.error()
            if error is None and number in left:
                read[number].append(message)
                if len(read[number]) == count:
                    left.discard(number)
                    reader.pause([TopicPartition(config.KAFKA_TOPIC, number)])
            elif error is not None and error.code() == KafkaError._PARTITION_EOF:
                left.discard(number)
            elif error is not None and error.code() == TOPIC_REFUSED:
                return None
    return {number: messages for number, messages in read.items() if number not in left}


class TopicChange(NamedTuple):
    """A change that the topic holds, whoever put it there."""

    log_offset: int
    value: bytes
    signature: str  # of the producer, at the beginning of a page; else ""


@dataclass
class Tail:
    """The changes at the end of each partition, at each reading only those that came after the last one."""

    brokers: Brokers
    ends: dict[int, int] = field(default_factory=dict)  # by partition: where the last reading ended

    def read(self, stop: cli.Stop) -> list[TopicChange]:
        """Return the messages that are changes.

        Raises KafkaException while the topic or the brokers are missing.
        """
        reader = make_client(Consumer, GUARD_SETTINGS, self.brokers)
        with closing(reader):
            metadata = find_topic(reader, stop)
            if metadata.error is not None:
                raise KafkaException(metadata.error)
            unread = {}  # by partition: where to start
            for number in metadata.partitions:
                partition = TopicPartition(config.KAFKA_TOPIC, number)
                first, end = reader.get_watermark_offsets(partition, timeout=ANSWER_WAIT)
                start = max(first, end - GUARD_DEPTH)
                if self.ends.get(number, 0) <= end:  # else the topic was re-created
                    start = max(start, self.ends.get(number, 0))
                if end > start:
                    unread[number] = start
                self.ends[number] = end
            reader.assign([TopicPartition(config.KAFKA_TOPIC, number, start) for number, start in unread.items()])
            changes = read_to_end(reader, set(unread), stop)
            self.brokers.mark_up()  # not before: brokers that answer may still have no leader for a partition
            return changes


def find_topic(reader: Consumer, stop: cli.Stop) -> TopicMetadata:
    """Return what the brokers say of the topic. Raises KafkaException if they do not answer in time.

    In steps: the call hears no signal, and calls no callback that says why there is no answer.
    """
    for _ in range(int(ANSWER_WAIT / LIST_STEP)):
        reader.poll(0)
        try:
            topics: dict[str, TopicMetadata] = reader.list_topics(config.KAFKA_TOPIC, timeout=LIST_STEP).topics
            return topics[config.KAFKA_TOPIC]
        except KafkaException as error:
            failure = error
        if stop.requested or failure.args[0].code() not in NO_BROKER:
            break
    reader.poll(0)
    raise failure


def read_to_end(reader: Consumer, unread: set[int], stop: cli.Stop) -> list[TopicChange]:
    """Return the changes that an assigned reader finds up to the end of its partitions.

    Raises KafkaException if Kafka answers no more.
    """
    changes = []
    end = time.monotonic() + ANSWER_WAIT
    while unread and not stop.requested:
        if time.monotonic() > end:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        for message in reader.consume(GUARD_DEPTH, timeout=0.01):
            error, value = message.error(), message.value() or b""
            if error is None:
                end = time.monotonic() + ANSWER_WAIT
                with suppress(ValueError):
                    changes.append(TopicChange(read(value).cdc_id, value, signature_of(message)))
            elif error.code() == KafkaError._PARTITION_EOF:
                unread.discard(message.partition() or 0)
            elif error.code() == TOPIC_REFUSED:  # the client would try again for ever
                raise KafkaException(error)
    return changes
