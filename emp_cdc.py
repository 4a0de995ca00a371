"""The log on the source: reading it without losing a row, the producer's position in it, and pruning it.

Why it is read as it is: docs/design.md.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg2
from psycopg2.extensions import connection as Connection

import config
from connection import WrongSetting
from employee import CDC_COLUMNS, Change

log = logging.getLogger("producer")

COLUMNS = ", ".join(CDC_COLUMNS)
LOGGED = COLUMNS.replace("dob", "dob::text")  # Python's dates do not reach as far as PostgreSQL's

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
-- its first row is its own snapshot, all others are changes
PREPARE poll (bigint, pg_snapshot, bigint) AS
SELECT NULL::bigint AS cdc_id, NULL::int, pg_current_snapshot()::text, NULL, NULL, NULL, NULL::int, NULL
UNION ALL
SELECT {LOGGED} FROM
    ((SELECT {COLUMNS} FROM emp_cdc WHERE {RUNNING_THEN} ORDER BY txid LIMIT $3 + 1)
     UNION ALL
     (SELECT {COLUMNS} FROM emp_cdc WHERE {BEGUN_LATER} ORDER BY txid LIMIT $3 + 1)
     UNION ALL
     (SELECT {COLUMNS} FROM emp_cdc WHERE cdc_id > $1 ORDER BY cdc_id LIMIT $3)) AS change
ORDER BY cdc_id NULLS FIRST
"""
POLL = "EXECUTE poll (%(last_offset)s, %(snapshot)s, %(page_size)s)"

# The late rows when they are more than a page: a cursor reads one snapshot to its end in bounded pages.
LATE_CURSOR = f"""
BEGIN ISOLATION LEVEL REPEATABLE READ;
DECLARE late NO SCROLL CURSOR FOR
SELECT {LOGGED}, (SELECT pg_current_snapshot()::text)
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

SEQUENCE = "SELECT last_value - (NOT is_called)::int FROM emp_cdc_cdc_id_seq"
SANE_JUMP = 10**12  # offsets: nobody's log lost more; a message further ahead is a stranger's
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


@dataclass(frozen=True)
class Position:
    """Every row with cdc_id <= last_offset that is visible in snapshot has been published."""

    last_offset: int
    snapshot: str


class PositionLost(Exception):
    """The position in the source is not the one we saved: someone moved it, or a backup was restored."""


def prepare(source: Connection) -> None:
    """Make the connection ready for reading the log. Raises psycopg2.errors.UndefinedTable if the source is not set
    up, WrongSetting if PostgreSQL does not understand RETENTION."""
    with source.cursor() as cursor:
        try:
            cursor.execute("SELECT now() - %(retention)s::interval", {"retention": config.RETENTION})
        except psycopg2.DataError:
            raise WrongSetting(
                f"RETENTION is {config.RETENTION!r}: give a PostgreSQL interval, such as '7 days'"
            ) from None
        cursor.execute(PREPARE)


def read_page(source: Connection, position: Position, page_size: int) -> tuple[list[Change], str]:
    """Return the late rows and the next ones behind the position, in the order of their offsets, and the snapshot that
    showed them. More late rows than a page: a page and more of them come first, to be left for `late_pages`."""
    with source.cursor() as cursor:
        cursor.execute(
            POLL, {"last_offset": position.last_offset, "snapshot": position.snapshot, "page_size": page_size}
        )
        (_, _, snapshot, *_), *rows = cursor.fetchall()
    return [Change(*row) for row in rows], snapshot


def late_pages(source: Connection, position: Position, page_size: int) -> Iterator[tuple[list[Change], str]]:
    """Yield all late rows of one snapshot in bounded pages, each with that snapshot."""
    with source.cursor() as cursor:
        cursor.execute(LATE_CURSOR, {"last_offset": position.last_offset, "snapshot": position.snapshot})
        while True:
            cursor.execute(LATE_PAGE, {"page_size": page_size})
            rows = cursor.fetchall()
            if not rows:
                break
            yield [Change(*row[:-1]) for row in rows], rows[0][-1]
        cursor.execute("COMMIT")


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
        if last_value < seen < last_value + SANE_JUMP:
            cursor.execute("SELECT setval('emp_cdc_cdc_id_seq', %(seen)s)", {"seen": seen})
            log.error(
                "THE SOURCE WENT BACK IN TIME: its log is at offset %s, offset %s has been published. New changes "
                "go on from there; run python verify.py --repair for those in between",
                f"{last_value:,}",
                f"{seen:,}",
            )


@dataclass
class Pruner:
    """Deletes published rows once they are older than RETENTION, in small batches so that writers hardly notice."""

    source: Connection
    pruned: int = 0

    def prune(self, position: Position) -> int:
        """Delete one batch; returns how many rows went."""
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
        return int(count)
