"""Hand a page to Kafka and wait until all of it is acknowledged."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import config
from cdc import cli, delay, metrics, signature
from cdc.dead_letters import produce_all
from cdc.flush import Flush
from cdc.kafka import Brokers, advise
from cdc.message import Change, describe, to_json
from cdc.outage import Outage
from cdc.progress import Line
from employee import CDC_COLUMNS

from confluent_kafka import KafkaError, KafkaException, Producer

log = logging.getLogger(__name__)

PAGE = 10_000  # changes beyond the offset, and as many late rows, that are published and acknowledged together

KAFKA_SETTINGS = {
    "enable.idempotence": True,  # acks=all; the client's own retries neither repeat nor reorder
    "message.timeout.ms": 0,  # it runs while queued: a slow broker must make us late, not lose a page
    "delivery.report.only.error": True,  # one callback per failure instead of one per message
    "queue.buffering.max.messages": 2 * PAGE,
    "queue.buffering.max.kbytes": 65_536,
    "compression.type": "lz4",
    "partitioner": "murmur2_random",  # the Java client's: other tools find a key in the same partition
    "socket.nagle.disable": True,
}


# The broker's verdicts on a batch of messages. They stay the same however often it is sent.
VERDICTS = (
    KafkaError.MSG_SIZE_TOO_LARGE,  # of the compressed batch, against the topic's max.message.bytes
    KafkaError.INVALID_RECORD,  # a message without a key, in a compacted topic
    KafkaError.INVALID_MSG,
    KafkaError.INVALID_TIMESTAMP,
    KafkaError.POLICY_VIOLATION,
)


class NotPublished(Exception):
    """Kafka does not take some of a page now; the position stays before the page."""


class Refused(Exception):
    """The broker refuses some of the messages for good."""


@dataclass(frozen=True)
class Published:
    """What the producer has published at a time: how many changes, and the last page of them."""

    count: int = 0  # 0 when the log is drained
    changes: list[Change] = field(default_factory=list)
    refused: int = 0  # how many of them the broker has refused for good; they are not in `changes`

    def with_page(self, changes: list[Change], refused: list[Change]) -> Published:
        """Return this and the page published next. refused: those of its changes that the broker refused for good."""
        return Published(self.count + len(changes), without(changes, refused), self.refused + len(refused))

    @property
    def full(self) -> bool:
        """Whether more may be waiting."""
        return self.count >= PAGE

    def describe(self) -> list[Line]:
        """Return a line for each of the changes."""
        lines = list[Line]()
        for change in self.changes:
            name, log_offset = describe(to_json(change))
            lines.append((f"{name} → published, log offset {log_offset}", {"log_offset": log_offset}))
        return lines


def without(changes: list[Change], refused: list[Change]) -> list[Change]:
    return [change for change in changes if change not in refused] if refused else changes


@metrics.PUBLISH_DURATION.timed
def publish(producer: Producer, page: list[Change], stop: cli.Stop, changed_at: str | None = None) -> list[Change]:
    """Hand a page to Kafka and wait until all of it is acknowledged.

    A part that the broker refuses for good is halved until it fits, or a change stands alone: that one is set aside.
    What was already taken of the part is sent again, so that an employee's last change stays the last in the topic.
    Returns what was set aside. Raises NotPublished, or Stopped if a stop is requested while Kafka is down.
    """
    start, size, aside = 0, len(page), list[Change]()
    while start < len(page):
        part = page[start : start + size]
        try:
            send(producer, part, stop, changed_at if start == 0 else None)
        except Refused as refusal:
            if len(part) > 1:
                size = len(part) // 2
                continue
            set_aside(producer, part[0], str(refusal), stop)
            aside += part
            size = len(page)
        start += len(part)
    metrics.BATCH.observe(len(page))
    return aside


def set_aside(producer: Producer, change: Change, reason: str, stop: cli.Stop) -> None:
    """Send a change that the broker refuses alone to the dead letters. If they refuse it too, only log it."""
    headers = {"topic": config.KAFKA_TOPIC, "log offset": str(change.cdc_id), "error": reason}
    letter = {**to_message(change), "headers": {name: value.encode() for name, value in headers.items()}}
    failures = produce_all(producer, config.DEAD_LETTER_TOPIC, [letter], stop)
    if failures and failures[0][1].code() not in VERDICTS:
        topic, error = config.DEAD_LETTER_TOPIC, failures[0][1]
        raise NotPublished(f"{topic}: {error.str()}{advise(error, f'WRITE on topic {topic}')}")
    metrics.DEAD_LETTERS.add(1)
    outcome = f"refused there too, so it is in the log only: {failures[0][1].str()}" if failures else reason
    log.error(
        "%s %s, log offset %s → dead letter: %s",
        change.action,
        name(change),
        change.cdc_id,
        outcome,
        extra={"log_offset": change.cdc_id},
    )


def name(change: Change) -> str:
    return "without employee" if change.emp_id is None else f"employee {change.emp_id}"


def to_message(change: Change) -> dict[str, Any]:
    """Return a change that is set aside as a message. Bytes that are no text are in it as they were stored."""
    fields = {column: getattr(change, column) for column in CDC_COLUMNS}
    value = json.dumps(fields, separators=(",", ":"), ensure_ascii=False)
    key = None if change.emp_id is None else str(change.emp_id)
    return {"key": key, "value": value.encode("utf-8", "surrogateescape")}


def send(producer: Producer, changes: list[Change], stop: cli.Stop, changed_at: str | None = None) -> None:
    """Send changes and wait for all acknowledgements. Raises Refused, NotPublished, Stopped."""
    failures: list[KafkaError] = []
    try:
        waiting: list[dict[str, Any]] = [  # only what was put into the log by hand can be without emp_id
            {"key": None if change.emp_id is None else str(change.emp_id), "value": to_json(change)}
            for change in changes
        ]
    except UnicodeEncodeError:
        raise Refused("a byte that is no text in the source's encoding") from None
    size = sum(len(message["value"]) for message in waiting)
    wait = Flush(producer, config.KAFKA_TOPIC, stop)
    send_first(producer, waiting, {**signature.HEADERS, **delay.stamp(changed_at)}, failures)
    while waiting and not failures:
        producer.produce_batch(config.KAFKA_TOPIC, waiting, on_delivery=lambda error, _: collect(error, failures))
        # A full queue does not raise. It marks the messages that found no place, always the tail of the list.
        waiting = [message for message in waiting if "_error" in message]
        for message in waiting:
            error = message.pop("_error")
            if error.code() != KafkaError._QUEUE_FULL:
                failures.append(error)
        if waiting:
            producer.poll(0.1)
            wait.check()
    wait.finish()
    verdicts = [error for error in failures if error.code() in VERDICTS]
    if verdicts:
        raise Refused(verdicts[0].str())
    if failures:
        raise NotPublished(failures[0].str() + advise(failures[0], f"WRITE on topic {config.KAFKA_TOPIC}"))
    metrics.PUBLISHED.add(len(changes))
    metrics.PUBLISHED_BYTES.add(size)


def send_first(
    producer: Producer, waiting: list[dict[str, Any]], headers: dict[str, Any], failures: list[KafkaError]
) -> None:
    """Send the first of the messages with headers, and take it off the list. One that is refused stays there.

    The client takes no headers with a batch of messages.
    """
    with suppress(BufferError, KafkaException):  # sent with the others then, which finds the same and can tell it
        producer.produce(
            config.KAFKA_TOPIC,
            **waiting[0],
            headers=headers,
            on_delivery=lambda error, _: collect(error, failures),
        )
        del waiting[0]


def collect(error: KafkaError | None, failures: list[KafkaError]) -> None:
    if error is not None:
        failures.append(error)


def wait_for_topic(outage: Outage, brokers: Brokers, error: KafkaException | NotPublished) -> None:
    """Wait before the next try. Exits if the brokers refuse our login or encryption: that is a wrong setting."""
    reason = str(error)
    if isinstance(error, KafkaException):
        if brokers.wrong_setting:
            cli.fail(brokers.wrong_setting, cli.WRONG_USE)
        brokers.note(error.args[0])
        reason = error.args[0].str() + advise(error.args[0], f"READ and WRITE on topic {config.KAFKA_TOPIC}")
    outage.wait(f"topic {config.KAFKA_TOPIC}: {reason}", quiet=brokers.unsteady())
