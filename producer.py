"""Publish the changes in the source's log to Kafka, each at least once, those of one employee in their order.

    python producer.py           until Ctrl-C
    python producer.py --once    what is in the log now, then exit

A second producer beside an active one stands by and takes over when the first one's session ends.
"""

from __future__ import annotations

import itertools
import logging
import select
import time
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import psycopg2
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from psycopg2.extensions import connection as Connection

import cli
import config
from connection import Kafka, Outage, WrongSetting, connect, kafka_client
from employee import CDC_COLUMNS, named

log = logging.getLogger("producer")

PAGE = 10_000  # changes read, published and acknowledged as one
PAUSE = 0.005  # seconds that let a page fill under steady load
NEARLY_EMPTY = 5  # changes: a page this small is not worth a pause
PRUNE_PAUSE = 0.1  # seconds between two batches of pruning
HOUSEKEEPING = 10.0  # seconds between looks at what can be pruned, while there is nothing to prune
GUARD_DEPTH = 1_000  # messages at the end of each partition that the start-up guard reads

ACTIVE, ASLEEP = 1, 2  # advisory locks (6513763, n): 6513763 is 'cdc' in ASCII, see emp_cdc_wake_trigger

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

COLUMNS = ", ".join(CDC_COLUMNS)

# $1 last_offset, $2 snapshot, $3 page size. Late rows are those of transactions that the snapshot did not show: still
# running then (xip) but not now, or begun later (from xmax on).
ENDED_SINCE = "ARRAY (SELECT pg_snapshot_xip($2) EXCEPT SELECT pg_snapshot_xip(pg_current_snapshot()))"
RUNNING_THEN = f"txid = ANY ({ENDED_SINCE}) AND cdc_id + 0 <= $1"
BEGUN_LATER = "txid >= pg_snapshot_xmax($2) AND cdc_id + 0 <= $1"
LATE = f"FROM emp_cdc WHERE ({RUNNING_THEN} OR {BEGUN_LATER})"

# Prepared once, and always run by the generic plan: three index scans whatever the statistics say. That is what
# `ORDER BY txid`, `cdc_id + 0` and enable_seqscan are for: a plan that reads the whole log would be costed lower where
# the LIMIT promises an early end, and it never comes, as late rows are rare.
PREPARE = f"""
SET synchronous_commit = off;  -- a position lost in a crash only publishes its page again
SET enable_seqscan = off;
SET plan_cache_mode = force_generic_plan;
LISTEN emp_cdc;
PREPARE poll (bigint, pg_snapshot, bigint) AS
SELECT cdc_id, emp_id::text, row_to_json(change)::text, now.snapshot
FROM (SELECT pg_current_snapshot()::text AS snapshot) AS now LEFT JOIN
     ((SELECT {COLUMNS} FROM emp_cdc WHERE {RUNNING_THEN} ORDER BY txid LIMIT $3 + 1)
      UNION ALL
      (SELECT {COLUMNS} FROM emp_cdc WHERE {BEGUN_LATER} ORDER BY txid LIMIT $3 + 1)
      UNION ALL
      (SELECT {COLUMNS} FROM emp_cdc WHERE cdc_id > $1 ORDER BY cdc_id LIMIT $3)) AS change ON true
ORDER BY cdc_id
"""
POLL = "EXECUTE poll (%(last_offset)s, %(snapshot)s, %(page_size)s)"

# The late rows when they are more than a page: a cursor reads one snapshot to its end in bounded pages.
LATE_CURSOR = f"""
BEGIN ISOLATION LEVEL REPEATABLE READ;
DECLARE late NO SCROLL CURSOR FOR
SELECT cdc_id, emp_id::text, row_to_json(change)::text, (SELECT pg_current_snapshot()::text)
FROM (SELECT {COLUMNS} {LATE}) AS change ORDER BY cdc_id
""".replace("$1", "%(last_offset)s").replace("$2", "%(snapshot)s::pg_snapshot")
LATE_PAGE = "FETCH FORWARD %(page_size)s FROM late"

