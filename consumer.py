"""Apply the changes from Kafka to the destination, each employee's newest state only, whatever arrives twice or late.

    python consumer.py           until Ctrl-C
    python consumer.py --once    what is in the topic now, then exit

Several consumers share the partitions. What can never be applied goes to the dead-letter topic, and the rest goes on.
"""

from __future__ import annotations

import logging
import re
import time
from contextlib import closing
from dataclasses import dataclass

import psycopg2
from confluent_kafka import OFFSET_STORED, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from psycopg2.extensions import connection as Connection

import cli
import config
from connection import Kafka, Outage, WrongSetting, connect, first_line, kafka_client
from employee import EMPLOYEE_COLUMNS, CDCRecord, named

log = logging.getLogger("consumer")

BATCH = 10_000  # messages applied in one transaction
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
    "queued.max.messages.kbytes": 16_384,
    "socket.nagle.disable": True,
}
DEAD_LETTER_SETTINGS = {"enable.idempotence": True, "message.timeout.ms": 0}

# A message in the shape that the producer gives it. What matches is a CDCRecord, but for what PostgreSQL refuses
# itself (a number out of range, 30 February); everything else goes through CDCRecord first. So a message gets the same
# verdict alone and among others.
TEXT = rb'(?:null|"[^"\\\x00-\x1f]{0,100}")'
CANONICAL = re.compile(
    rb'\{"cdc_id":[1-9]\d{0,18},"emp_id":-?\d{1,10},"first_name":%(text)s,"last_name":%(text)s,'
    rb'"dob":(?:null|"\d{4}-\d\d-\d\d"),"city":%(text)s,"salary":(?:null|-?\d{1,10}),'
    rb'"action":"(?:INSERT|UPDATE|DELETE)"\}' % {b"text": TEXT}
)

COLUMNS = ", ".join(EMPLOYEE_COLUMNS)
# The newest record per employee, in the order of emp_id: one lock order for all consumers. The gate lets pass what is
# newer than all that was applied; what passed with INSERT or UPDATE, a full row both, is upserted here.
APPLY = f"""
WITH record AS MATERIALIZED (
    SELECT DISTINCT ON (emp_id) *
    FROM json_to_recordset(%(records)s) AS r (
        cdc_id bigint, emp_id int, first_name varchar(100), last_name varchar(100), dob date, city varchar(100),
        salary int, action text)
    ORDER BY emp_id, cdc_id DESC
), passed AS (
    INSERT INTO cdc_applied AS applied (emp_id, cdc_id) SELECT emp_id, cdc_id FROM record
    ON CONFLICT (emp_id) DO UPDATE SET cdc_id = excluded.cdc_id WHERE applied.cdc_id < excluded.cdc_id
    RETURNING emp_id
), upserted AS (
    INSERT INTO employees ({COLUMNS}) SELECT {COLUMNS} FROM record JOIN passed USING (emp_id) WHERE action <> 'DELETE'
    ON CONFLICT (emp_id) DO UPDATE
    SET {", ".join(f"{column} = excluded.{column}" for column in EMPLOYEE_COLUMNS[1:])}
)
SELECT count(*), array_agg(emp_id) FILTER (WHERE action = 'DELETE') FROM record JOIN passed USING (emp_id)
"""
# A statement of its own, so that its snapshot is taken after the gate's locks are held: inside APPLY, a DELETE that
# waited for another consumer's INSERT would not see the row it must delete.
DELETE = "DELETE FROM employees WHERE emp_id = ANY (%(deleted)s)"

# Errors of the data; every other error of PostgreSQL is an outage, to be waited out.
DATA_ERRORS = (
    psycopg2.DataError,
    psycopg2.IntegrityError,
    psycopg2.errors.RaiseException,
    psycopg2.errors.WithCheckOptionViolation,
)


def next_batch(consumer: Consumer) -> list[Message]:
    """Return the messages and events that are there, at most BATCH; waits for the first one only."""
    first = consumer.poll(POLL_SECONDS)
    # consume(n, timeout) would wait the whole time-out for a full batch
    return [] if first is None else [first, *consumer.consume(BATCH - 1, 0)]


def validated(message: Message) -> bytes:
    """Return the message's record as JSON in the producer's shape. Raises ValueError if it is none."""
    value = message.value()
    if value is not None and CANONICAL.fullmatch(value):
        return value
    return CDCRecord.from_json(value).to_json().encode()


def apply(destination: Connection, records: list[bytes]) -> int:
    """Apply records in one transaction; returns how many employees changed. The rest was stale or superseded.

    Raises one of DATA_ERRORS, or UnicodeDecodeError or ValueError (a NUL), for data that PostgreSQL refuses.
    """
    array = (b"[" + b",".join(records) + b"]").decode()
    # One round trip, two when something is deleted. BEGIN and COMMIT only then: a single statement is a transaction.
    deletes = any(b'"action":"DELETE"' in record for record in records)
    with destination.cursor() as cursor:
        try:
            cursor.execute(("BEGIN;" if deletes else "") + APPLY, {"records": array})
            ((applied, deleted),) = cursor.fetchall()
            if deletes:
                cursor.execute(f"{DELETE}; COMMIT" if deleted else "COMMIT", {"deleted": deleted})
        except DATA_ERRORS:
            if deletes:
                cursor.execute("ROLLBACK")
            raise
    return int(applied)


