"""Apply a large batch by COPY: half of what the statement of cdc/apply.py costs for new employees.

The gate decides as it does there. An INSERT is taken for the first change of its employee. Of the other changes those
pass that are newer than what the gate knows of their employees. Whatever does not pass is taken for new to the gate,
and copied into it. If one of them is not, the gate's key refuses the COPY, and the batch begins again with a look-up of
them all.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from io import RawIOBase
from itertools import islice
from operator import attrgetter
from typing import Any

from cdc import metrics
from cdc.apply import COLUMNS, TYPES, Refused, count_applied, incoming, pass_settings, to_arrays
from cdc.apply import SESSION as STATEMENT_SESSION
from cdc.apply import apply as apply_by_statement
from cdc.message import Record, to_json_lines
from cdc.waiting import waiter
from config import SCHEMA
from employee import ACTIONS, EMPLOYEE_COLUMNS, MAX_LENGTH

import psycopg2
from psycopg2.errors import UniqueViolation
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

LARGE = 2_000  # employees: from there on it is faster
AS_ARRAYS = 4_000  # employees whose rows are sent as arrays at a time: in our memory their text is there nine times
LOOK_UPS = 100  # batches that begin with a look-up after one that needed it
LINES = 500  # made at a time: each escape in them takes a hundred bytes meanwhile
PORTIONS = 4  # of so many lines, sent at a time: each time the thread has to wait for Python's lock

# Employees that the gate knows. One scan of the index finds them all; looking up each, as in cdc/apply.py, costs twice
# as much. The UPDATE waits for whoever else has the row, and compares again once it has it. It returns who has passed.
PASS_GATE = f"""
PREPARE pass_gate (bigint[], int[]) AS
UPDATE {SCHEMA}.cdc_applied AS applied SET cdc_id = record.cdc_id
FROM unnest($1, $2) AS record (cdc_id, emp_id)
WHERE applied.emp_id = ANY ($2) AND applied.emp_id = record.emp_id AND applied.cdc_id < record.cdc_id
RETURNING applied.emp_id
"""
# Rows that are expected to be there. Those that are not are inserted. ONLY: a child table's rows are not ours, and it
# may have constraints that refuse them.
PUT_ROWS = f"""
PREPARE put_rows ({", ".join(TYPES[column] for column in EMPLOYEE_COLUMNS)}) AS
WITH record AS MATERIALIZED (
    SELECT * FROM unnest($1, $2, $3, $4, $5, $6) AS record ({COLUMNS})
), updated AS (
    UPDATE ONLY {SCHEMA}.employees SET {", ".join(f"{column} = record.{column}" for column in EMPLOYEE_COLUMNS[1:])}
    FROM record WHERE employees.emp_id = ANY ($1) AND employees.emp_id = record.emp_id
    RETURNING employees.emp_id
)
INSERT INTO {SCHEMA}.employees ({COLUMNS}) OVERRIDING SYSTEM VALUE
SELECT record.* FROM record LEFT JOIN updated USING (emp_id) WHERE updated.emp_id IS NULL
"""
GATE_COLUMNS = ("cdc_id", "emp_id")
SESSION = f"{STATEMENT_SESSION}; {PASS_GATE}; {PUT_ROWS}"
# For the rest of the transaction. The session allows nested loops only, for the statement of cdc/apply.py. A scan by a
# bitmap that work_mem cannot hold would parse the array of keys again for each row: minutes instead of milliseconds.
ONE_SCAN = "SET LOCAL enable_hashjoin = on; SET LOCAL enable_nestloop = off; SET LOCAL enable_bitmapscan = off"

# The first lock is for what is found in the gate: none of it may go meanwhile (sql/trim.sql). The second one is for the
# shape of the table. A wait for somebody else's row ends soon, and is the statement's then: before PostgreSQL looks for
# deadlocks, because it logs the statements of both sides.
BEGIN = f"""
BEGIN;
SELECT set_config('lock_timeout', greatest(1, least(500, setting::int / 2)) || 'ms', true)
FROM pg_settings WHERE name = 'deadlock_timeout';
LOCK TABLE {SCHEMA}.cdc_applied, {SCHEMA}.employees IN ROW EXCLUSIVE MODE
"""
TEXT = f"character varying({MAX_LENGTH})"
SPECIFIED = [f"city {TEXT}", "dob date", "emp_id integer not null", f"first_name {TEXT}", f"last_name {TEXT}"]
SPECIFIED += ["salary integer"]
# Whether COPY and put_rows keep secrets. PostgreSQL logs the row that it refuses, unless it is for a key that is there
# already. So nothing else may be there to refuse: the table is the specified one, and has no constraint, index or
# trigger but its primary key.
POSSIBLE = f"""
SELECT relkind = 'r' AND relchecks = 0
       AND NOT (relhasrules OR relispartition OR relrowsecurity)
       AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = employees.oid)
       AND ARRAY['emp_id'] = (
           SELECT array_agg(CASE WHEN indisprimary AND indimmediate AND indnatts = 1 THEN attname::text END)
           FROM pg_index LEFT JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]
           WHERE indrelid = employees.oid)
       AND %(specified)s = (
           SELECT array_agg(attname || ' ' || format_type(atttypid, atttypmod)
                            || CASE WHEN attnotnull THEN ' not null' ELSE '' END ORDER BY attname)
           FROM pg_attribute WHERE attrelid = employees.oid AND attnum > 0 AND NOT attisdropped)
       AND current_setting('server_encoding') = 'UTF8'