SAVE = """
UPDATE cdc_position SET last_offset = %(last_offset)s, snapshot = %(snapshot)s, saved_at = clock_timestamp()
WHERE last_offset = %(was_offset)s
"""
LOAD = """
SELECT last_offset, snapshot::text,
       c.system_identifier <> p.system_identifier
       OR pg_snapshot_xmax(snapshot) > pg_snapshot_xmax(pg_current_snapshot())
FROM cdc_position AS p, pg_control_system() AS c
"""
# The log came here by dump and restore: its txids, and the saved snapshot, count another server's transactions. With
# the lock held, all that is in the table is committed. What the saved snapshot calls late gets this transaction's
# txid, a floor that the new snapshot does not show; the rest that could look late ever after gets a frozen one.
REBASE = """
BEGIN;
LOCK TABLE emp_cdc IN SHARE ROW EXCLUSIVE MODE;
UPDATE emp_cdc SET txid = CASE WHEN late THEN pg_current_xact_id() ELSE '3' END
FROM (SELECT change.cdc_id, NOT pg_visible_in_snapshot(txid, snapshot) AND change.cdc_id <= last_offset AS late
      FROM emp_cdc AS change, cdc_position) AS restored
WHERE emp_cdc.cdc_id = restored.cdc_id AND (late OR txid >= pg_current_xact_id());
UPDATE cdc_position SET system_identifier = (SELECT system_identifier FROM pg_control_system()),
    snapshot = format('%1$s:%1$s:', pg_current_xact_id())::pg_snapshot;
COMMIT
"""

SEQUENCE = "SELECT last_value FROM emp_cdc_cdc_id_seq"
LEFT = "SELECT coalesce(max(cdc_id), 0) - %(last_offset)s FROM emp_cdc"
PRUNE = """
WITH oldest AS (
    SELECT cdc_id, txid, changed_at FROM emp_cdc
    WHERE cdc_id > %(pruned)s AND cdc_id <= %(last_offset)s ORDER BY cdc_id LIMIT 1000
), gone AS (
    DELETE FROM emp_cdc USING oldest
    WHERE emp_cdc.cdc_id = oldest.cdc_id AND oldest.changed_at < now() - %(retention)s::interval
      AND pg_visible_in_snapshot(oldest.txid, %(snapshot)s)
    RETURNING emp_cdc.cdc_id
)
SELECT count(*), max(cdc_id) FROM gone
"""


class Change(NamedTuple):
    """A row of the log as it is published: key and value of its message, and the snapshot of the poll that read it."""

    cdc_id: int
    key: str
    value: str
    snapshot: str


@dataclass(frozen=True)
class Position:
    """Every row with cdc_id <= last_offset that is visible in snapshot has been published."""

    last_offset: int
    snapshot: str


class PositionLost(Exception):
    """The position in the source is not the one we saved: someone moved it, or a backup was restored."""


class NotPublished(Exception):
    """Kafka refused some of a page for good; the position stays before it."""


class Stopped(Exception):
    """A stop was requested while Kafka did not acknowledge; the position stays before the page."""


def run_once(
    source: Connection, producer: Producer, position: Position, stop: cli.Stop, page_size: int = PAGE
) -> tuple[Position, list[Change]]:
    """Publish one page and save the position behind it. Returns the new position and the page, empty when drained."""
    with source.cursor() as cursor:
        cursor.execute(
            POLL, {"last_offset": position.last_offset, "snapshot": position.snapshot, "page_size": page_size}
        )
        page = [Change._make(row) for row in cursor.fetchall()]
    snapshot = page[0].snapshot
    if page[0].cdc_id is None:  # nothing but the snapshot: the position moves there, and need not be saved
        return Position(position.last_offset, snapshot), []
    if page_size < len(page) and page[page_size].cdc_id <= position.last_offset:
        return publish_late(source, producer, position, stop, page_size)
    publish(producer, page, stop)
    # A crash here publishes the page again; the consumer's gate drops what it has already applied.
    return save(source, position, Position(max(position.last_offset, page[-1].cdc_id), snapshot)), page


