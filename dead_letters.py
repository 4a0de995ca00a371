"""The dead letters: list them, send them again, let them go. python admin.py dead-letters is what runs this.

The topic <topic>_dlq holds those that are still to be handled: what is sent again or let go is deleted there.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from rich.console import Console
from rich.table import Table
from rich.text import Text

import cli
import config
from connection import Kafka, kafka_client

PAGE = 100  # letters in memory at once; one can be as large as the broker allows
LISTED = 50  # lines of the table
CUT = 80  # characters of a value there
WAIT = 10  # seconds for an answer of Kafka

READER_SETTINGS = {
    "group.id": "employee-cdc-dead-letters",  # asked for by the client; nothing is committed
    "enable.auto.commit": False,
    "enable.partition.eof": True,
    "queued.max.messages.kbytes": 16_384,
    "fetch.message.max.bytes": 65_536,  # it is much more once decompressed
}
PRODUCER_SETTINGS = {
    "enable.idempotence": True,
    "message.timeout.ms": 60_000,
    "message.max.bytes": 1_000_000_000,  # the broker decides
    "partitioner": "murmur2_random",  # producer.py's: an employee's changes stay in one partition
}

Bounds = dict[int, tuple[int, int]]


def bounds(reader: Consumer) -> Bounds:
    """Return the first offset and the one behind the last, by partition. Exits with one line if a topic is missing."""
    topics = reader.list_topics(timeout=WAIT).topics
    for topic in (config.KAFKA_TOPIC, config.DEAD_LETTER_TOPIC):
        if topic not in topics:
            cli.fail(f"topic {topic} does not exist; run python admin.py")
    partitions = [
        TopicPartition(config.DEAD_LETTER_TOPIC, number) for number in topics[config.DEAD_LETTER_TOPIC].partitions
    ]
    return {part.partition: reader.get_watermark_offsets(part, timeout=WAIT) for part in partitions}


def count(found: Bounds) -> int:
    return sum(end - first for first, end in found.values())


def pages(reader: Consumer, found: Bounds) -> Iterator[list[Message]]:
    """Yield the letters within bounds, some at a time. Exits with one line if Kafka does not answer any more."""
    ends = {number: end for number, (first, end) in found.items() if first < end}
    reader.assign([TopicPartition(config.DEAD_LETTER_TOPIC, number, found[number][0]) for number in ends])
    answered = time.monotonic()
    while ends:
        page = []
        for message in reader.consume(PAGE, 0.2):
            answered = time.monotonic()
            error, number = message.error(), message.partition() or 0
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                raise KafkaException(error)
            if number in ends and error is None and offset(message) < ends[number]:
                page.append(message)
            if number in ends and (error is not None or offset(message) + 1 >= ends[number]):
                del ends[number]
        if page:
            yield page
        elif time.monotonic() - answered > WAIT:
            cli.fail(f"Kafka at {config.KAFKA['bootstrap.servers']} does not answer")


def offset(message: Message) -> int:
    return message.offset() or 0


def described(message: Message) -> dict[str, Any]:
    """Return what there is to know of a letter. Strangers' letters have no headers."""
    pairs: Any = message.headers() or ()
    headers = {name: decoded(value) for name, value in pairs}
    return {
        "partition": message.partition(),
        "offset": message.offset(),
        "when": when(message),
        "employee": decoded(message.key()),
        "error": headers.get("error"),
        "origin": {name: headers.get(name) for name in ("topic", "partition", "offset")},
        "value": decoded(message.value()),
    }


def decoded(value: bytes | str | None) -> str | None:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else value


def when(message: Message) -> str | None:
    kind, milliseconds = message.timestamp()
    try:
        return datetime.fromtimestamp(milliseconds / 1000).astimezone().isoformat(timespec="seconds") if kind else None
    except (ValueError, OverflowError, OSError):  # a stranger's time can be any number
        return None


