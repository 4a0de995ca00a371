"""Where a consumer stands in the topic: partitions assigned, changes applied, offsets committed, the group left.

Nothing is passed over in silence: not a topic that was re-created, nor messages that Kafka has deleted unread.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import config
from cdc import cli, metrics
from cdc.health import HEALTH
from cdc.kafka import NO_BROKER, Brokers, make_client
from cdc.lag import WATCH
from cdc.outage import Outage
from cdc.topic import topic_id

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

log = logging.getLogger(__name__)

COMMIT_AGAIN = 1.0  # seconds without Kafka's answer to a commit
CHECK_EVERY = 1.0  # seconds between two checks of the topic
CHECK_WAIT = 3  # seconds for Kafka's answer
STEADY = 15.0  # seconds of answers after which the controller is there: of brokers without a majority some come, too
LEAVE_WAIT = 4.0  # seconds to wait for Kafka at the end
EXIT_TIME = 0.5  # seconds that the end of the script takes after that


@dataclass
class Offsets:
    """The offsets of the partitions that the group has assigned to us.

    Each is committed together with the topic's id. A topic that was deleted and re-created under the same name has
    another id. An offset of the old topic means nothing in the new one, although there may be a message at it. An
    offset without an id is not ours: another program has read messages as a member of our group, and applied none.
    """

    brokers: Brokers
    topic_outage: Outage
    pending: dict[int, int] = field(default_factory=dict)  # by partition: applied, its commit not yet acknowledged
    topic_ids: dict[int, str] = field(default_factory=dict)  # by partition: of the topic that its offset belongs to;
    # a partition is missing, and nothing of it committed, until Kafka has answered where the group stands
    topic_id: str = ""  # of the topic at the last check
    sent: float = 0.0
    checked: float = 0.0
    leaving: bool = False
    answer: Future[Any] | None = None
    unanswered: int = 0  # checks of the topic without an answer
    missed: float = float("-inf")  # when an answer last failed to come (time.monotonic)

    def __post_init__(self) -> None:
        self.admin = make_client(AdminClient, {}, self.brokers)
        WATCH.start(self.admin)

    # Called by the Kafka client, in poll()

    def on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self.brokers.answered = True
        HEALTH.connected.add("kafka")
        log.info("partitions assigned: %s", numbers(consumer.assignment() + partitions))
        self.answer, self.checked = None, 0.0  # it may be older than what another consumer has committed
        if self.leaving:  # close() still takes what the group gives; a question then would wait for its time-out
            return
        with suppress(KafkaException):  # topic_recreated() asks again
            foreign = self.check_committed(consumer, partitions)
            for partition in partitions:
                partition.offset = OFFSET_BEGINNING if partition in foreign else partition.offset
        consumer.incremental_assign(partitions)

    def on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        consumer.resume(partitions)  # a partition paused in an outage would still be paused when it comes back
        for partition in partitions:
            self.pending.pop(partition.partition, None)
            self.topic_ids.pop(partition.partition, None)
            metrics.LAG.applied.pop(partition.partition, None)
        left = [partition for partition in consumer.assignment() if partition not in partitions]
        log.info("partitions revoked: %s; left: %s", numbers(partitions), numbers(left))

    def on_commit(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        for partition in partitions:
            if error is None and partition.error is None and self.pending.get(partition.partition) == partition.offset:
                del self.pending[partition.partition]

    def check_committed(self, consumer: Consumer, partitions: list[TopicPartition]) -> list[TopicPartition]:
        """Learn which topic the committed offsets belong to.

        Returns the partitions whose offset another program has committed: to be read from their first message, as the
        gate drops what has been applied. Raises KafkaException.
        """
        self.topic_id = self.topic_id or topic_id(self.admin)
        committed = consumer.committed(partitions, timeout=5)
        foreign = [partition for partition in committed if partition.offset >= 0 and not partition.metadata]
        if foreign:
            log.error(
                "THE GROUP'S OFFSETS ARE NOT OURS: another program has committed as group %s, partitions %s. Reading "
                "these from their first message; what has been applied is not applied again",
                config.KAFKA_GROUP_ID,
                numbers(foreign),
            )
        for partition in foreign:
            warn_if_gone(partition.partition, 0, *consumer.get_watermark_offsets(partition, timeout=5))
        self.topic_ids |= {partition.partition: partition.metadata or self.topic_id for partition in committed}
        metrics.LAG.applied |= {
            partition.partition: 0 if partition in foreign else max(partition.offset, 0) for partition in committed
        }
        return foreign

    # Called between two batches

    def commit(self, consumer: Consumer, messages: list[Message]) -> None:
        """Commit the offsets after applied messages, of those partitions that are still ours.

        A crash before this reads the messages again, and the gate drops them.
        """
        ours = {partition.partition for partition in consumer.assignment()}
        for message in reversed(messages):
            partition = message.partition() or 0
            if partition in ours:
                self.pending[partition] = metrics.LAG.applied[partition] = (message.offset() or 0) + 1
                ours.discard(partition)
                if not ours:
                    break
        self.send(consumer)

    def send(self, consumer: Consumer) -> None:
        """Send the commits that are not acknowledged yet, none without a topic's id."""
        offsets = [
            TopicPartition(config.KAFKA_TOPIC, number, offset, self.topic_ids[number])
            for number, offset in self.pending.items()
            if number in self.topic_ids
        ]
        if not offsets:
            return
        self.sent = time.monotonic()
        try:
            consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            log.debug("offsets not committed: %s", error.args[0].str())

    def count_left(self, consumer: Consumer) -> int:
        """Return about how many messages of our partitions are not applied yet, by what the client knows."""
        left = 0
        for partition in consumer.assignment():
            first, end = consumer.get_watermark_offsets(partition, cached=True)
            left += max(0, end - max(metrics.LAG.applied.get(partition.partition, 0), first))
        return left

    def commit_again(self, consumer: Consumer) -> None:
        """Send the commits again that Kafka has not acknowledged in time."""
        if self.pending and time.monotonic() - self.sent > COMMIT_AGAIN and not self.brokers.down:
            self.send(consumer)

    def topic_recreated(self, consumer: Consumer) -> bool:
        """Whether the topic was re-created, and is now read from its first message. Asked once a second."""
        now = time.monotonic()
        if self.answer is None and now - self.checked > CHECK_EVERY:
            self.checked = now
            topics = TopicCollection([config.KAFKA_TOPIC])
            (self.answer,) = self.admin.describe_topics(topics, request_timeout=CHECK_WAIT).values()
        elif self.answer is not None and self.answer.done():
            answer, self.answer = self.answer, None
            try:
                recreated = self.reset_recreated(consumer, str(answer.result().topic_id))
            except KafkaException as error:
                self.warn_of(error.args[0].code())
                return False
            self.unanswered = 0
            if time.monotonic() - self.missed > STEADY:
                self.topic_outage.over()
            return recreated
        return False

    def warn_of(self, code: int) -> None:
        """Report why there is no answer about the topic."""
        answered = code not in NO_BROKER
        self.unanswered = 0 if answered else self.unanswered + 1
        if not answered:  # also by a frozen one, which the client notices only after a minute
            self.missed = time.monotonic()
            self.brokers.doubt(self.admin)
        if self.brokers.unsteady():
            return
        if code == KafkaError.UNKNOWN_TOPIC_OR_PART:
            self.topic_outage.warn(f"topic {config.KAFKA_TOPIC}: it does not exist; run python admin.py")
        elif self.unanswered > 1:  # the first time the client may have asked a broker that was the controller before
            self.topic_outage.warn(
                f"topic {config.KAFKA_TOPIC}: Kafka's controller does not answer; start the brokers that are down"
            )

    def reset_recreated(self, consumer: Consumer, topic_id: str) -> bool:
        """Read those partitions from their first message whose offset belongs to another topic than this one."""
        ours = consumer.assignment()
        unchecked = [part for part in ours if part.partition not in self.topic_ids]
        foreign = self.check_committed(consumer, unchecked) if unchecked else []
        stale = [part for part in ours if self.topic_ids[part.partition] != topic_id]
        if stale or self.topic_id not in ("", topic_id):
            log.error(
                "THE TOPIC WAS RE-CREATED: reading it from its first message. What was unread in the old one is gone; "
                "run python verify.py --repair"
            )
        reset = [part for part in ours if part in stale or part in foreign]
        if reset:
            read_from(consumer, [TopicPartition(part.topic, part.partition, OFFSET_BEGINNING) for part in reset])
        for part in reset:
            self.pending.pop(part.partition, None)
            metrics.LAG.applied[part.partition] = 0
        self.topic_id = topic_id
        self.topic_ids = {part.partition: topic_id for part in ours}
        return bool(reset)

    # Called at the end

    def leave(self, consumer: Consumer, stop: cli.Stop) -> None:
        """Commit what is left to commit and leave the group, if Kafka answers in time.

        What is applied is applied: a group that we cannot leave makes no failure of it, and finds out by itself.
        """
        wait = min(LEAVE_WAIT, stop.time_left() - EXIT_TIME)
        end = time.monotonic() + (0.0 if self.brokers.down or self.brokers.fatal else wait)
        self.leaving = True
        HEALTH.mark_up(self.topic_outage)  # the next session has another one
        self.send(consumer)
        while self.pending and time.monotonic() < end and not self.brokers.down:
            consumer.poll(0.05)
        # Take what the group has just given: left to close(), librdkafka can wait for it with Python's lock held.
        consumer.poll(0)
        if not self.brokers.fatal:  # left to close(), a rebalance under way could hang it: librdkafka issue 4041
            with suppress(KafkaException):  # another consumer has taken our place meanwhile
                consumer.unsubscribe()
            while consumer.assignment() and time.monotonic() < end:
                consumer.poll(0.05)
        closing = threading.Thread(target=consumer.close, daemon=True)  # without Kafka it would wait without end
        closing.start()
        closing.join(max(0.0, end - time.monotonic()))


