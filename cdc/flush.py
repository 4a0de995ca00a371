"""Wait until Kafka has acknowledged what was sent: do something useful meanwhile, and report a wait that lasts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf

from cdc import cli
from cdc.kafka import Brokers, advise, make_client
from cdc.outage import LongWait
from cdc.text import counted
from cdc.waiting import waiter

from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient, TopicMetadata  # type: ignore[attr-defined]

log = logging.getLogger(__name__)

ROUND = 1.0  # seconds between two checks of the stop flag
PROBE_WAIT = 2.0  # seconds for the brokers to say how the topic is


@dataclass
class Flusher:
    """What happens while Kafka has not acknowledged everything yet."""

    brokers: Brokers = field(default_factory=Brokers)
    useful: Callable[[], object] = lambda: None  # called meanwhile, about once a second
    limit: float = inf  # seconds without an acknowledgement after which the script gives up

    @contextmanager
    def doing(self, useful: Callable[[], object]) -> Iterator[None]:
        """Have something useful done while Kafka has not acknowledged everything."""
        before, self.useful = self.useful, useful
        try:
            yield
        finally:
            self.useful = before


flusher = Flusher()


@dataclass
class Flush:
    """The wait for the acknowledgements of what a producer has sent to a topic."""

    producer: Producer
    topic: str
    stop: cli.Stop | None = None
    unacknowledged: int = 0
    progress: float = field(default_factory=time.monotonic)  # when something was last acknowledged (time.monotonic)
    long: LongWait = field(default_factory=LongWait)

    def finish(self) -> None:
        """Wait for all of them. Raises KafkaException if the client is of no more use, and what check() raises."""
        try:
            while self.producer.flush(ROUND):
                self.check()
        except SystemError as error:  # a callback ran after the client had raised its fatal error
            if isinstance(error.__cause__, KafkaException):
                raise error.__cause__ from None
            raise
        self.long.over()

    def check(self) -> None:
        """Report a long wait. Raises Stopped if a stop is requested; exits when the limit is reached."""
        if self.stop is not None:
            cli.raise_if_requested(self.stop)
        flusher.useful()
        left = len(self.producer)
        if left < self.unacknowledged:
            self.long.over()
            self.progress, self.long = time.monotonic(), LongWait()
        self.unacknowledged = left
        self.long.check(self.explain)
        if time.monotonic() - self.progress > flusher.limit:
            cli.fail(f"{self.explain() or self.no_answer()}; gave up after {flusher.limit:.0f} s")

    def explain(self) -> str:
        """Return why nothing is acknowledged, or nothing where no broker answers: that is reported as an outage.

        Asked by another client: a broker answers what comes over one connection in order, so the producer's own
        question would wait until its messages are answered.
        """
        admin = make_client(AdminClient, {}, flusher.brokers)
        try:
            topic = admin.list_topics(self.topic, timeout=PROBE_WAIT).topics[self.topic]
        except KafkaException as error:
            log.debug("topic %s not checked: %s", self.topic, error)
            flusher.brokers.mark_down()
            flusher.brokers.warn()
            self.long = LongWait()  # brokers that come back may need a while for all their topics
            return ""
        if topic.error is not None:
            return f"topic {self.topic}: {topic.error.str()}{advise(topic.error, f'WRITE on topic {self.topic}')}"
        return f"topic {self.topic}: {counted(self.unacknowledged, 'message')} not acknowledged{describe(topic)}"

    def no_answer(self) -> str:
        return f"topic {self.topic}: Kafka at {flusher.brokers.bootstrap} does not answer"


def describe(topic: TopicMetadata) -> str:
    """Return which partitions have no leader, or how few replicas are in sync, as the end of a line."""
    leaderless = [str(number) for number, partition in sorted(topic.partitions.items()) if partition.leader < 0]
    if leaderless:
        return f", no broker leads partition {', '.join(leaderless)}; start it"
    few = min(topic.partitions.values(), key=lambda partition: len(partition.isrs) - len(partition.replicas))
    if len(few.isrs) == len(few.replicas):
        return ""
    return (
        f", partition {few.id} has {len(few.isrs)} of {len(few.replicas)} replicas in sync; "
        "min.insync.replicas may ask for more"
    )


def flush(producer: Producer, topic: str, stop: cli.Stop | None = None) -> None:
    """Wait until Kafka has answered for each message. Raises KafkaException, Stopped."""
    Flush(producer, topic, stop).finish()


def bound_waits(seconds: float, brokers: Brokers) -> None:
    """Have the script end when a statement, or these brokers, give no answer for so many seconds."""
    flusher.brokers = brokers
    flusher.limit = waiter.limit = seconds
    waiter.give_up = cli.fail
