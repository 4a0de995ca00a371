"""The last comparison: verify.py stores when it found both tables equal, status shows how long ago that was."""

from __future__ import annotations

from typing import Any

from config import SCHEMA

import psycopg2
from psycopg2.extensions import connection as Connection

SAVE = f"""
INSERT INTO {SCHEMA}.cdc_verified (compared) VALUES (%(compared)s)
ON CONFLICT (only_row) DO UPDATE SET compared = excluded.compared, verified_at = excluded.verified_at
"""
LOAD = f"SELECT compared, extract(epoch FROM clock_timestamp() - verified_at)::float FROM {SCHEMA}.cdc_verified"


def save(destination: Connection, compared: int) -> str:
    """Store that so many rows are equal now. Returns why that cannot be stored, else nothing."""
    return run(destination, SAVE, {"compared": compared})[1]


def load(destination: Connection) -> tuple[tuple[int, float] | None, str]:
    """Return how many rows were equal and how many seconds ago, or None if they never were, or why nobody knows."""
    rows, reason = run(destination, LOAD)
    return (rows[0] if rows else None), reason


def run(destination: Connection, sql: str, values: Any = None) -> tuple[list[Any], str]:
    """Run a statement. A database that was set up before there was the table, and a role without a right, are enough
    for everything else, and so no error."""
    try:
        with destination.cursor() as cursor:
            cursor.execute(sql, values)
            return (cursor.fetchall() if cursor.description else []), ""
    except psycopg2.errors.UndefinedTable:
        return [], "there is no table cdc_verified; run python db_setup.py"
    except psycopg2.errors.InsufficientPrivilege:
        return [], "this role may not use the table cdc_verified"