def publish_late(
    source: Connection, producer: Producer, position: Position, stop: cli.Stop, page_size: int
) -> tuple[Position, list[Change]]:
    """Publish all late rows of one snapshot, page by page, and move the position's snapshot there.

    Nothing beyond the offset is published meanwhile: it may hold newer changes of the same employees. The position is
    saved at the end only; a crash before that publishes the late rows again.
    """
    page: list[Change] = []
    with source.cursor() as cursor:
        cursor.execute(LATE_CURSOR, {"last_offset": position.last_offset, "snapshot": position.snapshot})
        for number in itertools.count():
            cursor.execute(LATE_PAGE, {"page_size": page_size})
            following = [Change._make(row) for row in cursor.fetchall()]
            if not following:
                break
            page = following
            publish(producer, page, stop)
            log.debug("late page %d published", number)
        cursor.execute("COMMIT")
    return save(source, position, Position(position.last_offset, page[0].snapshot)), page


def publish(producer: Producer, page: list[Change], stop: cli.Stop) -> None:
    """Hand a page to Kafka and wait until all of it is acknowledged.

    Raises NotPublished if Kafka refuses a message for good, Stopped if a stop is requested while Kafka is away.
    """
    failures: list[KafkaError] = []
    waiting: list[dict[str, Any]] = [{"key": change.key, "value": change.value} for change in page]
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
        raise Stopped


def save(source: Connection, was: Position, position: Position) -> Position:
    """Save the position, but only over the one it follows. Raises PositionLost if that is not there."""
    values = {
        "last_offset": position.last_offset,
        "snapshot": position.snapshot,
        "was_offset": was.last_offset,
    }
    with source.cursor() as cursor:
        cursor.execute(SAVE, values)
        if cursor.rowcount != 1:
            raise PositionLost("the position in the source was moved by someone else; reading it again")
    return position


def load_position(source: Connection) -> Position:
    """Return where to go on. If the log was restored from another server's dump, rebase it first."""
    with source.cursor() as cursor:
        cursor.execute(LOAD)
        row = cursor.fetchone()
        if row is None:
            raise psycopg2.errors.UndefinedTable("cdc_position is empty")
        last_offset, snapshot, restored = row
        if restored:
            cursor.execute(REBASE)
            log.warning("the log was restored from another server: position rebased, nothing is lost; going on")
            return load_position(source)
    return Position(last_offset, snapshot)


def check_sequence(source: Connection, seen: int) -> None:
    """Move the log's sequence past the newest offset seen, if it went back in time (a restored backup, a fail-over
    that lost commits, TRUNCATE emp_cdc RESTART IDENTITY): lower offsets would look stale at the destination."""
    with source.cursor() as cursor:
        cursor.execute(SEQUENCE)
        ((last_value,),) = cursor.fetchall()
        if last_value < seen:
            cursor.execute("SELECT setval('emp_cdc_cdc_id_seq', %(seen)s)", {"seen": seen})
            log.error(
                "THE SOURCE WENT BACK IN TIME: its log is at offset %s, offset %s has been published. New changes "
                "go on from there; run python verify.py --repair for those in between",
                f"{last_value:,}",
                f"{seen:,}",
            )


def newest_published(kafka: Kafka, stop: cli.Stop) -> int:
    """Return the highest cdc_id among the last messages of each partition, 0 if there is none.

    Raises KafkaException while the topic or the broker is missing.
    """
    reader = kafka_client(
        Consumer, {"enable.auto.commit": False, "enable.partition.eof": True, "group.id": "employee-cdc-guard"}, kafka
    )
    with closing(reader):
        metadata = reader.list_topics(config.KAFKA_TOPIC, timeout=5).topics[config.KAFKA_TOPIC]
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
    if not try_lock(source, ACTIVE):
        log.info("another producer is active; standing by")
        while not stop.requested and not try_lock(source, ACTIVE):
            stop.sleep(0.5)


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


