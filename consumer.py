"""Apply the changes from Kafka to the destination, each employee's newest state only, whatever arrives twice or late.

    python consumer.py           until Ctrl-C
    python consumer.py --once    what is in the topic now, then exit

Several consumers share the partitions. What can never be applied goes to the dead-letter topic, and the rest goes on.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

import psycopg2
from confluent_kafka import OFFSET_STORED, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from psycopg2.extensions import connection as Connection

import cli
import config
from apply import DATA_ERRORS, SESSION, Elements, apply, elements
from connection import Kafka, Outage, WrongSetting, connect, explain, first_line, kafka_client
from employee import named

log = logging.getLogger("consumer")

BATCH = 10_000  # messages applied in one transaction
GIVE_UP = 60.0  # seconds without progress after which --once gives up
POLL_SECONDS = 0.2  # how long to wait for the first message of a batch

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
DEAD_LETTER_SETTINGS = {
    "enable.idempotence": True,
    "message.timeout.ms": 0,
    "message.max.bytes": 1_000_000_000,  # the broker decides
}


def next_batch(consumer: Consumer) -> list[Message]:
    """Return the messages and events that are there, at most BATCH; waits for the first one only."""
    first = consumer.poll(POLL_SECONDS)
    # consume(n, timeout) would wait the whole time-out for a full batch
    return [] if first is None else [first, *consumer.consume(BATCH - 1, 0)]


def apply_or_bury(destination: Connection, messages: list[Message], graves: Graves) -> int:
    """Apply messages; what is no record goes to the dead-letter topic. Returns how many employees changed."""
    records: list[tuple[Message, Elements]] = []
    for message in messages:
        try:
            records.append((message, elements(message.value())))
        except ValueError as error:
            graves.bury(message, str(error))
    return apply_halved(destination, records, graves) if records else 0


def apply_halved(destination: Connection, records: list[tuple[Message, Elements]], graves: Graves) -> int:
    """Apply records; where PostgreSQL refuses them for their data, halve them until the bad ones stand alone."""
    try:
        return apply(destination, [record for _, record in records])
    except DATA_ERRORS as error:
        if len(records) == 1:
            graves.bury(records[0][0], first_line(error))
            return 0
    middle = len(records) // 2
    return sum(apply_halved(destination, half, graves) for half in (records[:middle], records[middle:]))


@dataclass
class Graves:
    """Where dead letters go: the topic <topic>_dlq. Its client is made for the first one."""

    kafka: Kafka
    stop: cli.Stop
    producer: Producer | None = None
    buried: set[tuple[int | None, int | None]] = field(default_factory=set)  # of the batch: partition, offset

    def bury(self, message: Message, error: str) -> None:
        """Send a message to the dead-letter topic, with its origin and the error, and wait until it is acknowledged.

        Raises KafkaException if Kafka refuses it, Stopped if a stop is requested while Kafka is away.
        """
        if self.producer is None:
            self.producer = kafka_client(Producer, DEAD_LETTER_SETTINGS, self.kafka)
        place = (message.partition(), message.offset())
        if place in self.buried:  # at an earlier try of the same batch
            return
        origin = {"topic": message.topic(), "partition": message.partition(), "offset": message.offset()}
        failures: list[KafkaError] = []
        self.producer.produce(
            config.DEAD_LETTER_TOPIC,
            message.value(),
            message.key(),
            headers={**{name: str(value).encode() for name, value in origin.items()}, "error": error.encode()},
            on_delivery=lambda failure, _: failures.append(failure) if failure else None,
        )
        while self.producer.flush(1.0):
            if self.stop.requested:
                raise Stopped
        if failures:
            self.producer = None
            raise KafkaException(failures[0])
        self.buried.add(place)
        log.error("message at partition %s offset %s → dead letter: %s", message.partition(), message.offset(), error)


class Stopped(Exception):
    """A stop was requested while the batch could not be finished; its offsets are not committed."""


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


def commit(consumer: Consumer, messages: list[Message], wait: bool = False) -> None:
    """Commit the offsets behind messages, for the partitions that are still ours. Called after they were applied: a
    crash before it reads them again, and the gate drops them."""
    offsets = {(message.topic() or "", message.partition() or 0): (message.offset() or 0) + 1 for message in messages}
    ours = {(partition.topic, partition.partition) for partition in consumer.assignment()}
    behind = [TopicPartition(*partition, offset) for partition, offset in offsets.items() if partition in ours]
    if behind:
        try:
            consumer.commit(offsets=behind, asynchronous=not wait)  # type: ignore[call-overload]
        except KafkaException as error:
            log.debug("offsets not committed: %s", error.args[0].str())


def from_the_first(consumer: Consumer, event: Message) -> None:
    """Read a partition from its first message, as there is no committed offset or no message at it. Never in silence:
    messages that retention removed unread are lost to us."""
    partition = TopicPartition(event.topic() or "", event.partition() or 0)
    if partition not in consumer.assignment():  # given up meanwhile
        return
    try:
        low, high = consumer.get_watermark_offsets(partition, timeout=5)
        (committed,) = consumer.committed([partition], timeout=5)
    except KafkaException:
        partition.offset = OFFSET_STORED  # Kafka went away meanwhile: the same event comes again
    else:
        partition.offset = low
        if 0 <= committed.offset < low:
            log.error(
                "MESSAGES ARE GONE: partition %s was read up to offset %s, Kafka keeps them from %s on only. Going on "
                "from there; run python verify.py --repair",
                partition.partition,
                committed.offset,
                low,
            )
        elif committed.offset > high:
            log.error(
                "THE TOPIC WAS MADE ANEW: partition %s ends at offset %s, we were at %s. Reading it from its first "
                "message; run python verify.py --repair",
                partition.partition,
                high,
                committed.offset,
            )
    consumer.incremental_unassign([partition])
    consumer.incremental_assign([partition])


def handle(event: Message, consumer: Consumer, drained: set[int], topic: Outage) -> None:
    """Act on what is no message: an end of partition, an offset out of range, a topic that is not there."""
    error = event.error()
    assert error is not None
    if error.code() == KafkaError._PARTITION_EOF:
        drained.add(event.partition() or 0)
    elif error.code() == KafkaError._AUTO_OFFSET_RESET:
        from_the_first(consumer, event)
    elif error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
        topic.say(f"topic {config.KAFKA_TOPIC}: it does not exist; run python admin.py")
    elif error.fatal() or error.code() == KafkaError._FATAL:  # another consumer took our KAFKA_GROUP_INSTANCE_ID
        cli.fail(f"Kafka: {error.str()}")
    else:
        log.debug("Kafka: %s", error.str())


def consume(consumer: Consumer, kafka: Kafka, stop: cli.Stop, once: bool) -> None:
    """Apply batches until a stop is requested, or with once until all assigned partitions are read to their end."""
    report = cli.Report(log, "applied")
    destination = Destination(Outage(stop, give_up_after=GIVE_UP if once else float("inf")))
    graves, topic = Graves(kafka, stop), Outage(stop)
    drained: set[int] = set()
    applied: list[Message] = []
    progress = time.monotonic()
    destination.look()
    try:
        while not stop.requested:
            messages = []
            for message in [*destination.events, *next_batch(consumer)]:
                if message.error() is None:
                    messages.append(message)
                    drained.discard(message.partition() or 0)
                else:
                    handle(message, consumer, drained, topic)
            destination.events.clear()
            if messages:
                started = time.monotonic()
                kafka.answered()
                topic.over()
                graves.buried.clear()
                changed = destination.apply(consumer, messages, graves)
                commit(consumer, messages)
                applied = messages
                tell(report, messages, graves, changed, started, consumer)
                progress = time.monotonic()
                continue
            report.idle()
            if kafka.away:
                kafka.ask(consumer)
            if once and drained >= {partition.partition for partition in consumer.assignment()} != set():
                break
            if once and time.monotonic() - progress > GIVE_UP:
                cli.fail(f"topic {config.KAFKA_TOPIC} was not read to its end; gave up after {GIVE_UP:.0f} s")
        if not kafka.away:  # it would wait for Kafka without end
            commit(consumer, applied, wait=True)
    except Stopped:
        log.warning("stopped while a server was away; the batch will be read again")
    finally:
        report.end()
        destination.close()


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


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--once", action="store_true", help="apply what is in the topic, then exit")
    arguments = parser.parse_args()
    cli.start_logging(arguments.verbose)
    stop = cli.stop_on_signals()
    kafka = Kafka()
    try:
        consumer = kafka_client(Consumer, {**KAFKA_SETTINGS, "enable.partition.eof": arguments.once}, kafka)
        consumer.subscribe([config.KAFKA_TOPIC], on_assign=on_assign, on_revoke=on_revoke)
        consume(consumer, kafka, stop, arguments.once)
        if not kafka.away:  # it would wait for Kafka without end
            consumer.close()
    except WrongSetting as error:
        cli.fail(str(error), cli.WRONG_USE)


def on_assign(_: Consumer, partitions: list[TopicPartition]) -> None:
    log.info("partitions assigned: %s", numbers(partitions))


def on_revoke(consumer: Consumer, partitions: list[TopicPartition]) -> None:
    consumer.resume(partitions)  # a partition paused in an outage would still be paused when it comes back
    log.info("partitions given up: %s", numbers(partitions))


def numbers(partitions: list[TopicPartition]) -> str:
    return ", ".join(str(partition.partition) for partition in sorted(partitions, key=lambda p: p.partition)) or "none"


if __name__ == "__main__":
    main()
