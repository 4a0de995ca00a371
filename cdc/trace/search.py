"""Find the last messages of one employee in a topic, searched from its end within bounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

import config
from cdc.kafka import GROUP_REFUSED, Brokers, make_client
from cdc.topic import GUARD_SETTINGS

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

MAX_MESSAGES = 100_000  # of each partition that are searched
FIRST_BLOCK = 2_000  # messages from the end that are read first; each further block is twice as large
SEARCH_WAIT = 5.0  # seconds for all partitions together

PARTITIONER = "murmur2_random"  # producer.py's
SETTINGS = {**GUARD_SETTINGS, "auto.offset.reset": "earliest", "queued.max.messages.kbytes": 16_384}


def murmur2(key: bytes) -> int:
    """Return the hash by which Kafka's clients choose the partition of a key, as an unsigned number of 32 bits."""
    value, mask = (0x9747B28C ^ len(key)) & 0xFFFFFFFF, 0xFFFFFFFF
    whole = len(key) - len(key) % 4
    for start in range(0, whole, 4):
        word = int.from_bytes(key[start : start + 4], "little") * 0x5BD1E995 & mask
        word = (word ^ word >> 24) * 0x5BD1E995 & mask
        value = (value * 0x5BD1E995 ^ word) & mask
    if whole < len(key):
        value = (value ^ int.from_bytes(key[whole:], "little")) * 0x5BD1E995 & mask
    value = (value ^ value >> 13) * 0x5BD1E995 & mask
    return value ^ value >> 15


def partition_of(emp_id: int, partitions: list[int]) -> int | None:
    """Return the partition in which an employee's messages are; None where KAFKA_PARTITIONER has its own way."""
    if config.KAFKA.get("partitioner", PARTITIONER) not in (PARTITIONER, "murmur2"):
        return None
    return (murmur2(str(emp_id).encode()) & 0x7FFFFFFF) % len(partitions)


@dataclass
class Search:
    """What was found in one partition, and how much of it was searched."""

    partition: int
    first: int  # the first offset that there is
    end: int  # the offset after the last one
    searched_from: int = -1  # everything from here to the end was searched
    messages: list[Message] = field(default_factory=list)  # in their order

    def __post_init__(self) -> None:
        self.searched_from = self.end

    @property
    def unsearched(self) -> int:
        """How many messages there are before those that were searched."""
        return self.searched_from - self.first


def search(
    brokers: Brokers, topic: str, bounds: dict[int, tuple[int, int]], wanted: int, matches: Callable[[Message], bool]
) -> list[Search]:
    """Search partitions, each back from its end until so many messages match, MAX_MESSAGES or SEARCH_WAIT are over.

    Raises KafkaException where Kafka refuses.
    """
    deadline = time.monotonic() + SEARCH_WAIT
    with closing(make_client(Consumer, SETTINGS, brokers)) as reader:
        return [
            search_partition(reader, topic, Search(number, *bounds[number]), wanted, matches, deadline)
            for number in sorted(bounds)
        ]


def search_partition(
    reader: Consumer, topic: str, found: Search, wanted: int, matches: Callable[[Message], bool], deadline: float
) -> Search:
    """Read blocks, one before the other. A block that is not read to its end in time does not count as searched."""
    size = FIRST_BLOCK
    lowest = max(found.first, found.end - MAX_MESSAGES)
    while found.searched_from > lowest and len(found.messages) < wanted:
        start = max(lowest, found.searched_from - size)
        reader.assign([TopicPartition(topic, found.partition, start)])
        block = [message for message in read_block(reader, found.searched_from, deadline) if matches(message)]
        if time.monotonic() > deadline:
            break
        found.messages = block + found.messages
        found.searched_from, size = start, 2 * size
    return found


def read_block(reader: Consumer, end: int, deadline: float) -> Iterator[Message]:
    """Yield the messages of the assigned partition before an offset."""
    while time.monotonic() < deadline:
        for message in reader.consume(1_000, 0.1):
            error, offset = message.error(), message.offset() or 0
            if error is None and offset < end:
                yield message
            if (error is None and offset + 1 >= end) or (error and error.code() == KafkaError._PARTITION_EOF):
                return
            if error is not None and error.code() != GROUP_REFUSED:  # where nothing is committed none is needed
                raise KafkaException(error)
