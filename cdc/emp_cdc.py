"""Read the log without losing a row, and prune it.

A change draws its cdc_id before it commits. So a row can become visible at or below the offset that has been published
already: a late row. The position is therefore a pair, the offset and the snapshot of the poll that reached it. Each
poll reads the rows beyond the offset and the late rows, those of transactions that the snapshot did not show. Why no
easier way is right: docs/design.md.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import config
from cdc import metrics
from cdc.bar import LINE_EVERY
from cdc.message import Change
from cdc.position import Position
from cdc.postgres import WrongSetting, run_settings
from cdc.schema import check_version
from config import SCHEMA
from employee import CDC_COLUMNS

import psycopg2
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import encodings, new_type, register_type

log = logging.getLogger(__name__)

COLUMNS = ", ".join(CDC_COLUMNS)
CHANGE = COLUMNS.replace("dob", "dob::text")  # Python's dates do not reach as far as PostgreSQL's

# $1 last_offset, $2 snapshot, $3 page size. The late rows are of transactions that ran at the time of the snapshot and
# have ended (its xip), or that began after it (from its xmax on).
ENDED_SINCE = "ARRAY (SELECT pg_snapshot_xip($2) EXCEPT SELECT pg_snapshot_xip(pg_current_snapshot()))"
RUNNING_THEN = f"txid = ANY ({ENDED_SINCE}) AND cdc_id + 0 <= $1"
BEGUN_LATER = "txid >= pg_snapshot_xmax($2) AND cdc_id + 0 <= $1"
LATE = f"FROM {SCHEMA}.emp_cdc WHERE ({RUNNING_THEN} OR {BEGUN_LATER})"

CHANGED_AT = f"""
SELECT date_part('epoch', changed_at)::text FROM {SCHEMA}.emp_cdc WHERE cdc_id > $1 ORDER BY cdc_id LIMIT 1
""".strip()

# Prepared once, and always run by the generic plan: three index scans, whatever the statistics say. Late rows are
# rare. A plan that reads the whole log until the LIMIT is reached looks cheap, and it never reaches it. `ORDER BY
# txid`, `cdc_id + 0` and enable_seqscan leave the planner no such plan.
SESSION = f"""
SET synchronous_commit = off;  -- a position lost in a crash only publishes its page again
SET enable_seqscan = off;
SET plan_cache_mode = force_generic_plan;
SET max_parallel_workers_per_gather = 0;  -- one after the other, the parts of a poll come in their order
LISTEN emp_cdc;
PREPARE poll (bigint, pg_snapshot, bigint) AS
-- the first row: the snapshot of this statement, the newest log offset that anybody has drawn, and the time of the
-- oldest change beyond the offset
SELECT NULL::bigint AS cdc_id, NULL::int, pg_current_snapshot()::text,
       pg_sequence_last_value('{SCHEMA}.emp_cdc_cdc_id_seq')::text, ({CHANGED_AT}), NULL, NULL::int, NULL
UNION ALL
SELECT {CHANGE} FROM
    -- late rows: their transaction ran at the time of the saved snapshot
    ((SELECT {COLUMNS} FROM {SCHEMA}.emp_cdc WHERE {RUNNING_THEN} ORDER BY txid LIMIT $3 + 1)
     UNION ALL
     -- late rows: their transaction began later
     (SELECT {COLUMNS} FROM {SCHEMA}.emp_cdc WHERE {BEGUN_LATER} ORDER BY txid LIMIT $3 + 1)
     UNION ALL
     -- the rows beyond the offset
     (SELECT {COLUMNS} FROM {SCHEMA}.emp_cdc WHERE cdc_id > $1 ORDER BY cdc_id LIMIT $3)) AS change
