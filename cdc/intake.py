"""Take messages into batches, and read ahead while the destination works at the batch before.

A batch is folded: of many changes of one employee, only the newest is applied. Where employees change again and again,
a larger batch leaves fewer records to apply, and waiting for more messages pays. Where they do not, the destination had
better begin.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import config
from cdc.apply import keep_newest
from cdc.health import HEALTH
from cdc.message import Record, read, read_all
from cdc.waiting import waiter

from confluent_kafka import Consumer, Message

KAFKA_SETTINGS = {
    "group.id": config.KAFKA_GROUP_ID,
    "enable.auto.commit": False,
    "auto.offset.reset": "error",  # a gap is reported, not skipped: see offsets.read_from_first
    "partition.assignment.strategy": "cooperative-sticky",
    "session.timeout.ms": 6_000,  # how long a killed consumer's partitions wait for another one
    "heartbeat.interval.ms": 2_000,
    "topic.metadata.refresh.interval.ms": 2_000,  # how soon a topic created later, or its new partitions, are seen
    "fetch.queue.backoff.ms": 2,  # default 1,000: a second's pause whenever the queue is full
    "fetch.error.backoff.ms": 100,
    "queued.min.messages": 10_000,  # per partition; bounds the memory together with the next
    "queued.max.messages.kbytes": 8_192,
    "socket.nagle.disable": True,
}
# What the broker decides under KAFKA_GROUP_PROTOCOL=consumer (Kafka 4); the client then refuses the setting.
CLASSIC_ONLY = ("partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms")

CHUNK = 1_000  # messages taken from the client's queue at once
CHUNK_WHILE_BUSY = 200  # the same while PostgreSQL works
PAUSE_AFTER = 3.0  # seconds of it after which a full batch has us poll, paused; the client drops then what it fetched
READ_AHEAD_AFTER = 1.0  # seconds of PostgreSQL's work after which to read ahead without a backlog
FIRST_WAIT = 0.2  # seconds to wait for the first message of a batch
FILL_TIME = 0.03  # seconds to fill a batch
FOLDING_CHUNK_WAIT, FOLDING_FILL_TIME = 0.05, 0.4  # seconds to wait for a chunk, and to fill a batch that folds well

MAX_EMPLOYEES = 16_000  # applied together, or a little more
WELL_FOLDED = 0.8  # employees for each record, at most
MAX_BAD = 1_000  # dead letters of one batch, or a little more: a crash sends them again
MAX_MEMORY = 40_000_000  # bytes for a batch: some 45,000 messages where few employees change often
MESSAGE_OVERHEAD = 300  # bytes that a message takes beside its value
RECORD_COPIES = 6  # of a record's text, at most at a time, on its way from the message into PostgreSQL


def kafka_settings() -> dict[str, Any]:
    """Return the settings of a consumer's client, without those that its group's protocol leaves to the broker."""
    if config.KAFKA.get("group.protocol") != "consumer":
        return KAFKA_SETTINGS
    return {key: value for key, value in KAFKA_SETTINGS.items() if key not in CLASSIC_ONLY}


@dataclass
class Batch:
    """What is applied together: of many messages, the newest record of each employee."""

    messages: list[Message] = field(default_factory=list)
    newest: dict[int, Record] = field(default_factory=dict)  # by emp_id
    bad: list[tuple[Message, str]] = field(default_factory=list)  # what is no record, and why
    size: int = 0  # bytes of the messages' values

    def add(self, messages: list[Message]) -> None:
        values = list(map(Message.value, messages))
        keep_newest(self.newest, read_all(values) or self.read_each(messages))
        self.messages += messages
        self.size += sum(map(len, messages))

    def read_each(self, messages: list[Message]) -> list[Record]:
        """Return the records in messages, and put those that are none into bad."""
        records = list[Record]()
        for message in messages:
            try:
                records.append(read(message.value()))
            except ValueError as error:
                self.bad.append((message, str(error)))
        return records

    def full(self) -> bool:
        return len(self.newest) >= MAX_EMPLOYEES or len(self.bad) >= MAX_BAD or self.memory() >= MAX_MEMORY

    def records(self) -> int:
        return len(self.messages) - len(self.bad)

    def folds_well(self) -> bool:
        """Whether employees change often enough that waiting for a fuller batch pays."""
        return len(self.newest) < MAX_EMPLOYEES or len(self.newest) <= WELL_FOLDED * self.records()

    def memory(self) -> float:
        """Return about how many bytes the batch takes until it is applied."""
        count = len(self.messages)
        copied = RECORD_COPIES * len(self.newest) / count if count else 0.0
        return MESSAGE_OVERHEAD * count + self.size * (1 + copied)


@dataclass
class Intake:
    """What was read and is not yet applied: a batch of messages, and the events among them."""

    consumer: Consumer
    batch: Batch = field(default_factory=Batch)
    events: list[Message] = field(default_factory=list)
    # Wait for a fuller batch if the last one was large and folded well. A small batch shows nothing: it would keep the
    # next one small.
    expect_folding: bool = False
    paused: bool = False  # the partitions, until PostgreSQL answers

    def take_batch(self) -> tuple[Batch, list[Message]]:
        """Wait for a first message, take what else is there, and return the batch and the events."""
        HEALTH.turn()
        self.fill()
        batch, events = self.batch, self.events
        self.batch, self.events = Batch(), []
        self.expect_folding = batch.records() >= CHUNK and batch.folds_well()
        return batch, events

    def discard(self) -> None:
        """Forget what was read ahead."""
        self.batch, self.events = Batch(), []

    def add(self, messages: list[Message]) -> bool:
        """Sort messages from events; returns whether there was any."""
        events = list(filter(Message.error, messages))
        self.events += events
        self.batch.add([message for message in messages if message.error() is None] if events else messages)
        return bool(messages)

    def fill(self) -> None:
        if not self.batch.messages and not self.events:
            first = self.consumer.poll(FIRST_WAIT)
            if first is None:
                return
            self.add([first])
        end = time.monotonic() + (FOLDING_FILL_TIME if self.expect_folding else FILL_TIME)
        while not self.batch.full() and time.monotonic() < end:
            # With a time-out, consume() waits all of it for a full chunk: so only where a backlog is read.
            backlog = self.expect_folding and len(self.batch.messages) >= CHUNK
            messages = self.consumer.consume(CHUNK, FOLDING_CHUNK_WAIT if backlog else 0)
            self.add(messages)
            if len(messages) < CHUNK:  # no more than trickles in
                break

    @contextmanager
    def reading_ahead(self, batch: Batch) -> Iterator[None]:
        """Fill the next batch while PostgreSQL works at this one, if this one shows that there is a backlog.

        Where PostgreSQL takes long, fill it in any case, and then poll: else the group would take our partitions.
        """
        started = time.monotonic()
        begin = started + (0.0 if len(batch.messages) >= CHUNK else READ_AHEAD_AFTER)
        with waiter.doing(lambda: time.monotonic() >= begin and self.read_ahead(started)):
            yield
        if self.paused:
            self.consumer.resume(self.consumer.assignment())
            self.paused = False

    def read_ahead(self, started: float) -> bool:
        """Take what messages there are, if there is room; returns whether there were any.

        started: when PostgreSQL began to work (time.monotonic).
        """
        if not self.batch.full():
            return self.add(self.consumer.consume(CHUNK_WHILE_BUSY, 0))
        if time.monotonic() - started < PAUSE_AFTER:
            return False
        # Again and again: the group may assign others meanwhile, of which one may give a message before it is paused.
        self.consumer.pause(self.consumer.assignment())
        self.paused = True
        message = self.consumer.poll(0)
        return message is not None and self.add([message])
