"""Apply the changes from Kafka to the destination, each employee's newest state only, whatever arrives twice or late.

    python consumer.py           until Ctrl-C
    python consumer.py --once    what is in the topic now, then exit

Several consumers share the partitions. What can never be applied goes to the dead-letter topic, and the rest goes on.
"""

from __future__ import annotations

import gc
import logging
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psycopg2
from confluent_kafka import Consumer, KafkaError, KafkaException, Message
from psycopg2.extensions import POLL_OK, POLL_READ, set_wait_callback
from psycopg2.extensions import connection as Connection

import cli
import config
from apply import SESSION
from connection import Kafka, Outage, WrongSetting, connect, explain, kafka_client
from employee import named
from graves import Batch, Graves, apply_or_bury
from offsets import Offsets, from_the_first

log = logging.getLogger("consumer")

CHUNK = 1_000  # messages taken from the client's queue at once
SLICE = 200  # messages read at once while PostgreSQL works at the batch before
# Where employees change again and again, a larger batch leaves fewer records to apply: in a backlog it is worth waiting
# for the next chunk, and for all of them. Where a full batch shows that they do not, PostgreSQL had better begin, and
# what comes next is read while it works. A small batch shows nothing: it would keep the next one small.
FILL, FILL_AT_MOST = 0.15, 0.4  # seconds
READ_AT_MOST = 0.03  # seconds
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


@dataclass
class Intake:
    """What was read and is not applied yet: a batch of messages, and the events among them."""

    consumer: Consumer
    batch: Batch = field(default_factory=Batch)
    events: list[Message] = field(default_factory=list)
    patient: bool = False  # the batch before was more than a chunk, and not spread

    def take(self, found: list[Message]) -> bool:
        for message in found:
            if message.error() is None:
                self.batch.add(message)
            else:
                self.events.append(message)
        return bool(found)

    def fill(self) -> None:
        """Read what is there; waits for the first message only."""
        if not self.batch.messages and not self.events:
            first = self.consumer.poll(POLL_SECONDS)
            if first is None:
                return
            self.take([first])
        end = time.monotonic() + (FILL_AT_MOST if self.patient else READ_AT_MOST)
        while not self.batch.full() and time.monotonic() < end:
            # With a time-out, consume() waits all of it for a full chunk: only where a backlog is read.
            found = self.consumer.consume(CHUNK, FILL if self.patient and len(self.batch.messages) >= CHUNK else 0)
            self.take(found)
            if len(found) < CHUNK:  # no more than trickles in
                break

    def hand_out(self) -> tuple[Batch, list[Message]]:
        batch, events = self.batch, self.events
        self.batch, self.events = Batch(), []
        self.patient = batch.records() >= CHUNK and not batch.spread()
        return batch, events

    def read_on(self, destination: Connection) -> None:
        """Read the next batch while PostgreSQL works at this one; a wait callback of psycopg2."""
        while (state := destination.poll()) != POLL_OK:
            reading, writing = ([destination], []) if state == POLL_READ else ([], [destination])
            while not any(select.select(reading, writing, [], 0)[:2]):
                if self.batch.full() or not self.take(self.consumer.consume(SLICE, 0)):
                    select.select(reading, writing, [], 0.005)