def apply_or_bury(destination: Connection, messages: list[Message], graves: Graves) -> int:
    """Apply messages; what PostgreSQL refuses for its data is halved until the bad ones stand alone, and those go to
    the dead-letter topic. Returns how many employees changed."""
    records, good = [], []
    for message in messages:
        try:
            records.append(validated(message))
            good.append(message)
        except ValueError as error:
            graves.bury(message, str(error))
    try:
        return apply(destination, records) if records else 0
    except (*DATA_ERRORS, ValueError) as error:  # UnicodeDecodeError is a ValueError
        if len(good) == 1:
            graves.bury(good[0], first_line(error))
            return 0
    middle = len(good) // 2
    return sum(apply_or_bury(destination, half, graves) for half in (good[:middle], good[middle:]))


@dataclass
class Graves:
    """Where dead letters go: the topic <topic>_dlq. Its client is made for the first one."""

    kafka: Kafka
    stop: cli.Stop
    producer: Producer | None = None

    def bury(self, message: Message, error: str) -> None:
        """Send a message to the dead-letter topic, with its origin and the error, and wait until it is acknowledged.

        Raises KafkaException if Kafka refuses it, Stopped if a stop is requested while Kafka is away.
        """
        if self.producer is None:
            self.producer = kafka_client(Producer, DEAD_LETTER_SETTINGS, self.kafka)
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
        log.error("message at partition %s offset %s → dead letter: %s", message.partition(), message.offset(), error)


class Stopped(Exception):
    """A stop was requested while the batch could not be finished; its offsets are not committed."""


@dataclass
class Destination:
    """The connection to the destination, made when it is needed and made again after an outage."""

    outage: Outage
    connection: Connection | None = None

    def apply(self, consumer: Consumer, messages: list[Message], graves: Graves) -> int:
        """Apply messages, however long the destination is away. Returns how many employees changed.

        The partitions are paused and the consumer polled meanwhile, so that its group keeps it. Raises Stopped if a
        stop is requested before the messages are applied.
        """
        while True:
            try:
                if self.connection is None:
                    self.connection = connect("destination", config.DESTINATION_DATABASE_URL)
                changed = apply_or_bury(self.connection, messages, graves)
                break
            except psycopg2.Error as error:
                self.close()
                self.outage.wait_for(
                    "destination",
                    config.DESTINATION_DATABASE_URL,
                    error,
                    lambda seconds: poll_paused(consumer, seconds, messages),
                )
            except KafkaException as error:
                self.outage.wait(
                    f"topic {config.DEAD_LETTER_TOPIC}: {error.args[0].str()}; if it is missing, run python admin.py",
                    lambda seconds: poll_paused(consumer, seconds, messages),
                )
            if self.outage.stop.requested:
                raise Stopped
        if self.outage.said:
            consumer.resume(consumer.assignment())
        self.outage.over()
        return changed

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def poll_paused(consumer: Consumer, seconds: float, messages: list[Message]) -> None:
    """Stay a member of the group for so many seconds without reading on. Partitions that the group hands us meanwhile
    may give a message before they are paused too: it joins messages."""
    consumer.pause(consumer.assignment())
    message = consumer.poll(seconds)
    if message is not None and message.error() is None:
        messages.append(message)


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
        topic.say(f"topic {config.KAFKA_TOPIC} does not exist; run python admin.py")
    elif error.fatal():  # another consumer took our KAFKA_GROUP_INSTANCE_ID
        cli.fail(f"Kafka: {error.str()}")
    else:
        log.debug("Kafka: %s", error.str())


def consume(consumer: Consumer, kafka: Kafka, stop: cli.Stop, once: bool) -> None:
    """Apply batches until a stop is requested, or with once until all assigned partitions are read to their end."""
    report = cli.Report(log, "applied")
    destination, graves, topic = (
        Destination(Outage(stop, 60 if once else float("inf"))),
        Graves(kafka, stop),
        Outage(stop),
    )
    drained: set[int] = set()
    applied: list[Message] = []
    try:
        while not stop.requested:
            batch = next_batch(consumer)
            started = time.monotonic()
            messages = [message for message in batch if message.error() is None]
            for event in batch:
                if event.error() is not None:
                    handle(event, consumer, drained, topic)
            if messages:
                kafka.answered()
                topic.over()
                drained -= {message.partition() for message in messages}
                changed = destination.apply(consumer, messages, graves)
                commit(consumer, messages)
                applied = messages
                tell(report, messages, changed, started, consumer)
                continue
            report.idle()
            if kafka.away:
                kafka.ask(consumer)
            if once and drained >= {partition.partition for partition in consumer.assignment()} != set():
                break
        if not kafka.away:  # it would wait for Kafka without end
            commit(consumer, applied, wait=True)
    except Stopped:
        log.warning("stopped while a server was away; the batch will be read again")
    finally:
        report.end()
        destination.close()


def tell(report: cli.Report, messages: list[Message], changed: int, started: float, consumer: Consumer) -> None:
    def names() -> list[str]:
        outcome = "applied" if changed else "already applied"
        return [f"{name} → {outcome}, offset {offset}" for name, offset in (named(m.value()) for m in messages)]

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
        with closing(consumer):
            consumer.subscribe([config.KAFKA_TOPIC], on_assign=on_assign, on_revoke=on_revoke)
            consume(consumer, kafka, stop, arguments.once)
    except WrongSetting as error:
        cli.fail(str(error), cli.WRONG_USE)


def on_assign(_: Consumer, partitions: list[TopicPartition]) -> None:
    log.info("partitions assigned: %s", numbers(partitions))


def on_revoke(_: Consumer, partitions: list[TopicPartition]) -> None:
    log.info("partitions given up: %s", numbers(partitions))


def numbers(partitions: list[TopicPartition]) -> str:
    return ", ".join(str(partition.partition) for partition in sorted(partitions, key=lambda p: p.partition)) or "none"


if __name__ == "__main__":
    main()
