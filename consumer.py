"""Apply the changes from Kafka to the destination, each employee's newest state only, whatever arrives twice or late.

    python consumer.py           until Ctrl-C
    python consumer.py --once    what is in the topic now, then exit

Several consumers share the partitions. What can never be applied goes to the dead-letter topic, and the rest goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field

import psycopg2
from confluent_kafka import Consumer, KafkaError, KafkaException, Message
from psycopg2.extensions import connection as Connection

import cli
import config
from apply import SESSION
from connection import Kafka, Outage, WrongSetting, connect, explain, kafka_client
from employee import named
from graves import Graves, Stopped, apply_or_bury
from offsets import Offsets, from_the_first

log = logging.getLogger("consumer")

BATCH = 10_000  # messages applied in one transaction
GIVE_UP = 60.0  # seconds without progress after which --once gives up
POLL_SECONDS = 0.2  # how long to wait for the first message of a batch
LEAVE_SECONDS = 5.0  # how long to wait for Kafka at the end
FENCED_AGAIN = 10.0  # seconds after which a consumer that was fenced may be so again

KAFKA_SETTINGS = {
    "group.id": config.KAFKA_GROUP_ID,
    "enable.auto.commit": False,
    "auto.offset.reset": "error",  # a gap is said, not skipped: see on_out_of_range
    "partition.assignment.strategy": "cooperative-sticky",
    "session.timeout.ms": 6_000,  # how long a killed consumer's partitions wait for another one
    "heartbeat.interval.ms": 2_000,
    "topic.metadata.refresh.interval.ms": 2_000,  # how soon a topic created later, or its new partitions, are seen
    "fetch.queue.backoff.ms": 2,  # default 1,000: a second's pause whenever the queue is full
    "fetch.error.backoff.ms": 100,
    "queued.min.messages": 10_000,  # per partition; bounds the memory together with the next
    "queued.max.messages.kbytes": 8_192,
    "socket.nagle.disable": True,
}


def next_batch(consumer: Consumer) -> list[Message]:
    """Return the messages and events that are there, at most BATCH; waits for the first one only."""
    first = consumer.poll(POLL_SECONDS)
    # consume(n, timeout) would wait the whole time-out for a full batch
    return [] if first is None else [first, *consumer.consume(BATCH - 1, 0)]


@dataclass
class Destination:
    """The connection to the destination, made when it is needed and made again after an outage."""

    outage: Outage
    connection: Connection | None = None
    events: list[Message] = field(default_factory=list)  # that came while it was away

    def connect(self) -> Connection:
        if self.connection is None:
            self.connection = connect("destination", config.DESTINATION_DATABASE_URL, SESSION)
            self.outage.reached = True
        return self.connection

    def look(self) -> None:
        """Connect early, so that a wrong setting is told at the start and not with the first message."""
        try:
            self.connect()
        except psycopg2.Error as error:
            self.outage.wait_for("destination", config.DESTINATION_DATABASE_URL, error)

    def apply(self, consumer: Consumer, messages: list[Message], graves: Graves) -> int:
        """Apply messages, however long the destination is away. Returns how many employees changed.

        The partitions are paused and the consumer polled meanwhile, so that its group keeps it. Raises Stopped if a
        stop is requested before the messages are applied.
        """
        paused = False
        while True:
            try:
                changed = apply_or_bury(self.connect(), messages, graves)
                break
            except psycopg2.Error as error:
                self.close()
                what = explain("destination", config.DESTINATION_DATABASE_URL, error)
            except KafkaException as error:
                topic = config.DEAD_LETTER_TOPIC
                what = f"topic {topic}: {error.args[0].str()}; if it is missing, run python admin.py"
            paused = True
            self.outage.wait(what, lambda seconds: self.poll_paused(consumer, seconds, messages))
            if self.outage.stop.requested:
                raise Stopped
        if paused:
            consumer.resume(consumer.assignment())
        self.outage.over()
        return changed

    def poll_paused(self, consumer: Consumer, seconds: float, messages: list[Message]) -> None:
        """Stay a member of the group for so many seconds without reading on. Partitions that the group hands us
        meanwhile may give a message before they are paused too: it joins messages."""
        consumer.pause(consumer.assignment())
        message = consumer.poll(seconds)
        if message is not None:
            (messages if message.error() is None else self.events).append(message)

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


class Fenced(Exception):
    """Kafka gave our place to another consumer with the same KAFKA_GROUP_INSTANCE_ID."""


def handle(event: Message, consumer: Consumer, drained: set[int], kafka: Kafka) -> None:
    """Act on what is no message: an end of partition, an offset out of range."""
    error = event.error()
    assert error is not None
    if error.code() == KafkaError._PARTITION_EOF:
        drained.add(event.partition() or 0)
    elif error.code() == KafkaError._AUTO_OFFSET_RESET:
        from_the_first(consumer, event)
    elif error.fatal() or error.code() == KafkaError._FATAL:
        kafka.fatal = error.str()
    else:
        log.debug("Kafka: %s", error.str())


def consume(
    consumer: Consumer, offsets: Offsets, destination: Destination, graves: Graves, report: cli.Report, once: bool
) -> None:
    """Apply batches until a stop is requested, or with once until all assigned partitions are read to their end.

    Raises Fenced, Stopped.
    """
    kafka, stop = graves.kafka, graves.stop
    drained: set[int] = set()
    progress = time.monotonic()
    while not stop.requested:
        messages = []
        for message in [*destination.events, *next_batch(consumer)]:
            if message.error() is None:
                messages.append(message)
                drained.discard(message.partition() or 0)
            else:
                handle(message, consumer, drained, kafka)
        destination.events.clear()
        if kafka.fatal:
            raise Fenced(kafka.fatal)
        if messages:
            started = time.monotonic()
            kafka.answered()
            graves.buried.clear()
            changed = destination.apply(consumer, messages, graves)
            offsets.commit(consumer, messages)
            tell(report, messages, graves, changed, started, consumer)
            progress = time.monotonic()
        offsets.look(consumer)
        if messages:
            continue
        report.idle()
        if kafka.away:
            kafka.ask(consumer)
        if once and drained >= {partition.partition for partition in consumer.assignment()} != set():
            break
        if once and time.monotonic() - progress > GIVE_UP:
            cli.fail(f"topic {config.KAFKA_TOPIC} was not read to its end; gave up after {GIVE_UP:.0f} s")


def tell(
    report: cli.Report, messages: list[Message], graves: Graves, changed: int, started: float, consumer: Consumer
) -> None:
    def names() -> list[str]:
        outcome = "applied" if changed else "already applied"
        told = [m for m in messages if (m.partition(), m.offset()) not in graves.buried]
        return [f"{name} → {outcome}, offset {offset}" for name, offset in (named(m.value()) for m in told)]

    def left() -> int:
        ends = 0
        for partition in consumer.position(consumer.assignment()):
            _, high = consumer.get_watermark_offsets(partition, cached=True)
            ends += max(0, high - max(partition.offset, 0))
        return ends

    report.batch(
        len(messages), named(messages[-1].value())[1], started, names, left if len(messages) >= BATCH else None
    )


def leave(consumer: Consumer, offsets: Offsets) -> None:
    """Commit what is left to commit and leave the group, if Kafka answers within LEAVE_SECONDS."""
    kafka = offsets.kafka
    end = time.monotonic() + (0.0 if kafka.away or kafka.fatal else LEAVE_SECONDS)
    offsets.leaving = True
    offsets.send(consumer)
    while offsets.pending and time.monotonic() < end and not kafka.away:
        consumer.poll(0.05)
    if not kafka.fatal:  # left to close(), a rebalance under way could hang it for good: librdkafka issue 4041
        consumer.unsubscribe()
        while consumer.assignment() and time.monotonic() < end:
            consumer.poll(0.05)
    closing = threading.Thread(target=consumer.close, daemon=True)  # without Kafka it would wait without end
    closing.start()
    closing.join(max(0.0, end - time.monotonic()))


def member(kafka: Kafka, destination: Destination, graves: Graves, report: cli.Report, once: bool) -> None:
    """Join the group and consume; leave it, whatever happens. Raises as consume."""
    offsets = Offsets(kafka, Outage(graves.stop))
    callbacks = {"on_commit": offsets.on_commit, "enable.partition.eof": once}
    consumer = kafka_client(Consumer, {**KAFKA_SETTINGS, **callbacks}, kafka)
    destination.events.clear()
    try:
        consumer.subscribe([config.KAFKA_TOPIC], on_assign=offsets.on_assign, on_revoke=offsets.on_revoke)
        destination.look()
        consume(consumer, offsets, destination, graves, report, once)
    finally:
        leave(consumer, offsets)


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--once", action="store_true", help="apply what is in the topic, then exit")
    arguments = parser.parse_args()
    cli.start_logging(arguments.verbose)
    stop, kafka = cli.stop_on_signals(), Kafka()
    report = cli.Report(log, "applied")
    destination = Destination(Outage(stop, give_up_after=GIVE_UP if arguments.once else float("inf")))
    graves = Graves(kafka, stop)
    fenced = float("-inf")
    try:
        while True:
            try:
                member(kafka, destination, graves, report, arguments.once)
                break
            except Fenced as error:  # also by ourselves, with a commit that an outage held up
                if time.monotonic() - fenced < FENCED_AGAIN and not kafka.settling():
                    cli.fail(f"Kafka: {error}; does another consumer run with our KAFKA_GROUP_INSTANCE_ID?")
                log.warning("Kafka: %s; joining the group again", error)
                fenced, kafka.fatal = time.monotonic(), ""
    except Stopped:
        log.warning("stopped while a server was away; the batch will be read again")
    except WrongSetting as error:
        cli.fail(str(error), cli.WRONG_USE)
    finally:
        report.end()
        destination.close()


if __name__ == "__main__":
    main()
