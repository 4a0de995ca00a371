"""Is the log that we read the one that we published from?

Asked at every start, every 10 s of the log, and every minute of the topic.

A backup, a crash, a fail-over, a copy or a careless hand changes the log without a trace in it. The topic remembers.
What the topic holds beyond our position was published before a crash, and then it stands in the log with the same
content; or it comes from another history. What can be concluded, and what is done: Guards in docs/design.md.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import config
from cdc import cli
from cdc.emp_cdc import CHANGE
from cdc.message import Change, describe, to_json
from cdc.position import Position
from cdc.postgres import WrongSetting
from cdc.signature import start_of, started_earlier
from cdc.topic import Tail, TopicChange
from cdc.waiting import waiter
from config import SCHEMA
from employee import CDCRecord

import psycopg2
from confluent_kafka import KafkaException
from psycopg2.extensions import connection as Connection

log = logging.getLogger(__name__)

MAX_SEQUENCE_JUMP = 10**12  # log offsets; nobody's log lost more. A message further ahead is a stranger's.
TOPIC_EVERY = 60.0  # seconds between two checks of the topic
TOPIC_SOON = 10.0  # the first time
OTHERS_WAIT = 0.5  # seconds, at a start that finds another history: does whoever published it go on?

SEQUENCE = f"SELECT last_value - (NOT is_called)::int FROM {SCHEMA}.emp_cdc_cdc_id_seq"
# The sequence, the log's head if it is beyond that, whether a row has a transaction that this server has not reached,
# the newest row that was removed before it was published, and whether db_setup.py is moving the rows of an old log.
STATE = f"""
SELECT last_value - (NOT is_called)::int,
       (SELECT coalesce(max(cdc_id), 0) FROM {SCHEMA}.emp_cdc WHERE cdc_id >= last_value),
       EXISTS (SELECT FROM {SCHEMA}.emp_cdc WHERE txid >= pg_snapshot_xmax(pg_current_snapshot())),
       (SELECT removed FROM {SCHEMA}.cdc_position), to_regclass('{SCHEMA}.emp_cdc_old') IS NOT NULL
FROM {SCHEMA}.emp_cdc_cdc_id_seq
"""
# They would count as late rows at each poll, without end. As rows of this transaction they do so once.
ADOPT = f"""
UPDATE {SCHEMA}.emp_cdc SET txid = pg_current_xact_id() WHERE txid >= pg_snapshot_xmax(pg_current_snapshot())
"""
REPORTED = f"UPDATE {SCHEMA}.cdc_position SET removed = NULL WHERE removed = %(removed)s"
UNPUBLISHED = """(cdc_id > %(last_offset)s OR txid >= pg_snapshot_xmax(%(snapshot)s::pg_snapshot)
    OR txid = ANY (ARRAY (SELECT pg_snapshot_xip(%(snapshot)s::pg_snapshot))))"""
OLDEST = f"SELECT coalesce(min(cdc_id), {2**63 - 1}) FROM {SCHEMA}.emp_cdc"
LOGGED = f"SELECT {CHANGE}, {UNPUBLISHED} FROM {SCHEMA}.emp_cdc WHERE cdc_id = ANY (%(offsets)s::bigint[])"

# Two steps. In the first the lock waits for all who write; then the sequence leaves a gap above all that was published,
# wide enough for the changes that were not. In the second those move into the gap, in their order, while writers go on
# above it. Both run as one transaction each; a crash between them finds the same again.
LEAVE_GAP = f"""
SET LOCAL lock_timeout = '200ms';
LOCK TABLE {SCHEMA}.emp_cdc IN SHARE ROW EXCLUSIVE MODE;
SELECT top, setval('{SCHEMA}.emp_cdc_cdc_id_seq', top + coalesce(top + 1 - first, 0)) - top
FROM (SELECT greatest(last_value, %(newest)s, (SELECT max(cdc_id) FROM {SCHEMA}.emp_cdc)) AS top,
             (SELECT min(cdc_id) FROM {SCHEMA}.emp_cdc WHERE {UNPUBLISHED}) AS first
      FROM {SCHEMA}.emp_cdc_cdc_id_seq) AS log
