"""Publish the changes in the source's log to Kafka, each at least once, those of one employee in their order.

    python producer.py           until Ctrl-C
    python producer.py --once    what is in the log now, then exit

A second producer beside an active one stands by and takes over when the first one's session ends.
"""

from __future__ import annotations

import gc
import logging
import select
import time
from contextlib import closing
from typing import Any

import psycopg2
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from psycopg2.extensions import connection as Connection

import capture
import cli
import config
from connection import NO_BROKER, Kafka, Outage, WrongSetting, connect, kafka_client
from emp_cdc import (
    LEFT,
    Position,
    PositionLost,
    Pruner,
    check_sequence,
    late_pages,
    load_position,
    prepare,
    read_page,
    save,
)
from employee import Change, named, to_json
from producer_lock import lock_holders, strangers

log = logging.getLogger("producer")

PAGE = 10_000  # changes read, published and acknowledged as one
# Seconds that let the next page fill under steady load, the longer the faster changes come: writers want the CPU too.
PAUSE, PAUSE_PER_CHANGE, PAUSE_AT_MOST = 0.005, 0.0001, 0.02
FEW = 5  # changes: a page this small is not worth a pause, nor waking up for
PRUNE_PAUSE = 0.1  # seconds between two batches of pruning
HOUSEKEEPING = 10.0  # seconds between looks at what can be pruned, while there is nothing to prune
GUARD_DEPTH = 1_000  # messages at the end of each partition that the start-up guard reads

ACTIVE, ASLEEP = 1, 2  # advisory locks (6513763, n): 6513763 is 'cdc' in ASCII, see sql/source.sql
LOCK_HELD = "the producer lock is held by {}; if that is no producer, end it with pg_terminate_backend(pid)"

KAFKA_SETTINGS = {
    "enable.idempotence": True,  # acks=all, no repeat and no reordering by the client's own retries
    "message.timeout.ms": 0,  # it runs while queued: a slow broker must make us late, not lose a page
    "delivery.report.only.error": True,  # one callback per failure instead of one per message
    "queue.buffering.max.messages": 2 * PAGE,
    "queue.buffering.max.kbytes": 65_536,
    "compression.type": "lz4",
    "partitioner": "murmur2_random",  # the Java client's: other tools find a key in the same partition
    "socket.nagle.disable": True,
}


class NotPublished(Exception):
    """Kafka refused some of a page for good; the position stays before it."""


def run_once(
    source: Connection, producer: Producer, position: Position, stop: cli.Stop, page_size: int = PAGE
) -> tuple[Position, list[Change], int]:
    """Publish one page and save the position behind it.

    Returns the new position, the page, and how many changes were published, 0 when the log is drained. Where those are
    more than the page, they were late rows in several pages, and the page is the last one.
    """
    page, snapshot = read_page(source, position, page_size)
    if not page:  # the position's snapshot moves on, and need not be saved: nothing was published
        return Position(position.last_offset, snapshot), page, 0
    if len(page) > page_size and page[page_size].cdc_id <= position.last_offset:
        return publish_late(source, producer, position, stop, page_size)
    publish(producer, page, stop)
    # A crash here publishes the page again; the consumer's gate drops what it has already applied.
    after = Position(max(position.last_offset, page[-1].cdc_id), snapshot)
    return save(source, position, after), page, len(page)


def publish_late(
    source: Connection, producer: Producer, position: Position, stop: cli.Stop, page_size: int
) -> tuple[Position, list[Change], int]:
    """Publish all late rows of one snapshot, page by page, and move the position's snapshot there. Returns as run_once.

    Nothing beyond the offset is published meanwhile: it may hold newer changes of the same employees. The position is
    saved at the end only; a crash before that publishes the late rows again.
    """
    page: list[Change] = []
    snapshot, count = position.snapshot, 0
    for page, snapshot in late_pages(source, position, page_size):  # noqa: B007
        publish(producer, page, stop)
        give_up_if(stop)
        count += len(page)
    return save(source, position, Position(position.last_offset, snapshot)), page, count


