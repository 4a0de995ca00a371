"""How far the producer has come: load, save, rebase."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass

from config import SCHEMA

import psycopg2
from psycopg2.extensions import connection as Connection

log = logging.getLogger(__name__)

EVERY = 0.2  # seconds between two saves
SAVE = f"""
UPDATE {SCHEMA}.cdc_position SET last_offset = %(last_offset)s, snapshot = %(snapshot)s, saved_at = clock_timestamp()
WHERE last_offset = %(saved_offset)s
"""
# By the place of the row's newest version. A search, also by the key, reads all dead versions, which an old snapshot
# (pg_dump, a report) keeps. The row is elsewhere if somebody else has written it, or VACUUM FULL.
AT_PLACE, RETURN_PLACE = "AND ctid = %(place)s::tid", "RETURNING ctid"
LOAD = f"""
SELECT last_offset, snapshot::text,
       c.system_identifier <> p.system_identifier
       OR pg_snapshot_xmax(snapshot) > pg_snapshot_xmax(pg_current_snapshot())
FROM {SCHEMA}.cdc_position AS p, pg_control_system() AS c
"""
# The log came here by dump and restore: its txids, and the saved snapshot, count another server's transactions. No step
# of the rebase takes a lock that a writer waits for. A crash before the last step leaves the position as it was.
#
# First, step by step, the rows whose txid this server has yet to reach: they would look late ever after. No row of a
# writer here can have such a txid and be visible. What the saved snapshot calls late is left for the last step.
STEP = 10_000  # rows
FREEZE = f"""
WITH step AS (
    SELECT cdc_id, txid FROM {SCHEMA}.emp_cdc WHERE cdc_id > %(done)s ORDER BY cdc_id LIMIT %(step)s
), frozen AS (
    UPDATE {SCHEMA}.emp_cdc AS change SET txid = '3'
    FROM step
    WHERE change.cdc_id = step.cdc_id AND step.txid >= pg_snapshot_xmax(pg_current_snapshot())
      AND (step.cdc_id > %(last_offset)s OR pg_visible_in_snapshot(step.txid, %(snapshot)s))
)
SELECT max(cdc_id) FROM step
"""
# Then the late rows and the position at once. They get this transaction's txid, which the new snapshot does not show.
# It shows all that is below, and rows of writers here need not care: they are beyond the offset.
REBASE = f"""
WITH rebased AS (
    UPDATE {SCHEMA}.cdc_position AS position
    SET system_identifier = (SELECT system_identifier FROM pg_control_system()),
        snapshot = format('%1$s:%1$s:', pg_current_xact_id())::pg_snapshot
    FROM {SCHEMA}.cdc_position AS saved
    RETURNING saved.last_offset, saved.snapshot
)
UPDATE {SCHEMA}.emp_cdc SET txid = pg_current_xact_id()
FROM rebased WHERE cdc_id <= last_offset AND NOT pg_visible_in_snapshot(txid, snapshot)
"""


@dataclass(frozen=True)
class Position:
    """Every row with cdc_id <= last_offset that is visible in snapshot has been published."""

    last_offset: int
    snapshot: str


class PositionLost(Exception):
    """The position in the source is not the one we saved: someone moved it, or a backup was restored."""


def load_position(source: Connection) -> Position:
    """Return where to go on. If the log was restored from another server's dump, rebase it first."""
    with source.cursor() as cursor:
        cursor.execute(LOAD)
        row = cursor.fetchone()
        if row is None:
            raise psycopg2.errors.UndefinedTable("cdc_position is empty")
        last_offset, snapshot, restored = row
        if restored:
            rebase(source, Position(last_offset, snapshot))
            log.warning("the log was restored from another server: position rebased, nothing is lost; going on")
            return load_position(source)
    return Position(last_offset, snapshot)


def rebase(source: Connection, restored: Position) -> None:
    """Make a log and a position that were restored from another server's dump count this server's transactions."""
    with source.cursor() as cursor:
        done: int | None = 0
        while done is not None:
            cursor.execute(
                FREEZE,
                {"done": done, "step": STEP, "last_offset": restored.last_offset, "snapshot": restored.snapshot},
            )
            ((done,),) = cursor.fetchall()
        cursor.execute(REBASE)


@dataclass
class Saver:
    """Where the producer stands. It is saved some times a second at most: a lost save only publishes again."""

    source: Connection
    position: Position
    unsaved: bool = False  # whether something was published since the last save
    next_save: float = 0.0  # the earliest (time.monotonic)
    place: str | None = None  # of the saved row

    def __post_init__(self) -> None:
        self.saved = self.position

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Save, unless the source is what failed."""
        if not isinstance(error, (psycopg2.Error, PositionLost)):
            self.save()

    def advance(self, position: Position, published: bool = True) -> None:
        """Go on to a position. Where nothing was published on the way, only a new offset is saved.

        Such an offset skips an open transaction. The save has a later txid. Only with one that has ended can the next
        snapshots tell the open transaction from those to come, so that a poll does not wade through it by its txid.
        """
        self.unsaved = self.unsaved or published or position.last_offset > self.position.last_offset
        self.position = position

    def restart_at(self, position: Position) -> None:
        """Go on from a position that has been saved by other means."""
        self.position, self.saved, self.unsaved = position, position, False

    @property
    def due(self) -> float:
        """When to save (time.monotonic)."""
        return self.next_save if self.unsaved else math.inf

    def save_if_due(self) -> None:
        if time.monotonic() >= self.due:
            self.save()

    def save(self) -> None:
        """Save the position now. Raises PositionLost if the one that was saved before is not there."""
        if self.unsaved:
            self.place = save(self.source, self.saved, self.position, self.place)
            self.saved, self.unsaved, self.next_save = self.position, False, time.monotonic() + EVERY


def save(source: Connection, saved: Position, position: Position, place: str | None) -> str:
    """Save a position, but only over the one saved before. Returns the row's place. Raises PositionLost."""
    values = {**vars(position), "saved_offset": saved.last_offset, "place": place}
    with source.cursor() as cursor:
        for where in (AT_PLACE, "") if place else ("",):
            cursor.execute(f"{SAVE} {where} {RETURN_PLACE}", values)
            if found := cursor.fetchone():
                return str(found[0])
    raise PositionLost("the position in the source was moved by someone else; reading it again")