"""
MOVE = f"""
UPDATE {SCHEMA}.emp_cdc SET cdc_id = cdc_id + %(shift)s WHERE {UNPUBLISHED} AND cdc_id <= %(top)s;
UPDATE {SCHEMA}.cdc_position SET last_offset = %(top)s, snapshot = %(snapshot)s, saved_at = clock_timestamp()
"""

# The database whose log this is a copy of, while it exists on this server. NULL: the position is this database's own.
ORIGINAL = f"""
SELECT datname FROM {SCHEMA}.cdc_position, pg_control_system() AS server, pg_database AS original
WHERE database = server.system_identifier || '/' || original.oid AND datname <> current_database()
"""
TAKE_OVER = f"""
UPDATE {SCHEMA}.cdc_position SET database = here FROM (
    SELECT system_identifier || '/' || oid AS here FROM pg_control_system(), pg_database
    WHERE datname = current_database()) AS own
WHERE database IS DISTINCT FROM here
"""

BACK_IN_TIME = "THE SOURCE WENT BACK IN TIME"
OTHER_LOG = "THE TOPIC HOLDS CHANGES OF ANOTHER LOG"
OTHER_SERVER = "THE LOG HOLDS ROWS OF ANOTHER SERVER"
COPY = (
    "source: this database is a copy of {}, which publishes to topic {}: give the copy a KAFKA_TOPIC of its own; if it "
    f"replaces the original, drop that one, or run here UPDATE {SCHEMA}.cdc_position SET database = NULL"
)

CLONE = (
    "topic {}: another log is published to it, by a producer that started before this one ({}): {}. End the one "
    "that is wrong, or give it a KAFKA_TOPIC of its own; then run python verify.py --repair"
)


@dataclass
class History:
    """Compares the log with what the topic holds. A finding is one line: what happened, what was done, what to run."""

    source: Connection
    tail: Tail
    stop: cli.Stop

    def __post_init__(self) -> None:
        self.topic_pause = min(TOPIC_SOON, TOPIC_EVERY)
        self.topic_due = time.monotonic() + self.topic_pause  # when to check the topic again

    def check_at_start(self, position: Position) -> Position:
        """Return where to go on, after what was found has been mended.

        Raises KafkaException while Kafka is down, WrongSetting for a copy of a source that publishes to this topic.
        """
        messages = self.tail.read(self.stop)
        with self.source.cursor() as cursor:
            cursor.execute(ORIGINAL)
            if messages and (found := cursor.fetchone()):
                raise WrongSetting(COPY.format(found[0], config.KAFKA_TOPIC))
            cursor.execute(TAKE_OVER)
        return self.check(position, messages, running=False)

    def check_running(self, position: Position) -> Position:
        """The same between two pages. That Kafka is down is not reported here, but by the next page."""
        messages: list[TopicChange] = []
        if time.monotonic() >= self.topic_due:
            self.topic_pause = min(2 * self.topic_pause, TOPIC_EVERY)
            self.topic_due = time.monotonic() + self.topic_pause
            try:
                messages = self.tail.read(self.stop)
            except KafkaException as error:
                log.debug("topic not checked: %s", error)
        return self.check(position, messages, running=True)

    def check(self, position: Position, messages: list[TopicChange], running: bool) -> Position:
        """messages: those at the topic's end that were not checked before."""
        with self.source.cursor() as cursor:
            cursor.execute(STATE)
            ((drawn, head, unreached, removed, upgrading),) = cursor.fetchall()
        if unreached:
            self.adopt()
        if removed is not None:
            self.report_removed(position, removed)
        if upgrading:  # what was published may yet have to be moved into the log
            return position
        limit = drawn + MAX_SEQUENCE_JUMP
        if running:
            self.refuse_clone(position, messages)
        foreign = self.find_foreign(position, [change for change in messages if change.log_offset < limit], running)
        if foreign and not running:
            messages += self.wait_for_others(position)
        offsets = (position.last_offset, head, drawn, *(change.log_offset for change in messages))
        newest = max(offset for offset in offsets if offset < limit)
        if foreign:
            return self.mend(position, newest, OTHER_LOG if running else BACK_IN_TIME, foreign)
        if newest > drawn:
            reason = f"it is at log offset {drawn:,}, and log offset {newest:,} has been published"
            return self.mend(position, newest, BACK_IN_TIME, reason)
        return position

    def wait_for_others(self, position: Position) -> list[TopicChange]:
        """Return what comes to the topic meanwhile. Raises WrongSetting if another log's producer goes on."""
        self.stop.sleep(OTHERS_WAIT)
        messages = self.tail.read(self.stop)
        self.refuse_clone(position, messages)
        return messages

    def refuse_clone(self, position: Position, messages: list[TopicChange]) -> None:
        """Raise WrongSetting if a producer that was there before us has published, since we are here, what is not ours.

        What our own log's last producer had in hand at its end is in the log, or pruned.
        """
        earlier = [change for change in messages if started_earlier(change.signature)]
        if not earlier:
            return
        logged = self.read_logged(position, earlier)
        with self.source.cursor() as cursor:
            cursor.execute(OLDEST)
            ((oldest,),) = cursor.fetchall()
        for log_offset, value, signature in earlier:
            row, _ = logged.get(log_offset, (None, False))
            ours = log_offset <= min(oldest, position.last_offset) if row is None else is_same(row, value)
            if not ours:
                found = f"{describe(value)[0]} at log offset {log_offset:,}"
                raise WrongSetting(CLONE.format(config.KAFKA_TOPIC, start_of(signature), found))

    def read_logged(self, position: Position, messages: list[TopicChange]) -> dict[int, tuple[Change, bool]]:
        """Return the log's rows with the messages' log offsets, by these, and whether each is yet to be published."""
        if not messages:
            return {}
        with self.source.cursor() as cursor:
            cursor.execute(LOGGED, {**vars(position), "offsets": [change.log_offset for change in messages]})
            return {row[0]: (Change(*row[:-1]), row[-1]) for row in cursor.fetchall()}

    def find_foreign(self, position: Position, messages: list[TopicChange], running: bool) -> str:
        """Return what the topic holds that is not from this log, in words; nothing if there is no such change.

        A row that is gone may have been pruned, if it is at or below the offset. A row that is not published cannot be
        in the topic with another content. Between two pages nobody's can: what is new there, we have published.
        """
        logged = self.read_logged(position, messages)
        for offset, value, _ in messages:
            change, unpublished = logged.get(offset, (None, False))
            if change is None and offset > position.last_offset:
                return f"the topic holds {describe(value)[0]} at log offset {offset:,}, the log has no such row"
            if change is not None and (unpublished or running) and not is_same(change, value):
                return (
                    f"the topic holds {describe(value)[0]} at log offset {offset:,}, the log another change, "
                    f"{change.action} employee {change.emp_id}"
                )
        return ""

    def mend(self, position: Position, newest: int, what: str, reason: str) -> Position:
        """Move the sequence, and all that is unpublished, past all that was published: the gate drops what is lower."""
        values = {**vars(position), "newest": newest}
        top, shift = self.leave_gap(values)
        with self.source.cursor() as cursor:
            cursor.execute(MOVE, {**values, "top": top, "shift": shift})
        other = "end the other producer, then " if what == OTHER_LOG else ""
        log.error(
            "%s: %s. New changes go on from log offset %s; %srun python verify.py --repair",
            what,
            reason,
            f"{top + 1:,}",
            other,
        )
        return Position(top, position.snapshot)

    def leave_gap(self, values: dict[str, int | str]) -> tuple[int, int]:
        """Return the highest log offset in use, and by how much unpublished changes must move. Waits for writers."""
        warned, started = False, time.monotonic()
        while True:
            try:
                with self.source.cursor() as cursor:
                    cursor.execute(LEAVE_GAP, values)
                    ((top, shift),) = cursor.fetchall()
                return top, shift
            except psycopg2.errors.LockNotAvailable:
                if not warned:
                    log.warning("a long transaction holds emp_cdc; waiting until it ends")
                warned = True
                if time.monotonic() - started > waiter.limit:
                    cli.fail(f"a long transaction holds emp_cdc; gave up after {waiter.limit:.0f} s")
                self.stop.sleep(0.5)
                cli.raise_if_requested(self.stop)

    def report_removed(self, position: Position, removed: int) -> None:
        log.error(
            "CHANGES WERE REMOVED FROM THE LOG before they were published: emp_cdc has lost rows up to log offset "
            "%s, the newest published is %s. Publishing goes on with what is left; run python verify.py --repair",
            f"{removed:,}",
            f"{position.last_offset:,}",
        )
        with self.source.cursor() as cursor:
            cursor.execute(REPORTED, {"removed": removed})

    def adopt(self) -> None:
        with self.source.cursor() as cursor:
            cursor.execute(ADOPT)
            count = cursor.rowcount
        log.error(
            "%s: %s rows of emp_cdc are of transactions that this one has not reached (pg_dump -t emp_cdc?). They are "
            "published once, as changes of now; run python verify.py --repair",
            OTHER_SERVER,
            f"{count:,}",
        )


def is_same(change: Change, value: bytes) -> bool:
    """Whether a message says what a row of the log says, also where another version wrote it."""
    logged = to_json(change)
    if logged == value:
        return True
    try:
        return CDCRecord.from_json(value) == CDCRecord.from_json(logged)
    except ValueError:  # a row put into the log by hand
        return False