def publish(producer: Producer, page: list[Change], stop: cli.Stop) -> None:
    """Hand a page to Kafka and wait until all of it is acknowledged.

    Raises NotPublished if Kafka refuses a message for good, Stopped if a stop is requested while Kafka is away.
    """
    failures: list[KafkaError] = []
    waiting: list[dict[str, Any]] = [  # only what was put into the log by hand can be without emp_id
        {"key": None if change.emp_id is None else str(change.emp_id), "value": to_json(change)} for change in page
    ]
    while waiting and not failures:
        producer.produce_batch(config.KAFKA_TOPIC, waiting, on_delivery=lambda error, _: refused(error, failures))
        # A full queue does not raise: it marks the messages that found no place, always the tail of the list.
        waiting = [message for message in waiting if "_error" in message]
        for message in waiting:
            error = message.pop("_error")
            if error.code() != KafkaError._QUEUE_FULL:
                failures.append(error)
        if waiting:
            producer.poll(0.1)
            give_up_if(stop)
    while producer.flush(1.0):
        give_up_if(stop)
    if failures:
        raise NotPublished(failures[0].str())


def refused(error: KafkaError | None, failures: list[KafkaError]) -> None:
    if error is not None:
        failures.append(error)


def give_up_if(stop: cli.Stop) -> None:
    if stop.requested:
        raise cli.Stopped


def newest_published(kafka: Kafka, stop: cli.Stop) -> int:
    """Return the highest cdc_id among the last messages of each partition, 0 if there is none.

    Raises KafkaException while the topic or the broker is missing.
    """
    reader = kafka_client(
        Consumer, {"enable.auto.commit": False, "enable.partition.eof": True, "group.id": "employee-cdc-guard"}, kafka
    )
    with closing(reader):
        metadata = reader.list_topics(config.KAFKA_TOPIC, timeout=5).topics[config.KAFKA_TOPIC]
        kafka.answered()
        if metadata.error is not None:
            raise KafkaException(metadata.error)
        ends = {}
        for number in metadata.partitions:
            low, high = reader.get_watermark_offsets(TopicPartition(config.KAFKA_TOPIC, number), timeout=5)
            if high > low:
                ends[number] = max(low, high - GUARD_DEPTH)
        reader.assign([TopicPartition(config.KAFKA_TOPIC, number, start) for number, start in ends.items()])
        newest = 0
        while ends and not stop.requested:
            for message in reader.consume(GUARD_DEPTH, timeout=0.1):
                error = message.error()
                if error is None:
                    newest = max(newest, named(message.value())[1])
                elif error.code() == KafkaError._PARTITION_EOF:
                    ends.pop(message.partition() or 0, None)
    return newest


def try_lock(source: Connection, lock: int) -> bool:
    with source.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(6513763, %(lock)s)", {"lock": lock})
        return bool(cursor.fetchall()[0][0])


def become_active(source: Connection, stop: cli.Stop) -> None:
    """Wait until no other producer is active. PostgreSQL gives the lock up with the session that holds it."""
    reported: str | None = None
    while not stop.requested and not try_lock(source, ACTIVE):
        holders = lock_holders(source)
        if holders and (stranger := strangers(holders)) != reported:
            if stranger:
                log.warning("standing by: %s", LOCK_HELD.format(stranger))
            else:
                log.info("another producer is active; standing by")
            reported = stranger
        stop.sleep(0.5)


def become_active_or_exit(source: Connection) -> None:
    """Become active at once, or exit with one line that says who is."""
    while not try_lock(source, ACTIVE):
        if holders := lock_holders(source):
            if stranger := strangers(holders):
                cli.fail(f"nothing published: {LOCK_HELD.format(stranger)}")
            cli.fail("another producer is active; it publishes what is there")


def wake_up(source: Connection) -> None:
    with source.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_unlock(6513763, %(lock)s)", {"lock": ASLEEP})


def wait_for_change(source: Connection, stop: cli.Stop, until: float) -> None:
    """Return when a writer notifies, at the latest after POLL_INTERVAL or at the time until (time.monotonic)."""
    end = min(time.monotonic() + config.POLL_INTERVAL, until)
    while not source.notifies and not stop.requested and (left := end - time.monotonic()) > 0:
        if select.select([source], [], [], min(left, 0.5))[0]:
            source.poll()
    source.notifies.clear()