def show(reader: Consumer, console: Console) -> None:
    found = bounds(reader)
    if not count(found):
        console.print("no dead letters")
        return
    table = Table("when", "employee", "error", "origin", "value", title="dead letters", title_justify="left")
    for page in pages(reader, found):
        for letter in map(described, page[: LISTED - table.row_count]):
            origin = "/".join(part for part in letter["origin"].values() if part)
            cells = (letter["when"], letter["employee"], letter["error"], origin, letter["value"])
            table.add_row(*(Text(cut(cell or "-"), overflow="fold") for cell in cells))
        if table.row_count == LISTED:
            break
    console.print(table)
    if left_out := count(found) - table.row_count:
        console.print(f"and {left_out:,} more")


def cut(text: str) -> str:
    shown = "".join(character if character.isprintable() else "·" for character in text[: CUT + 1])
    return shown if len(shown) <= CUT else shown[:CUT] + "…"


def print_json(reader: Consumer) -> None:
    """Print a JSON array, a letter per line as it is read: there can be many."""
    separator = "["
    for page in pages(reader, bounds(reader)):
        for message in page:
            print(separator, json.dumps(described(message)), sep="\n")
            separator = ","
    print("[]" if separator == "[" else "]")


def replay(reader: Consumer, admin: AdminClient, kafka: Kafka) -> None:
    """Send the letters to the topic again. One that still cannot be applied comes back as a new letter."""
    stop = cli.stop_on_signals()
    producer, sent = kafka_client(Producer, PRODUCER_SETTINGS, kafka), 0
    for page in pages(reader, bounds(reader)):
        send(producer, page)
        # A crash here sends the page again, which is harmless: the consumer's gate drops what it has already applied.
        forget(admin, {message.partition() or 0: offset(message) + 1 for message in page})
        sent += len(page)
        if stop.requested:
            break
    print(f"dead letters sent again: {sent:,}" + ("; stopped" if stop.requested else ""))


def send(producer: Producer, page: list[Message]) -> None:
    """Send letters with their keys and values, and wait until all are acknowledged. Exits with one line if not."""
    failures: list[KafkaError] = []
    try:
        for message in page:
            producer.produce(
                config.KAFKA_TOPIC,
                message.value(),
                message.key(),
                on_delivery=lambda error, _: failures.append(error) if error else None,
            )
        while producer.flush(1.0):
            pass
    except KafkaException as error:
        failures.append(error.args[0])
    if failures:
        cli.fail(f"topic {config.KAFKA_TOPIC}: {failures[0].str()}; these dead letters stay")


def discard(reader: Consumer, admin: AdminClient, sure: bool) -> None:
    found = bounds(reader)
    if not count(found):
        print("no dead letters")
        return
    if not sure:
        if not sys.stdin.isatty():
            cli.fail("--discard asks first; without a terminal give --yes", cli.WRONG_USE)
        try:
            answer = input(f"Delete {count(found):,} dead letters? [y/N] ")
        except (EOFError, KeyboardInterrupt):
            answer = ""
        if answer.strip().lower() not in ("y", "yes"):
            cli.fail("nothing deleted")
    forget(admin, {number: end for number, (first, end) in found.items() if first < end})
    print(f"dead letters deleted: {count(found):,}")


def forget(admin: AdminClient, behind: dict[int, int]) -> None:
    """Delete the letters before these offsets, by partition."""
    parts = [TopicPartition(config.DEAD_LETTER_TOPIC, number, end) for number, end in behind.items()]
    for future in admin.delete_records(parts, request_timeout=WAIT).values():
        future.result()


def run(admin: AdminClient, kafka: Kafka, action: str | None, sure: bool) -> None:
    """Do what admin.py was asked for: "json", "replay", "discard", or else a table."""
    if action == "json":
        logging.disable(logging.WARNING)  # stdout is for the JSON alone
    with closing(kafka_client(Consumer, READER_SETTINGS, kafka)) as reader:
        try:
            if action == "replay":
                replay(reader, admin, kafka)
            elif action == "discard":
                discard(reader, admin, sure)
            elif action == "json":
                print_json(reader)
            else:
                show(reader, Console(highlight=False))
        except KafkaException as error:
            cli.fail(f"Kafka at {config.KAFKA['bootstrap.servers']}: {error.args[0].str()}")
