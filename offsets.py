"""Where a consumer stands in the topic: committed behind what was applied, and nothing passed over in silence."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_STORED,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

import config
from connection import Kafka, Outage, kafka_client

log = logging.getLogger("consumer")

COMMIT_AGAIN = 1.0  # seconds without Kafka's answer to a commit
LOOK = 1.0  # seconds between two looks at the topic


@dataclass
class Offsets:
    """The offsets of the partitions that the group has given us.

    Each is committed together with the topic's id. A topic that was deleted and made anew under the same name has
    another id, and an offset of the old one means nothing in it, although there may be a message at it.
    """

    kafka: Kafka
    topic: Outage
    pending: dict[int, int] = field(default_factory=dict)  # by partition: applied, its commit not yet acknowledged
    topic_ids: dict[int, str] = field(default_factory=dict)  # by partition: of the topic that its offset belongs to
    topic_id: str = ""  # of the topic when we looked last
    sent: float = 0.0
    looked: float = 0.0
    leaving: bool = False
    answer: Future[Any] | None = None

    def __post_init__(self) -> None:
        self.admin = kafka_client(AdminClient, {}, self.kafka)

    # Called by the Kafka client, in poll()

    def on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        log.info("partitions assigned: %s", numbers(partitions))
        self.answer, self.looked = None, 0.0  # it may be older than what another consumer has committed
        if self.leaving:  # close() still takes what the group gives; a question then would wait for its time-out
            return
        with suppress(KafkaException):
            for partition in consumer.committed(partitions, timeout=5):
                if partition.offset >= 0 and partition.metadata:
                    self.topic_ids[partition.partition] = partition.metadata

    def on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        consumer.resume(partitions)  # a partition paused in an outage would still be paused when it comes back
        for partition in partitions:
            self.pending.pop(partition.partition, None)
            self.topic_ids.pop(partition.partition, None)
        log.info("partitions given up: %s", numbers(partitions))

    def on_commit(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        for partition in partitions:
            if error is None and partition.error is None and self.pending.get(partition.partition) == partition.offset:
                del self.pending[partition.partition]

    # Called between two batches

    def commit(self, consumer: Consumer, messages: list[Message]) -> None:
        """Commit the offsets behind messages that were applied, of those partitions that are still ours. A crash before
        it reads them again, and the gate drops them."""
        ours = {partition.partition for partition in consumer.assignment()}
        for message in reversed(messages):
            partition = message.partition() or 0
            if partition in ours:
                self.pending[partition] = (message.offset() or 0) + 1
                ours.discard(partition)
                if not ours:
                    break
        self.send(consumer)

    def send(self, consumer: Consumer) -> None:
        """Send what is not acknowledged yet."""
        if not self.pending:
            return
        offsets = [
            TopicPartition(config.KAFKA_TOPIC, number, offset, self.topic_ids.get(number, ""))
            for number, offset in self.pending.items()
        ]
        self.sent = time.monotonic()
        try:
            consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            log.debug("offsets not committed: %s", error.args[0].str())

    def look(self, consumer: Consumer) -> bool:
        """Commit again what Kafka has not acknowledged, and see whether the topic is still the one that we read.

        Returns whether it was made anew, and is now read from its first message.
        """
        now = time.monotonic()
        if self.pending and now - self.sent > COMMIT_AGAIN and not self.kafka.away:
            self.send(consumer)
        if self.answer is None and now - self.looked > LOOK:
            self.looked = now
            topics = TopicCollection([config.KAFKA_TOPIC])
            (self.answer,) = self.admin.describe_topics(topics, request_timeout=5).values()
        elif self.answer is not None and self.answer.done():
            answer, self.answer = self.answer, None
            try:
                anew = self.compare(consumer, str(answer.result().topic_id))
                self.topic.over()
                return anew
            except KafkaException as error:  # whoever is away is told of by others
                if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART and not self.kafka.settling():
                    self.topic.say(f"topic {config.KAFKA_TOPIC}: it does not exist; run python admin.py")
        return False

    def compare(self, consumer: Consumer, topic_id: str) -> bool:
        """Read from their first message those partitions whose offset belongs to another topic than this one."""
        ours = consumer.assignment()
        anew = [part for part in ours if self.topic_ids.get(part.partition, topic_id) != topic_id]
        if anew or self.topic_id not in ("", topic_id):
            log.error(
                "THE TOPIC WAS MADE ANEW: reading it from its first message. What was unread in the old one is gone; "
                "run python verify.py --repair"
            )
        if anew:
            read_from(consumer, [TopicPartition(part.topic, part.partition, OFFSET_BEGINNING) for part in anew])
        for part in anew:
            self.pending.pop(part.partition, None)
        self.topic_id = topic_id
        self.topic_ids = {part.partition: topic_id for part in ours}
        return bool(anew)


def from_the_first(consumer: Consumer, event: Message) -> None:
    """Read a partition from its first message, as there is no committed offset or no message at it. Never in silence:
    messages that retention removed unread are lost to us."""
    partition = TopicPartition(event.topic() or "", event.partition() or 0)
    if partition not in consumer.assignment():  # given up meanwhile
        return
    try:
        low, high = consumer.get_watermark_offsets(partition, timeout=5)
        (committed,) = consumer.committed([partition], timeout=5)
    except KafkaException:
        partition.offset = OFFSET_STORED  # Kafka went away meanwhile: the same event comes again
    else:
        partition.offset = low
        if 0 <= committed.offset < low or committed.offset > high:
            log.error(
                "MESSAGES ARE GONE: partition %s was read up to offset %s, Kafka has those from %s to %s only. Going "
                "on from the first; run python verify.py --repair",
                partition.partition,
                committed.offset,
                low,
                high,
            )
    read_from(consumer, [partition])


def read_from(consumer: Consumer, partitions: list[TopicPartition]) -> None:
    consumer.incremental_unassign(partitions)
    consumer.incremental_assign(partitions)


def numbers(partitions: list[TopicPartition]) -> str:
    return ", ".join(str(partition.partition) for partition in sorted(partitions, key=lambda p: p.partition)) or "none"