def stream(
    source: Connection, producer: Producer, position: Position, kafka: Kafka, stop: cli.Stop, once: bool
) -> None:
    """Publish until a stop is requested, or with once until the log is drained.

    Falling asleep: a writer that tried the lock ASLEEP before we hold it, saw us awake, and did not notify, keeps us
    from getting it until it has committed; so the poll after we got it sees every such writer, and every later writer
    notifies. No change can fall between. Small pages are published asleep: the next change notifies, nothing has to be
    asked. A larger one wakes us up, as writers at that rate would pay for notifying.
    """
    report = cli.Report(log, "published")
    pruner, watch, due = Pruner(source), capture.Watch(source), 0.0
    asleep, restless = False, 0
    while not stop.requested:
        watch.check()
        started = time.monotonic()
        position, page, count = run_once(source, producer, position, stop)
        took = time.monotonic() - started
        if count < PAGE and time.monotonic() >= due:
            due = time.monotonic() + housekeep(source, pruner, position)
        if page:
            kafka.answered()
            tell(report, source, position, page, count, started)
            restless = 0
            if asleep and count > FEW:
                wake_up(source)
                asleep = False
            elif FEW < count < PAGE:  # the second such page: a steady load
                stop.sleep(min(max(PAUSE, PAUSE_PER_CHANGE * count), PAUSE_AT_MOST))
        elif once:
            break
        if asleep:
            report.idle()
            wait_for_change(source, stop, until=due)
        elif not page:
            asleep = try_lock(source, ASLEEP)
            if not asleep:  # who saw us awake has yet to commit; a poll wades through all that a large one has logged
                restless = min(restless + 1, 10)
                stop.sleep(max(0.002 * restless, 5 * took))
    report.end()


def housekeep(source: Connection, pruner: Pruner, position: Position) -> float:
    """Prune a batch, or when there is none watch the sequence. Returns in how many seconds to come again."""
    if pruner.prune(position):
        return PRUNE_PAUSE
    check_sequence(source, position.last_offset)
    return HOUSEKEEPING


def tell(
    report: cli.Report, source: Connection, position: Position, page: list[Change], count: int, started: float
) -> None:
    def names() -> list[str]:
        return [f"{name} → published, offset {offset}" for name, offset in (named(to_json(change)) for change in page)]

    def left() -> int:
        with source.cursor() as cursor:
            cursor.execute(LEFT, {"last_offset": position.last_offset})
            return int(cursor.fetchall()[0][0])

    report.batch(count, page[-1].cdc_id, started, names, left if count >= PAGE else None)


def session(kafka: Kafka, outage: Outage, stop: cli.Stop, once: bool) -> None:
    """Publish over one connection to the source until a stop is requested, or with once until the log is drained."""
    with closing(connect("source", config.SOURCE_DATABASE_URL)) as source:
        outage.reached = True
        if once:
            become_active_or_exit(source)
        producer = kafka_client(Producer, KAFKA_SETTINGS, kafka)
        become_active(source, stop)
        if stop.requested:
            return
        prepare(source)
        position = load_position(source)
        check_sequence(source, max(position.last_offset, newest_published(kafka, stop)))
        outage.over()
        kafka.answered()
        log.info("publishing from offset %s to topic %s", f"{position.last_offset:,}", config.KAFKA_TOPIC)
        stream(source, producer, position, kafka, stop, once)


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--once", action="store_true", help="publish what is in the log, then exit")
    arguments = parser.parse_args()
    cli.start_logging(arguments.verbose)
    gc.set_threshold(cli.FEW_COLLECTIONS)
    stop = cli.stop_on_signals()
    kafka, outage = Kafka(), Outage(stop, give_up_after=60 if arguments.once else float("inf"))
    while not stop.requested:
        try:
            session(kafka, outage, stop, arguments.once)
            break
        except psycopg2.Error as error:
            outage.wait_for("source", config.SOURCE_DATABASE_URL, error)
        except KafkaException as error:
            reason = error.args[0]
            if reason.code() in NO_BROKER:
                kafka.lost()
            advice = "; run python admin.py" if reason.code() == KafkaError.UNKNOWN_TOPIC_OR_PART else ""
            outage.wait(f"topic {config.KAFKA_TOPIC}: {reason.str()}{advice}", quiet=kafka.settling())
        except NotPublished as error:
            outage.wait(f"topic {config.KAFKA_TOPIC}: {error}", quiet=kafka.settling())
        except PositionLost as error:
            outage.wait(str(error))
        except WrongSetting as error:
            cli.fail(str(error), cli.WRONG_USE)
        except cli.Stopped:
            log.warning("stopped while Kafka did not acknowledge; the page will be published at the next start")


if __name__ == "__main__":
    main()
