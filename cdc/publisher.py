"""Hand a page to Kafka and wait until all of it is acknowledged."""

from __future__ import annotations

from typing import Any

import config
from cdc import cli
from cdc.kafka import advise, flush
from cdc.message import Change, to_json

from confluent_kafka import KafkaError, Producer

PAGE = 10_000  # changes that are read, published and acknowledged together

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


class NotPublished(Exception):
    """Kafka refused some of a page for good; the position stays before the page."""


def publish(producer: Producer, page: list[Change], stop: cli.Stop) -> None:
    """Hand a page to Kafka and wait until all of it is acknowledged.

    Raises NotPublished if Kafka refuses a message for good, Stopped if a stop is requested while Kafka is down.
    """
    failures: list[KafkaError] = []
    waiting: list[dict[str, Any]] = [  # only what was put into the log by hand can be without emp_id
        {"key": None if change.emp_id is None else str(change.emp_id), "value": to_json(change)} for change in page
    ]
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
            cli.raise_if_requested(stop)
    flush(producer, stop)
    if failures:
        raise NotPublished(failures[0].str() + advise(failures[0], f"WRITE on topic {config.KAFKA_TOPIC}"))


def collect(error: KafkaError | None, failures: list[KafkaError]) -> None:
    if error is not None:
        failures.append(error)