FROM pg_class AS employees WHERE oid = '{SCHEMA}.employees'::regclass
"""
IDS = incoming(["emp_id"])
LOOK_UP = f"SELECT emp_id, cdc_id FROM {SCHEMA}.cdc_applied WHERE emp_id = ANY ({IDS})"
COPY = "COPY {} ({}) FROM STDIN (FORMAT csv, ESCAPE E'\\\\', NULL 'null')"  # nearly JSON: see to_csv
# A statement of its own, as in cdc/apply.py: its snapshot is taken after the gate's locks are held.
DELETE = f"DELETE FROM ONLY {SCHEMA}.employees WHERE emp_id = ANY ({IDS})"


class NotNew(Refused):
    """The gate knows an employee that was taken for new to it."""


@dataclass
class LookUps:
    """How many of the next large batches begin with a look-up. Each one that needs it has others follow.

    They would need it, too, where the topic is read again, or employees come back who were deleted. Without a look-up
    each of them would leave an error in the server's log.
    """

    left: int = 0


look_ups = LookUps()


@metrics.APPLY_DURATION.timed
def apply(destination: Connection, records: Collection[Record]) -> int:
    """Apply records, one for each employee. Returns how many employees changed; the rest was stale.

    Raises Refused if records are refused, or take too long for somebody; psycopg2.Error in an outage. Some of the
    others may be applied then.
    """
    if len(records) < LARGE:
        return apply_by_statement(destination, records)
    if (passed := try_bulk(destination, records)) is not None:
        return count_applied(passed, len(records))
    return sum(apply_by_statement(destination, part) for part in parts(list(records)))


def try_bulk(destination: Connection, records: Collection[Record]) -> list[int] | None:
    """Apply records, one for each employee, in one transaction. Returns how many of each action passed the gate.

    None, and nothing is applied, where COPY cannot be used or anything was refused. Raises psycopg2.Error if the
    connection is lost, Stopped.
    """
    ordered = sorted(records, key=attrgetter("emp_id"))
    while True:
        look_up = look_ups.left > 0
        try:
            return waiter.apart(destination, partial(pass_and_copy, destination, ordered, look_up))
        except NotNew:
            again = not look_up  # another consumer may have been faster than the look-up
        except (Refused, psycopg2.Error, RuntimeError):  # the last one: the system has no thread left
            if destination.closed:
                raise
            again = False
        with destination.cursor() as cursor:
            cursor.execute("ROLLBACK")
        if not again:
            return None
        look_ups.left = LOOK_UPS


def pass_and_copy(destination: Connection, records: list[Record], look_up: bool) -> list[int]:
    """Apply records, which are in the order of emp_id. Returns how many of each action passed the gate.

    look_up: leave out those that are not newer than what the gate knows, and take INSERTs of employees that it knows
    for updates. Else NotNew is raised where there are any. Raises Refused where COPY cannot be used.
    """
    with destination.cursor() as cursor:
        cursor.execute(f"{BEGIN}; {ONE_SCAN}; {POSSIBLE}", {"specified": SPECIFIED})
        if cursor.fetchall() != [(True,)]:
            raise Refused("employees is not the specified table")
        applied = find_applied(cursor, records) if look_up else {}
        passed = [r for r in records if applied.get(r.emp_id, 0) < r.cdc_id] if look_up else records
        inserted, updated, deleted = by_action = group(passed)
        # Employees who come back, or whose INSERT was applied before: their rows may be there, and need not be.
        known_before = [record for record in inserted if record.emp_id in applied] if applied else []
        if known_before:
            inserted = [record for record in inserted if record.emp_id not in applied]
            updated = sorted(updated + known_before, key=attrgetter("emp_id"))
        asked = updated + deleted
        known = pass_gate(cursor, asked)
        new = [record for record in asked if record.emp_id not in known]
        # First the gate: a refusal has cost little then, and whoever holds its keys is alone at these employees.
        try:
            copy(cursor, "cdc_applied", GATE_COLUMNS, inserted + new)
        except UniqueViolation:
            raise NotNew("an employee is known to the gate") from None
        put_rows(cursor, updated)
        copy(cursor, "employees", EMPLOYEE_COLUMNS, inserted)
        pass_columns(cursor, deleted, ["emp_id"])
        cursor.execute(f"{DELETE}; COMMIT")
    if look_up:
        needed = known_before or len(passed) < len(records)
        look_ups.left = LOOK_UPS if needed else look_ups.left - 1
    return list(map(len, by_action))


def group(records: list[Record]) -> tuple[list[Record], ...]:
    """Return the records of each action, in their order."""
    by_action: dict[str, list[Record]] = {action: [] for action in ACTIONS}
    for record in records:
        by_action[record.action].append(record)
    return tuple(by_action.values())


def find_applied(cursor: Cursor, records: list[Record]) -> dict[int, int]:
    """Return the cdc_id that was applied last to each of these employees that the gate knows."""
    pass_columns(cursor, records, ["emp_id"])
    cursor.execute(LOOK_UP)
    return dict(cursor.fetchall())


def parts(records: list[Record]) -> Iterator[list[Record]]:
    return (records[start : start + AS_ARRAYS] for start in range(0, len(records), AS_ARRAYS))


def pass_columns(cursor: Cursor, records: list[Record], columns: Collection[str]) -> None:
    """Give columns of records to the statements that follow, as settings of the transaction: see cdc/apply.py."""
    cursor.execute(pass_settings(columns), to_arrays(records, columns))


def pass_gate(cursor: Cursor, records: list[Record]) -> set[int]:
    """Have the gate know those records that are newer than what it knows of their employees. Returns these emp_ids."""
    if not records:
        return set()
    pass_columns(cursor, records, GATE_COLUMNS)
    cursor.execute(f"EXECUTE pass_gate ({incoming(GATE_COLUMNS)})")
    return {emp_id for (emp_id,) in cursor.fetchall()}


def put_rows(cursor: Cursor, updated: list[Record]) -> None:
    """Update the rows of these records; insert those that are not there."""
    for part in parts(updated):
        pass_columns(cursor, part, EMPLOYEE_COLUMNS)
        cursor.execute(f"EXECUTE put_rows ({incoming(EMPLOYEE_COLUMNS)})")


class Lines(RawIOBase):
    """Rows as COPY reads them, made when it asks for more: the server parses the last ones meanwhile."""

    def __init__(self, rows: Iterator[tuple[Any, ...]]) -> None:
        self.rows = rows

    def read(self, size: int = -1, /) -> bytes:
        return b"".join(to_csv(list(islice(self.rows, LINES))) for _ in range(PORTIONS))


def copy(cursor: Cursor, table: str, columns: Collection[str], records: list[Record]) -> None:
    if not records:
        return
    statement = COPY.format(f"{SCHEMA}.{table}", ", ".join(columns))
    hook = sys.excepthook
    # If the session ends in a COPY, psycopg2 2.9 raises twice, and has Python print the first error, with a row in it.
    sys.excepthook = lambda *_: None
    try:
        cursor.copy_expert(statement, Lines(map(attrgetter(*columns), records)))
    except psycopg2.Error:
        if cursor.connection.closed:
            raise psycopg2.OperationalError("connection closed in the middle of a COPY") from None
        raise
    finally:
        sys.excepthook = hook


# What JSON escapes and CSV does not; a quote and a backslash are escaped in both by a backslash.
ESCAPED = re.compile(rb'\\(?:(["\\])|u00(..)|(.))')
UNLIKE_CSV = re.compile(rb'\\[^"\\]')
CONTROLS = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t"}


def to_csv(rows: Iterable[tuple[Any, ...]]) -> bytes:
    """Return rows as COPY reads them: lines of JSON arrays without their brackets, and with fewer escapes."""
    text = to_json_lines(rows).replace(b"]\n[", b"\n")[1:-2]  # JSON has no line feed inside a value
    text = text + b"\n" if text else b""
    return ESCAPED.sub(unescape, text) if UNLIKE_CSV.search(text) else text


def unescape(match: re.Match[bytes]) -> bytes:
    same, code, letter = match.groups()
    if same:
        return match[0]
    return bytes.fromhex(code.decode()) if code else CONTROLS[letter]
