"""How far the producer has come: load, save, rebase."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from config import SCHEMA

import psycopg2
from psycopg2.extensions import connection as Connection

log = logging.getLogger(__name__)

SAVE = f"""
UPDATE {SCHEMA}.cdc_position SET last_offset = %(last_offset)s, snapshot = %(snapshot)s, saved_at = clock_timestamp()
WHERE last_offset = %(saved_offset)s
"""
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


def save(source: Connection, saved: Position, position: Position) -> Position:
    """Save a position, but only over the one saved before. Raises PositionLost if that is not there."""
    values = {
        "last_offset": position.last_offset,
        "snapshot": position.snapshot,
        "saved_offset": saved.last_offset,
    }
    with source.cursor() as cursor:
        cursor.execute(SAVE, values)
        if cursor.rowcount != 1:
            raise PositionLost("the position in the source was moved by someone else; reading it again")
    return position
