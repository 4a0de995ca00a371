"""How far the topic is ahead of what this consumer has applied, for the metrics.

A thread of its own asks Kafka: the lag is wanted most where the consumer waits, and the client learns nothing of
partitions that are paused.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

import config
from cdc.metrics import LAG
from cdc.topic import offset_bounds

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

log = logging.getLogger(__name__)

EVERY = 2.0  # seconds between two questions


@dataclass
class LagWatch:
    """Asks while metrics are wanted."""

    admin: AdminClient | None = None
    started: bool = False

    def start(self, admin: AdminClient) -> None:
        """Ask with this client from now on."""
        self.admin = admin
        if config.METRICS_PORT and not self.started:
            self.started = True
            threading.Thread(target=self.run, daemon=True).start()

    def run(self) -> None:
        while True:
            if self.admin is not None and (partitions := sorted(LAG.applied)):
                with suppress(KafkaException):  # Kafka is down: the script reports it
                    LAG.bounds = offset_bounds(self.admin, config.KAFKA_TOPIC, partitions)
            time.sleep(EVERY)


WATCH = LagWatch()
