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
# The log came here by dump and restore: its txids, and the saved snapshot, count another server's transactions. With
# the lock held, all that is in the table is committed. What the saved snapshot calls late gets this transaction's
# txid, a floor that the new snapshot does not show. What could look late ever after gets a frozen one.
REBASE = f"""
BEGIN;
LOCK TABLE {SCHEMA}.emp_cdc IN SHARE ROW EXCLUSIVE MODE;
UPDATE {SCHEMA}.emp_cdc SET txid = CASE WHEN late THEN pg_current_xact_id() ELSE '3' END
FROM (SELECT change.cdc_id, NOT pg_visible_in_snapshot(txid, snapshot) AND change.cdc_id <= last_offset AS late
      FROM {SCHEMA}.emp_cdc AS change, {SCHEMA}.cdc_position) AS restored
WHERE emp_cdc.cdc_id = restored.cdc_id AND (late OR txid >= pg_current_xact_id());
UPDATE {SCHEMA}.cdc_position SET system_identifier = (SELECT system_identifier FROM pg_control_system()),
    snapshot = format('%1$s:%1$s:', pg_current_xact_id())::pg_snapshot;
COMMIT
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
            cursor.execute(REBASE)
            log.warning("the log was restored from another server: position rebased, nothing is lost; going on")
            return load_position(source)
    return Position(last_offset, snapshot)


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
