"""The dead-letter topic: the consumer sends there what can never be applied; admin.py lists, replays and discards it.

The topic <topic>_dlq holds the letters that are still to be handled. A letter that is replayed or discarded is deleted.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import config
from cdc import cli, metrics
from cdc.bar import progress
from cdc.flush import flush
from cdc.kafka import Brokers, advise, make_client
from cdc.progress import LINES_PER_SECOND, NAMED, Line
from cdc.text import counted
from cdc.topic import partition_numbers

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

log = logging.getLogger(__name__)

ORIGIN, ERROR = ("topic", "partition", "offset"), "error"  # the headers of a letter

PAGE = 100  # letters in memory at once; one can be as large as the broker allows
MAX_IN_HAND = 8_000_000  # bytes of letters that Kafka has yet to acknowledge
MAX_LISTED = 50  # letters
ANSWER_WAIT = 10  # seconds for an answer of Kafka

# Not idempotent: to send a letter twice is harmless, and without the right to write an idempotent client ends with a
# fatal error in the middle of a delivery report, which says nothing of the topic.
PRODUCER_SETTINGS = {
    "acks": "all",
    "message.max.bytes": 1_000_000_000,  # the broker decides
    "partitioner": "murmur2_random",  # producer.py's: the changes of an employee stay in one partition
}
READER_SETTINGS = {
    "group.id": "employee-cdc-dead-letters",  # required by the client; nothing is committed
    "enable.auto.commit": False,
    "enable.partition.eof": True,
    "queued.max.messages.kbytes": 16_384,
    "fetch.message.max.bytes": 65_536,  # much more once decompressed
}

Bounds = dict[int, tuple[int, int]]  # by partition: the first offset and the one after the last


Letter = tuple[Message, str]  # a message that can never be applied, and why


@dataclass
class DeadLetters:
    """Where the consumer sends what can never be applied. The client is made for the first letter."""

    brokers: Brokers
    stop: cli.Stop
    producer: Producer | None = None
    total: int = 0
    unreported: int = 0
    example: str = ""  # the first of the unreported letters
    second: float = 0.0  # when the current second began (time.monotonic)
    lines: int = 0  # logged in the current second

    def send(self, letters: list[Letter]) -> None:
        """Send messages with their origin and error, in their order, and wait until all are acknowledged.

        The list keeps those that Kafka has not acknowledged. Raises KafkaException if Kafka refuses one, Stopped if a
        stop is requested while Kafka is down.
        """
        if not letters:
            return
        if self.producer is None:
            self.producer = make_client(Producer, {**PRODUCER_SETTINGS, "message.timeout.ms": 0}, self.brokers)
        while letters:
            part = first_bytes(letters, MAX_IN_HAND)
            failures = produce_all(self.producer, config.DEAD_LETTER_TOPIC, list(map(to_message, part)), self.stop)
            failed = dict(failures)
            letters[: len(part)] = [letter for number, letter in enumerate(part) if number in failed]
            self.report([letter for number, letter in enumerate(part) if number not in failed])
            if failures:
                self.producer = None
                raise KafkaException(failures[0][1])

    def report(self, letters: list[Letter] | None = None) -> None:
        """Log letters: each while there are few, else a line a second with their number and an example.

        Without letters, log what is still unreported.
        """
        self.total += len(letters or ())
        metrics.DEAD_LETTERS.add(len(letters or ()))
        if letters and not self.unreported:
            self.example = f"{place(letters[0][0])} → dead letter: {letters[0][1]}"
        self.unreported += len(letters or ())
        now, count = time.monotonic(), self.unreported
        if now - self.second >= 1.0:
            self.second, self.lines = now, 0
        if letters is not None and count == len(letters) and count <= NAMED and self.lines + count <= LINES_PER_SECOND:
            lines: list[Line] = [
                (
                    f"{place(message)} → dead letter: {error}",
                    {"partition": message.partition(), "offset": message.offset()},
                )
                for message, error in letters
            ]
        elif count and self.lines < 1:
            lines = [(f"{counted(count, 'message')} → dead letters; such as {self.example}", {"count": count})]
        else:
            return
        self.lines += len(lines)
        self.unreported = 0
        for text, values in lines:
            log.error("%s", text, extra=values)

    def end(self) -> None:
        self.second = 0.0
        self.report()
        if self.total:
            log.info("sent %s in all", counted(self.total, "dead letter"), extra={"count": self.total})


def to_message(letter: Letter) -> dict[str, Any]:
    message, error = letter
    origin = (message.topic(), message.partition(), message.offset())
    headers = {name: str(value).encode() for name, value in zip(ORIGIN, origin, strict=True)}
    return {"value": message.value(), "key": message.key(), "headers": {**headers, ERROR: error.encode()}}


def place(message: Message) -> str:
    return f"message at partition {message.partition()}, offset {message.offset()}"


def first_bytes(letters: list[Letter], most: int) -> list[Letter]:
    """Return the first letters that have so many bytes together, at least one."""
    size = 0
    for count, (message, _) in enumerate(letters):
        size += len(message)
        if size > most:
            return letters[: max(count, 1)]
    return letters[:]


def produce_all(
    producer: Producer, topic: str, messages: list[dict[str, Any]], stop: cli.Stop | None = None
) -> list[tuple[int, KafkaError]]:
    """Send messages and wait until Kafka has answered for each.

    Returns its refusals: the number of each refused message, from 0, and why. Raises Stopped.
    """
    answers: dict[int, KafkaError | None] = {}
    fatal: KafkaError | None = None

    def answer_for(number: int) -> Callable[[KafkaError | None, Message], None]:
        return lambda error, _: answers.update({number: error})

    try:
        for number, message in enumerate(messages):
            producer.produce(topic, **message, on_delivery=answer_for(number))
        flush(producer, topic, stop)
    except KafkaException as error:
        fatal = error.args[0]
    refused = [number for number in range(len(messages)) if answers.get(number, fatal) is not None]
    # After a fatal error each message is answered with a consequence of it.
    return [(number, fatal or answers[number]) for number in refused]  # type: ignore[misc]


# What admin.py dead-letters does


def run(admin: AdminClient, brokers: Brokers, action: str | None, sure: bool) -> None:
    """List the letters (None) or as "json", "replay" or "discard" them."""
    if action == "json":
        logging.disable(logging.WARNING)  # stdout is for the JSON alone
    with closing(make_client(Consumer, READER_SETTINGS, brokers)) as reader:
        try:
            if action == "replay":
                replay(reader, admin, brokers)
            elif action == "discard":
                discard(reader, admin, sure)
            elif action == "json":
                print_json(reader, admin)
            else:
                print_letters(reader, admin)
        except KafkaException as error:
            cli.fail(f"Kafka at {config.KAFKA['bootstrap.servers']}: {error.args[0].str()}")


def print_letters(reader: Consumer, admin: AdminClient) -> None:
    from cdc import letters_screen  # here: producer.py and consumer.py show no letters, and rich takes a while

    from rich.console import Console

    console = Console(highlight=False)
    bounds = find_bounds(reader, admin)
    if not count(bounds):
        console.print("no dead letters")
        return
    letters: list[letters_screen.Cells] = []
    for page in read_pages(reader, bounds):
        letters += [letters_screen.to_cells(describe(message)) for message in page[: MAX_LISTED - len(letters)]]
        if len(letters) == MAX_LISTED:
            break
    console.print(letters_screen.render(letters, console.width))
    if unlisted := count(bounds) - len(letters):
        console.print(f"and {unlisted:,} more")


def print_json(reader: Consumer, admin: AdminClient) -> None:
    """Print a JSON array, a letter per line as it is read: there can be many."""
    separator = "["
    for page in read_pages(reader, find_bounds(reader, admin)):
        for message in page:
            print(separator, json.dumps(describe(message)), sep="\n")
            separator = ","
    print("[]" if separator == "[" else "]")


def replay(reader: Consumer, admin: AdminClient, brokers: Brokers) -> None:
    """Send the letters to the topic again. One that still cannot be applied comes back as a new letter."""
    stop = cli.stop_on_signals()
    producer = make_client(Producer, {**PRODUCER_SETTINGS, "message.timeout.ms": 60_000}, brokers)
    bounds, sent = find_bounds(reader, admin), 0
    with progress(count(bounds), "dead letters") as advance:
        for page in read_pages(reader, bounds):
            send_again(producer, admin, page)
            sent += len(page)
            advance(len(page))
            if stop.requested:
                break
    print(f"dead letters sent again: {sent:,}" + ("; stopped" if stop.requested else ""))


def send_again(producer: Producer, admin: AdminClient, page: list[Message]) -> None:
    """Send letters to the topic, and then delete them. Exits with one line if Kafka refuses one."""
    messages = [{"value": message.value(), "key": message.key()} for message in page]
    if failures := produce_all(producer, config.KAFKA_TOPIC, messages):
        refusal, topic = failures[0][1], config.KAFKA_TOPIC
        advice = advise(refusal, f"WRITE on topic {topic}")
        cli.fail(f"topic {topic}: {refusal.str()}; these dead letters stay{advice}")
    # A crash here sends the page again, which is harmless: the gate drops what has been applied.
    delete_before(admin, {message.partition() or 0: offset(message) + 1 for message in page})


def discard(reader: Consumer, admin: AdminClient, sure: bool) -> None:
    bounds = find_bounds(reader, admin)
    if not count(bounds):
        print("no dead letters")
        return
    if not sure and not cli.confirm(f"Delete {counted(count(bounds), 'dead letter')}?", "--discard"):
        cli.fail("nothing deleted")
    delete_before(admin, {number: end for number, (first, end) in bounds.items() if first < end})
    print(f"dead letters deleted: {count(bounds):,}")


def delete_before(admin: AdminClient, ends: dict[int, int]) -> None:
    """Delete the letters before these offsets, by partition."""
    parts = [TopicPartition(config.DEAD_LETTER_TOPIC, number, end) for number, end in ends.items()]
    for future in admin.delete_records(parts, request_timeout=ANSWER_WAIT).values():
        future.result()


# Reading them


def find_bounds(reader: Consumer, admin: AdminClient) -> Bounds:
    """Return which offsets there are. Exits with one line if a topic is missing."""
    numbers = {topic: partition_numbers(admin, topic) for topic in (config.KAFKA_TOPIC, config.DEAD_LETTER_TOPIC)}
    for topic in numbers:
        if not numbers[topic]:
            cli.fail(f"topic {topic} does not exist; run python admin.py")
    partitions = [TopicPartition(config.DEAD_LETTER_TOPIC, number) for number in numbers[config.DEAD_LETTER_TOPIC]]
    return {part.partition: reader.get_watermark_offsets(part, timeout=ANSWER_WAIT) for part in partitions}


def count(bounds: Bounds) -> int:
    return sum(end - first for first, end in bounds.values())


def read_pages(reader: Consumer, bounds: Bounds) -> Iterator[list[Message]]:
    """Yield the letters within bounds, some at a time. Exits with one line if Kafka no longer answers."""
    ends = {number: end for number, (first, end) in bounds.items() if first < end}
    reader.assign([TopicPartition(config.DEAD_LETTER_TOPIC, number, bounds[number][0]) for number in ends])
    answered = time.monotonic()
    while ends:
        page = []
        for message in reader.consume(PAGE, 0.2):
            error, number = message.error(), message.partition() or 0
            if error is not None and error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
                continue  # no right on the group is needed where nothing is committed
            answered = time.monotonic()
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                raise KafkaException(error)
            if number in ends and error is None and offset(message) < ends[number]:
                page.append(message)
            if number in ends and (error is not None or offset(message) + 1 >= ends[number]):
                del ends[number]
        if page:
            yield page
        elif time.monotonic() - answered > ANSWER_WAIT:
            cli.fail(f"Kafka at {config.KAFKA['bootstrap.servers']} does not answer")


def offset(message: Message) -> int:
    return message.offset() or 0


def describe(message: Message) -> dict[str, Any]:
    """Return what there is to know of a letter. A stranger's letter has no headers."""
    pairs: Any = message.headers() or ()
    headers = {name: decode(value) for name, value in pairs}
    return {
        "partition": message.partition(),
        "offset": message.offset(),
        "when": timestamp(message),
        "employee": decode(message.key()),
        "error": headers.get(ERROR),
        "origin": {name: headers.get(name) for name in ORIGIN},
        "value": decode(message.value()),
    }


def decode(value: bytes | str | None) -> str | None:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else value


def timestamp(message: Message, precision: str = "seconds") -> str | None:
    kind, milliseconds = message.timestamp()
    try:
        return datetime.fromtimestamp(milliseconds / 1000).astimezone().isoformat(timespec=precision) if kind else None
    except (ValueError, OverflowError, OSError):  # a stranger's time can be any number
        return None
