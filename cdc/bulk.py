"""Apply a large batch by COPY, in one transaction: half of what the statement of cdc/apply.py costs for new employees.

The gate decides as it does there. What it knows already is looked up first. Employees that it knows are applied by a
leaner statement, as none of them is new; the others go into `employees` and into the gate by COPY.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from io import RawIOBase
from itertools import islice
from operator import attrgetter
from typing import Any

from cdc import metrics
from cdc.apply import ARRAYS, RESULT, TRY_ALL, UPSERTED, Refused, count_applied, run, to_array, to_arrays
from cdc.apply import SESSION as STATEMENT_SESSION
from cdc.apply import apply as apply_by_statement
from cdc.message import Record, to_json_lines
from cdc.waiting import waiter
from config import SCHEMA
from employee import ACTIONS, CDC_COLUMNS, EMPLOYEE_COLUMNS, MAX_LENGTH

import psycopg2
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

LARGE = 2_000  # employees: from there on it is faster
LINES = 500  # made at a time: each escape in them takes a hundred bytes meanwhile

# As in cdc/apply.py, without what is for unknown employees: the UPDATE waits for whoever else has the row, and compares
# again.
APPLY_KNOWN = f"""
PREPARE apply_known ({", ".join(ARRAYS)}) AS
WITH newer AS (
    UPDATE {SCHEMA}.cdc_applied AS applied SET cdc_id = record.cdc_id
    FROM unnest($1, $2, $3, $4, $5, $6, $7, $8) AS record ({", ".join(CDC_COLUMNS)})
    WHERE applied.emp_id = ANY (ARRAY[record.emp_id]) AND applied.cdc_id < record.cdc_id
    RETURNING record.*
), {UPSERTED}
SELECT {RESULT} FROM newer
"""
SESSION = f"{STATEMENT_SESSION}; {APPLY_KNOWN}"
TRY_KNOWN = TRY_ALL.replace("{register}", "").replace("EXECUTE apply", "EXECUTE apply_known")

# The first lock is for what the look-up finds: none of it may go meanwhile (sql/trim.sql). The second one is for the
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
# Whether COPY keeps secrets. PostgreSQL logs the row that it refuses in a COPY, unless it is for a key that is there
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
PASS_IDS = "SELECT set_config('cdc.emp_id', %(ids)s, true)"
IDS = "current_setting('cdc.emp_id')::int[]"
LOOK_UP = f"SELECT emp_id, cdc_id FROM {SCHEMA}.cdc_applied WHERE emp_id = ANY ({IDS})"
COPY = "COPY {} ({}) FROM STDIN (FORMAT csv, ESCAPE E'\\\\', NULL 'null')"  # nearly JSON: see to_csv
COPY_TO_GATE = COPY.format(f"{SCHEMA}.cdc_applied", "emp_id, cdc_id")
COPY_TO_EMPLOYEES = COPY.format(f"{SCHEMA}.employees", ", ".join(EMPLOYEE_COLUMNS))
# A statement of its own, as in cdc/apply.py: its snapshot is taken after the gate's locks are held.
DELETE = f"DELETE FROM {SCHEMA}.employees WHERE emp_id = ANY ({IDS})"

OF_GATE, OF_EMPLOYEES = attrgetter("emp_id", "cdc_id"), attrgetter(*EMPLOYEE_COLUMNS)


@metrics.APPLY_DURATION.timed
def apply(destination: Connection, records: Collection[Record]) -> int:
    """Apply records, one for each employee, in one transaction. Returns how many employees changed; the rest was stale.

    Raises Refused if the records are refused, or take too long for somebody; psycopg2.Error in an outage.
    """
    passed = try_bulk(destination, records) if len(records) >= LARGE else None
    return apply_by_statement(destination, records) if passed is None else count_applied(passed, len(records))


def try_bulk(destination: Connection, records: Collection[Record]) -> list[int] | None:
    """Apply records, one for each employee, in one transaction. Returns how many of each action passed the gate.

    None, and nothing is applied, where COPY cannot be used or anything was refused. Raises psycopg2.Error if the
    connection is lost, Stopped.
    """
    ordered = sorted(records, key=attrgetter("emp_id"))
    try:
        return waiter.apart(destination, lambda: look_up_and_copy(destination, ordered))
    except (Refused, psycopg2.Error, RuntimeError):  # the last one: the system has no thread left
        if destination.closed:
            raise
    with destination.cursor() as cursor:
        cursor.execute("ROLLBACK")
    return None


def look_up_and_copy(destination: Connection, records: list[Record]) -> list[int]:
    """Apply records, which are in the order of emp_id: look them up, then the known employees, then the new ones.

    Returns how many of each action passed the gate. Raises Refused where COPY cannot be used.
    """
    with destination.cursor() as cursor:
        cursor.execute(BEGIN)
        cursor.execute(POSSIBLE, {"specified": SPECIFIED})
        if cursor.fetchall() != [(True,)]:
            raise Refused("employees is not the specified table")
        pass_ids(cursor, records)
        cursor.execute(LOOK_UP)
        applied: dict[int, int] = dict(cursor.fetchall())
        new = [record for record in records if record.emp_id not in applied]
        known = [record for record in records if applied.get(record.emp_id, record.cdc_id) < record.cdc_id]
        # In the order in which the statement takes its locks: known employees, then new ones, the gate last.
        passed = apply_known(destination, known)
        there = [record for record in new if record.action != "DELETE"]
        if there:
            copy(cursor, COPY_TO_EMPLOYEES, map(OF_EMPLOYEES, there))
        if new:
            copy(cursor, COPY_TO_GATE, map(OF_GATE, new))
        if len(there) < len(new):
            pass_ids(cursor, [record for record in new if record.action == "DELETE"])
            cursor.execute(DELETE)
        cursor.execute("COMMIT")
    passed.update(record.action for record in new)
    return [passed[action] for action in ACTIONS]


def pass_ids(cursor: Cursor, records: list[Record]) -> None:
    cursor.execute(PASS_IDS, {"ids": to_array([record.emp_id for record in records])})


def apply_known(destination: Connection, records: list[Record]) -> Counter[str]:
    """Apply records of employees that the gate knows. Returns how many of each action passed."""
    if not records:
        return Counter()
    passed, *error = run(destination, TRY_KNOWN, to_arrays(records))
    if error:
        raise Refused(error[1])
    return Counter(dict(zip(ACTIONS, passed, strict=True)))


class Lines(RawIOBase):
    """Rows as COPY reads them, made when it asks for more: the server parses the last ones meanwhile."""

    def __init__(self, rows: Iterator[tuple[Any, ...]]) -> None:
        self.rows = rows

    def read(self, size: int = -1, /) -> bytes:
        return to_csv(list(islice(self.rows, LINES)))


def copy(cursor: Cursor, statement: str, rows: Iterator[tuple[Any, ...]]) -> None:
    hook = sys.excepthook
    # If the session ends in a COPY, psycopg2 2.9 raises twice, and has Python print the first error, with a row in it.
    sys.excepthook = lambda *_: None
    try:
        cursor.copy_expert(statement, Lines(rows))
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