"""
POLL = "EXECUTE poll (%(last_offset)s, %(snapshot)s, %(page_size)s)"

# More late rows than a page: a cursor reads one snapshot to its end in bounded pages.
LATE_CURSOR = f"""
BEGIN ISOLATION LEVEL REPEATABLE READ;
DECLARE late NO SCROLL CURSOR FOR
SELECT {CHANGE} FROM (SELECT {COLUMNS} {LATE}) AS change ORDER BY cdc_id;
SELECT pg_current_snapshot()::text
""".replace("<= $1", "<= %(last_offset)s").replace(
    "($2)", "(%(snapshot)s::pg_snapshot)"
)  # a schema may be called "a$1"
LATE_PAGE = "FETCH FORWARD %(page_size)s FROM late"

MANY_DRAWN = 1_000  # offsets of open transactions; a poll wades through fewer in no time

COUNT_UNPUBLISHED = f"SELECT greatest(max(cdc_id) - %(last_offset)s, 0), ({CHANGED_AT}) FROM {SCHEMA}.emp_cdc".replace(
    "> $1", "> %(last_offset)s"
)
TEXT, VARCHAR = 25, 1043  # PostgreSQL's numbers of the types
RAW = ("SQL_ASCII", "LATIN", "ISO_8859_", "KOI8", "WIN")  # encodings that may hold bytes that are no character
# PostgreSQL takes a bare number for seconds.
CHECK_RETENTION = (
    "SELECT now() - %(retention)s::interval <= now() AND %(retention)s !~ '^[[:space:]]*[+-]?[0-9.]+[[:space:]]*$'"
)
# A row whose time is in the future, as after a clock was put right, does not keep the rows after it from being pruned.
PRUNE = f"""
WITH oldest AS (
    SELECT cdc_id, txid, changed_at FROM {SCHEMA}.emp_cdc
    WHERE cdc_id > %(pruned)s AND cdc_id <= %(last_offset)s AND changed_at <= now() ORDER BY cdc_id LIMIT 1000
), pruned AS (
    DELETE FROM {SCHEMA}.emp_cdc USING oldest
    WHERE emp_cdc.cdc_id = oldest.cdc_id AND oldest.changed_at < now() - %(retention)s::interval
      AND pg_visible_in_snapshot(oldest.txid, %(snapshot)s)
    RETURNING emp_cdc.cdc_id
)
SELECT count(*), max(cdc_id) FROM pruned
"""


@dataclass(frozen=True)
class Page:
    """The changes to publish next, in the order of cdc_id, and the snapshot they were read in."""

    changes: list[Change]
    snapshot: str
    drawn: int = 0  # the newest log offset at the time
    too_many_late: bool = False  # more late rows than a page: publish none of these, use late_pages()
    changed_at: str | None = None  # when the first change was made (Unix, seconds), unless it is a late row

    def position_after(self, position: Position) -> Position:
        """Return where to go on once these changes are published.

        With no changes, all that the snapshot shows is published, whatever the offset. If open transactions have drawn
        many offsets, the position skips those: each poll would wade through their rows. They become late rows.
        """
        newest = self.changes[-1].cdc_id if self.changes else 0
        if not self.changes and self.drawn - position.last_offset > MANY_DRAWN:
            newest = self.drawn
        return Position(max(position.last_offset, newest), self.snapshot)


def prepare(source: Connection) -> None:
    """Make a connection ready for reading the log.

    Raises psycopg2.errors.UndefinedTable if the source is not set up, OperationalError if its tables are too old,
    WrongSetting if they are too new, if RETENTION is no span of time, or if a policy hides rows of the log from us.
    """
    with source.cursor() as cursor:
        try:
            cursor.execute(CHECK_RETENTION, {"retention": config.RETENTION})
            ((right,),) = cursor.fetchall()
        except psycopg2.DataError:
            right = False
        if not right:
            raise WrongSetting(
                f"RETENTION is {config.RETENTION!r}: give a PostgreSQL interval with its unit, not negative, "
                "such as '7 days'"
            )
    check_version(source, "source")
    run_settings("source", config.SOURCE_DATABASE_URL, source, SESSION)
    read_raw(source)


def read_raw(source: Connection) -> None:
    """Let PostgreSQL send the log's texts as it has stored them, where it may have stored bytes that are no text.

    PostgreSQL would refuse the whole page for one such byte. Here it becomes a lone surrogate, which no message can
    hold: publish() sets that change aside. UTF8 is checked when it is stored; the encodings of several bytes are left
    to PostgreSQL, because Python does not convert all of them alike.
    """
    encoding = source.info.parameter_status("server_encoding") or ""
    if not encoding.startswith(RAW):
        return
    codec = "utf_8" if encoding == "SQL_ASCII" else encodings[encoding]
    encodings["SQLASCII"] = "latin_1"  # psycopg2's: each byte becomes a character
    source.set_client_encoding("SQL_ASCII")

    def decode(text: Any, _cursor: Any) -> str | None:
        return None if text is None else text.encode("latin_1").decode(codec, "surrogateescape")

    register_type(new_type((TEXT, VARCHAR), "TEXT_OF_THE_LOG", decode), source)


@metrics.POLL_DURATION.timed
def read_page(source: Connection, position: Position, page_size: int) -> Page:
    """Return the late rows, at or below the offset, and the rows beyond it."""
    values = {"last_offset": position.last_offset, "snapshot": position.snapshot, "page_size": page_size}
    with source.cursor() as cursor:
        cursor.execute(POLL, values)
        (_, _, snapshot, drawn, changed_at, *_), *rows = cursor.fetchall()
    # Not by PostgreSQL: where there are no late rows they are in order already, and Python sees that at once.
    changes = sorted((Change(*row) for row in rows), key=attrgetter("cdc_id"))
    too_many_late = len(changes) > page_size and changes[page_size].cdc_id <= position.last_offset
    metrics.found_unpublished(len(changes), len(changes) >= page_size, changed_at)
    stamp = changed_at if changes and changes[0].cdc_id > position.last_offset else None
    return Page(changes, snapshot, int(drawn or 0), too_many_late, stamp)


def late_pages(source: Connection, position: Position, page_size: int) -> Iterator[Page]:
    """Yield all late rows of one snapshot in bounded pages. There can be millions: lines tell of them."""
    count, reported = 0, time.monotonic()
    with source.cursor() as cursor:
        cursor.execute(LATE_CURSOR, {"last_offset": position.last_offset, "snapshot": position.snapshot})
        ((snapshot,),) = cursor.fetchall()
        while True:
            cursor.execute(LATE_PAGE, {"page_size": page_size})
            rows = cursor.fetchall()
            if not rows:
                break
            yield Page([Change(*row) for row in rows], snapshot)
            count += len(rows)
            if time.monotonic() - reported > LINE_EVERY:
                reported = time.monotonic()
                log.info("%s late rows published so far", f"{count:,}", extra={"count": count})
        cursor.execute("COMMIT")


def count_unpublished(source: Connection, position: Position) -> int:
    """Return about how many rows are beyond the offset."""
    with source.cursor() as cursor:
        cursor.execute(COUNT_UNPUBLISHED, {"last_offset": position.last_offset})
        ((count, changed_at),) = cursor.fetchall()
    metrics.found_unpublished(count or 0, False, changed_at)
    return count or 0


@dataclass
class Pruner:
    """Deletes published rows once they are older than RETENTION, in small batches so that writers hardly notice."""

    source: Connection
    pruned: int = 0  # the log offset up to which rows have been deleted

    def prune(self, position: Position) -> int:
        """Delete one batch; returns how many rows it had."""
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
            log.debug("pruned %d rows up to log offset %d", count, newest, extra={"count": count, "log_offset": newest})
        return int(count)
