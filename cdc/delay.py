"""The end-to-end delay: the producer stamps the oldest change of a page, the consumer observes it once it is applied.

One message of a page carries the time, in a header: the client takes none with a batch of messages. The message's own
timestamp stays that of the publishing: retention and `rewind --since` go by it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import config
from cdc.metrics import END_TO_END_DELAY

from confluent_kafka import KafkaException, Message, Producer

HEADER = "changed_at"  # seconds since 1970, as text


def send_stamped(
    producer: Producer, waiting: list[dict[str, Any]], changed_at: str | None, on_delivery: Callable[..., None]
) -> None:
    """Send the first of the messages with its time, and take it off the list. One that is refused stays there."""
    if changed_at and waiting:
        headers: Any = {HEADER: changed_at.encode()}
        with suppress(BufferError, KafkaException):  # sent with the others then, which finds the same and can tell it
            producer.produce(config.KAFKA_TOPIC, **waiting[0], headers=headers, on_delivery=on_delivery)
            del waiting[0]


def observe_delays(messages: list[Message]) -> None:
    """Observe the delay of the stamped ones among messages that have just been applied."""
    if not config.METRICS_PORT:
        return
    now = time.time()
    headers: Any
    for headers in filter(None, (message.headers() for message in messages)):
        with suppress(ValueError):  # a stranger's header
            delay = now - float(dict(headers).get(HEADER) or "nan")
            if math.isfinite(delay):
                END_TO_END_DELAY.observe(max(delay, 0.0))
