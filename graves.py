"""What can never be applied goes to the dead-letter topic, alone, and the rest of its batch goes on."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from psycopg2.extensions import connection as Connection

import cli
import config
from apply import DATA_ERRORS, apply, keep_newest, newest
from connection import Kafka, first_line, kafka_client
from employee import Record, read

log = logging.getLogger("consumer")

EMPLOYEES = 16_000  # applied in one transaction, or a little more
FOLDING = 0.8  # employees for each record, at most, where they change again and again
MEMORY = 40_000_000  # bytes, for a batch; some 45,000 messages where few employees change often
PER_MESSAGE = 300  # bytes that a message takes beside its value
COPIES = 9  # of a record's text, at most at a time, on its way from the message into the statement

KAFKA_SETTINGS = {
    "enable.idempotence": True,
    "message.timeout.ms": 0,
    "message.max.bytes": 1_000_000_000,  # the broker decides
}


@dataclass
class Batch:
    """What is applied in one transaction: of many messages the newest record of each employee."""

    messages: list[Message] = field(default_factory=list)
    newest: dict[int, Record] = field(default_factory=dict)  # by emp_id
    bad: list[tuple[Message, str]] = field(default_factory=list)  # what is no record, and why
    size: int = 0  # bytes of the messages' values

    def add(self, message: Message) -> None:
        self.messages.append(message)
        self.size += len(message)
        try:
            record = read(message.value())
        except ValueError as error:
            self.bad.append((message, str(error)))
            return
        keep_newest(self.newest, record)

    def full(self) -> bool:
        return len(self.newest) >= EMPLOYEES or self.memory() >= MEMORY

    def records(self) -> int:
        return len(self.messages) - len(self.bad)

    def spread(self) -> bool:
        """Whether it holds as many employees as it may, hardly any of them twice."""
        return len(self.newest) >= EMPLOYEES and len(self.newest) > FOLDING * self.records()

    def memory(self) -> float:
        """Return about how many bytes the batch takes until it is applied."""
        count = len(self.messages)
        copied = COPIES * len(self.newest) / count if count else 0.0
        return PER_MESSAGE * count + self.size * (1 + copied)


@dataclass
class Graves:
    """Where dead letters go: the topic <topic>_dlq. Its client is made for the first one."""

    kafka: Kafka
    stop: cli.Stop
    producer: Producer | None = None
    buried: set[tuple[int | None, int | None]] = field(default_factory=set)  # of the batch: partition, offset

    def bury(self, message: Message, error: str) -> None:
        """Send a message to the dead-letter topic, with its origin and the error, and wait until it is acknowledged.

        Raises KafkaException if Kafka refuses it, Stopped if a stop is requested while Kafka is away.
        """
        if self.producer is None:
            self.producer = kafka_client(Producer, KAFKA_SETTINGS, self.kafka)
        place = (message.partition(), message.offset())
        if place in self.buried:  # at an earlier try of the same batch
            return
        origin = {"topic": message.topic(), "partition": message.partition(), "offset": message.offset()}
        failures: list[KafkaError] = []
        self.producer.produce(
            config.DEAD_LETTER_TOPIC,
            message.value(),
            message.key(),
            headers={**{name: str(value).encode() for name, value in origin.items()}, "error": error.encode()},
            on_delivery=lambda failure, _: failures.append(failure) if failure else None,
        )
        while self.producer.flush(1.0):
            if self.stop.requested:
                raise cli.Stopped
        if failures:
            self.producer = None
            raise KafkaException(failures[0])
        self.buried.add(place)
        log.error("message at partition %s offset %s → dead letter: %s", message.partition(), message.offset(), error)


def apply_or_bury(destination: Connection, batch: Batch, graves: Graves) -> int:
    """Apply a batch; what is no record goes to the dead-letter topic. Returns how many employees changed."""
    for message, error in batch.bad:
        graves.bury(message, error)
    if not batch.newest:
        return 0
    try:
        return apply(destination, batch.newest.values())
    except DATA_ERRORS:
        bad = {id(message) for message, _ in batch.bad}
        return apply_halved(destination, [message for message in batch.messages if id(message) not in bad], graves)


def apply_halved(destination: Connection, messages: list[Message], graves: Graves) -> int:
    """Apply records; where PostgreSQL refuses them for their data, halve them until the bad ones stand alone."""
    try:
        return apply(destination, newest(read(message.value()) for message in messages))
    except DATA_ERRORS as error:
        if len(messages) == 1:
            graves.bury(messages[0], first_line(error))
            return 0
    middle = len(messages) // 2
    return sum(apply_halved(destination, half, graves) for half in (messages[:middle], messages[middle:]))