def read_from_first(consumer: Consumer, event: Message) -> None:
    """Read a partition from its first message: there is no committed offset, or no message at it."""
    partition = TopicPartition(event.topic() or "", event.partition() or 0)
    if partition not in consumer.assignment():  # revoked meanwhile
        return
    try:
        first, end = consumer.get_watermark_offsets(partition, timeout=5)
        (committed,) = consumer.committed([partition], timeout=5)
    except KafkaException:
        partition.offset = OFFSET_STORED  # the brokers went down meanwhile: the same event comes again
    else:
        partition.offset = first
        warn_if_gone(partition.partition, max(committed.offset, 0), first, end)
    read_from(consumer, [partition])


def warn_if_gone(partition: int, read_up_to: int, first: int, end: int) -> None:
    """Log it if Kafka has deleted messages that the group may not have read.

    A group that was away for longer than Kafka keeps offsets looks like a new one: read_up_to is 0 then. If it is a new
    one, what the destination lacks is gone as well.
    """
    if not first <= read_up_to <= end:
        log.error(
            "MESSAGES ARE GONE: partition %s was read up to %s, Kafka has those from %s to %s only. Going on from the "
            "first; run python verify.py --repair",
            partition,
            f"offset {read_up_to}" if read_up_to else "an offset that is not known",
            first,
            end,
        )


def read_from(consumer: Consumer, partitions: list[TopicPartition]) -> None:
    consumer.incremental_unassign(partitions)
    consumer.incremental_assign(partitions)


def numbers(partitions: list[TopicPartition]) -> str:
    return ", ".join(map(str, sorted({partition.partition for partition in partitions}))) or "none"