@dataclass
class Destination:
    """The connection to the destination, made when it is needed and made again after an outage."""

    outage: Outage
    connection: Connection | None = None

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

    def apply(self, intake: Intake, batch: Batch, graves: Graves) -> int:
        """Apply a batch, however long the destination is away. Returns how many employees changed.

        The partitions are paused and the consumer polled meanwhile, so that its group keeps it. Raises Stopped if a
        stop is requested before it is applied.
        """
        paused = False
        while True:
            try:
                with reading_on(intake, batch, self.connect()) as connection:
                    changed = apply_or_bury(connection, batch, graves)
                break
            except psycopg2.Error as error:
                self.close()
                what = explain("destination", config.DESTINATION_DATABASE_URL, error)
            except KafkaException as error:
                topic = config.DEAD_LETTER_TOPIC
                what = f"topic {topic}: {error.args[0].str()}; if it is missing, run python admin.py"
            paused = True
            self.outage.wait(what, lambda seconds: self.poll_paused(intake, seconds))
            if self.outage.stop.requested:
                raise cli.Stopped
        if paused:
            intake.consumer.resume(intake.consumer.assignment())
        self.outage.over()
        return changed

    def poll_paused(self, intake: Intake, seconds: float) -> None:
        """Stay a member of the group for so many seconds without reading on. Partitions that the group hands us
        meanwhile may give a message before they are paused too."""
        intake.consumer.pause(intake.consumer.assignment())
        message = intake.consumer.poll(seconds)
        if message is not None:
            intake.take([message])

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


@contextmanager
def reading_on(intake: Intake, batch: Batch, destination: Connection) -> Iterator[Connection]:
    """In a backlog, read on while the destination works."""
    if len(batch.messages) >= CHUNK:
        set_wait_callback(intake.read_on)
    try:
        yield destination
    finally:
        set_wait_callback(None)


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
    intake = Intake(consumer)
    while not stop.requested:
        intake.fill()
        batch, events = intake.hand_out()
        if drained:
            drained -= {message.partition() or 0 for message in batch.messages}
        for event in events:
            handle(event, consumer, drained, kafka)
        if kafka.fatal:
            raise Fenced(kafka.fatal)
        if batch.messages:
            started = time.monotonic()
            kafka.answered()
            graves.buried.clear()
            changed = destination.apply(intake, batch, graves)
            offsets.commit(consumer, batch.messages)
            tell(report, batch, graves, changed, started, consumer)
            progress = time.monotonic()
        if offsets.look(consumer):
            intake.hand_out()  # it is from the old topic
        if batch.messages:
            continue
        report.idle()
        if kafka.away:
            kafka.ask(consumer)
        if once and drained >= {partition.partition for partition in consumer.assignment()} != set():
            break
        if once and time.monotonic() - progress > GIVE_UP:
            cli.fail(f"topic {config.KAFKA_TOPIC} was not read to its end; gave up after {GIVE_UP:.0f} s")


def tell(report: cli.Report, batch: Batch, graves: Graves, changed: int, started: float, consumer: Consumer) -> None:
    def names() -> list[str]:
        outcome = "applied" if changed else "already applied"
        told = [m for m in batch.messages if (m.partition(), m.offset()) not in graves.buried]
        return [f"{name} → {outcome}, offset {offset}" for name, offset in (named(m.value()) for m in told)]

    def left() -> int:
        ends = 0
        for partition in consumer.position(consumer.assignment()):
            _, high = consumer.get_watermark_offsets(partition, cached=True)
            ends += max(0, high - max(partition.offset, 0))
        return ends

    last = named(batch.messages[-1].value())[1]
    report.batch(len(batch.messages), last, started, names, left if batch.full() else None)


def leave(consumer: Consumer, offsets: Offsets) -> None:
    """Commit what is left to commit and leave the group, if Kafka answers within LEAVE_SECONDS."""
    kafka = offsets.kafka
    end = time.monotonic() + (0.0 if kafka.away or kafka.fatal else LEAVE_SECONDS)
    offsets.leaving = True
    offsets.send(consumer)
    while offsets.pending and time.monotonic() < end and not kafka.away:
        consumer.poll(0.05)
    # What the group has just given is taken first: left to close(), librdkafka can wait for it with Python's lock held.
    consumer.poll(0)
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
    gc.set_threshold(cli.FEW_COLLECTIONS)
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
    except cli.Stopped:
        log.warning("stopped while a server was away; the batch will be read again")
    except WrongSetting as error:
        cli.fail(str(error), cli.WRONG_USE)
    finally:
        report.end()
        destination.close()


if __name__ == "__main__":
    main()
