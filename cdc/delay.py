"""The end-to-end delay: the producer stamps the oldest change of a page, the consumer observes it once it is applied.

The first message of a page carries the time, in a header. The message's own timestamp stays that of the publishing:
retention and `rewind --since` go by it.
"""

from __future__ import annotations

import math
import time
from contextlib import suppress
from typing import Any

import config
from cdc.metrics import END_TO_END_DELAY

from confluent_kafka import Message

HEADER = "changed_at"  # seconds since 1970, as text


def stamp(changed_at: str | None) -> dict[str, bytes]:
    """Return the headers of the message whose change was made at this time, none if it is not known."""
    return {HEADER: changed_at.encode()} if changed_at else {}


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