def stream(source: Connection, producer: Producer, position: Position, stop: cli.Stop, once: bool) -> None:
    """Publish until a stop is requested, or with once until the log is drained.

    Falling asleep: a writer that tried the lock ASLEEP before we hold it, saw us awake, and did not notify, keeps us
    from getting it until it has committed; so the poll after we got it sees every such writer, and every later writer
    notifies. No change can fall between.
    """
    report = cli.Report(log, "published")
    housekeeper = Housekeeper(source)
    asleep, restless = False, 0
    while not stop.requested:
        started = time.monotonic()
        position, page = run_once(source, producer, position, stop)
        took = time.monotonic() - started
        if page:
            tell(report, source, position, page, started)
            if asleep:
                wake_up(source)
            asleep, restless = False, 0
            if NEARLY_EMPTY < len(page) < PAGE:
                stop.sleep(PAUSE)
            if len(page) < PAGE:
                housekeeper.run(position)
        elif once:
            break
        elif asleep:
            report.idle()
            housekeeper.run(position)
            wait_for_change(source, stop, until=housekeeper.next_look)
        elif try_lock(source, ASLEEP):
            asleep = True
        else:  # somebody who saw us awake has yet to commit; a poll wades through all that a large one has logged
            restless = min(restless + 1, 10)
            stop.sleep(max(0.002 * restless, 5 * took))
    report.end()


def tell(report: cli.Report, source: Connection, position: Position, page: list[Change], started: float) -> None:
    def names() -> list[str]:
        return [f"{name} → published, offset {offset}" for name, offset in (named(change.value) for change in page)]

    def left() -> int:
        with source.cursor() as cursor:
            cursor.execute(LEFT, {"last_offset": position.last_offset})
            return int(cursor.fetchall()[0][0])

    report.batch(len(page), page[-1].cdc_id, started, names, left if len(page) >= PAGE else None)


@dataclass
class Housekeeper:
    """Prunes published rows once they are older than RETENTION, in small batches so that writers hardly notice, and
    watches the sequence."""

    source: Connection
    pruned: int = 0
    next_look: float = 0.0

    def run(self, position: Position) -> None:
        """Prune one batch, if it is time for one."""
        if time.monotonic() < self.next_look:
            return
        values = {
            "pruned": self.pruned,
            "last_offset": position.last_offset,
            "snapshot": position.snapshot,
            "retention": config.RETENTION,
        }
        with self.source.cursor() as cursor:
            cursor.execute(PRUNE, values)
            ((count, newest),) = cursor.fetchall()
        if count:
            self.pruned = newest
            log.debug("pruned %d rows up to offset %d", count, newest)
            self.next_look = time.monotonic() + PRUNE_PAUSE
        else:
            check_sequence(self.source, position.last_offset)
            self.next_look = time.monotonic() + HOUSEKEEPING


def session(kafka: Kafka, outage: Outage, stop: cli.Stop, once: bool) -> None:
    """Publish over one connection to the source until a stop is requested, or with once until the log is drained."""
    with closing(connect("source", config.SOURCE_DATABASE_URL)) as source:
        outage.over()
        if once and not try_lock(source, ACTIVE):
            cli.fail("another producer is active; it publishes what is there")
        producer = kafka_client(Producer, KAFKA_SETTINGS, kafka)
        become_active(source, stop)
        with source.cursor() as cursor:
            cursor.execute("SELECT %(retention)s::interval", {"retention": config.RETENTION})
            cursor.execute(PREPARE)
        position = load_position(source)
        check_sequence(source, max(position.last_offset, newest_published(kafka, stop)))
        kafka.answered()
        log.info("publishing from offset %s to topic %s", f"{position.last_offset:,}", config.KAFKA_TOPIC)
        stream(source, producer, position, stop, once)


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--once", action="store_true", help="publish what is in the log, then exit")
    arguments = parser.parse_args()
    cli.start_logging(arguments.verbose)
    stop = cli.stop_on_signals()
    kafka, outage = Kafka(), Outage(stop, give_up_after=60 if arguments.once else float("inf"))
    while not stop.requested:
        try:
            session(kafka, outage, stop, arguments.once)
            break
        except psycopg2.errors.InvalidDatetimeFormat:
            cli.fail(f"RETENTION is {config.RETENTION!r}: give a PostgreSQL interval, such as '7 days'", cli.WRONG_USE)
        except psycopg2.Error as error:
            outage.wait_for("source", config.SOURCE_DATABASE_URL, error)
        except KafkaException as error:
            outage.wait(f"Kafka: {error.args[0].str()}")
        except (PositionLost, NotPublished) as error:
            outage.wait(str(error))
        except WrongSetting as error:
            cli.fail(str(error), cli.WRONG_USE)
        except Stopped:
            log.warning("stopped while Kafka did not acknowledge; the page will be published at the next start")


if __name__ == "__main__":
    main()
