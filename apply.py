"""Applying records to the destination: the newest of each employee, through the gate, in one transaction.

Why it is done as it is: docs/design.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date

import psycopg2
from psycopg2.extensions import connection as Connection

from employee import CDC_COLUMNS, EMPLOYEE_COLUMNS, Record, to_json

COLUMNS = ", ".join(EMPLOYEE_COLUMNS)
# `before`: what was applied to the employee, NULL if the gate does not know it. Those are plain INSERTs, the cheapest
# way; if another consumer inserts the same key meanwhile, or the table had it before the pipeline, the statement fails,
# and KNOWN goes before it the second time. The others pass where theirs is the newer record: the UPDATE waits for
# whoever else has the row, and compares again. Known keys go by emp_id and so do new ones: two consumers that apply the
# same employees, as after a rebalance, seldom deadlock, and the one that PostgreSQL then ends tries again.
PREPARE = f"""
PREPARE apply (bigint[], int[], text[], text[], date[], text[], int[], text[]) AS
WITH record AS MATERIALIZED (
    SELECT applied.cdc_id AS before, incoming.*
    FROM unnest($1, $2, $3, $4, $5, $6, $7, $8) AS incoming ({", ".join(CDC_COLUMNS)})
    LEFT JOIN cdc_applied AS applied ON applied.emp_id = ANY (ARRAY[incoming.emp_id])
    ORDER BY incoming.emp_id
), first AS (
    INSERT INTO cdc_applied (emp_id, cdc_id) SELECT emp_id, cdc_id FROM record WHERE before IS NULL
), newer AS (
    UPDATE cdc_applied AS applied SET cdc_id = record.cdc_id FROM record
    WHERE applied.emp_id = ANY (ARRAY[record.emp_id])
    AND record.before < record.cdc_id AND applied.cdc_id < record.cdc_id
    RETURNING record.*
), inserted AS (
    INSERT INTO employees ({COLUMNS}) OVERRIDING SYSTEM VALUE
    SELECT {COLUMNS} FROM record WHERE before IS NULL AND action <> 'DELETE'
), upserted AS (
    INSERT INTO employees ({COLUMNS}) OVERRIDING SYSTEM VALUE
    SELECT {COLUMNS} FROM newer WHERE action <> 'DELETE'
    ON CONFLICT (emp_id) DO UPDATE
    SET {", ".join(f"{column} = excluded.{column}" for column in EMPLOYEE_COLUMNS[1:])}
)
SELECT count(*), array_agg(emp_id) FILTER (WHERE action = 'DELETE')
FROM (SELECT emp_id, action FROM record WHERE before IS NULL UNION ALL SELECT emp_id, action FROM newer) AS passed
"""
APPLY = f"EXECUTE apply ({', '.join(f'%({column})s' for column in CDC_COLUMNS)})"
KNOWN = """
INSERT INTO cdc_applied (emp_id, cdc_id) SELECT emp_id, 0 FROM unnest(%(emp_id)s::int[]) AS emp_id ORDER BY emp_id
ON CONFLICT DO NOTHING;
"""
# A statement of its own, so that its snapshot is taken after the gate's locks are held: inside APPLY, a DELETE that
# waited for another consumer's INSERT would not see the row it must delete.
DELETE = "DELETE FROM employees WHERE emp_id = ANY (%(deleted)s)"

# Planned once, as planning takes longer than applying a single record. Each key is looked up by its index, in the order
# of the records, whatever the statistics said of a table that grows since. `= ANY (ARRAY[…])` is for that, too: with a
# plain `=` the planner may read the whole index instead, for its order, and does where it takes the gate for empty.
SESSION = f"""
SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off;
SET plan_cache_mode = force_generic_plan;
SET idle_in_transaction_session_timeout = '5s';  -- a stopped process must not keep its locks
{PREPARE}
"""

# Errors of the data; every other error of PostgreSQL is an outage, to be waited out.
DATA_ERRORS = (
    psycopg2.DataError,
    psycopg2.IntegrityError,
    psycopg2.errors.RaiseException,
    psycopg2.errors.WithCheckOptionViolation,
)


def newest(records: Iterable[Record]) -> Iterable[Record]:
    """Return the newest record of each employee."""
    found: dict[int, Record] = {}
    for record in records:
        keep_newest(found, record)
    return found.values()


def keep_newest(found: dict[int, Record], record: Record) -> None:
    """Put a record into found, by emp_id, unless a newer one is there."""
    other = found.setdefault(record.emp_id, record)
    if other.cdc_id < record.cdc_id:
        found[record.emp_id] = record


def arrays(records: Iterable[Record]) -> dict[str, str]:
    """Return the columns of records as PostgreSQL arrays."""
    records = list(records)
    return {column: array([getattr(record, column) for record in records]) for column in CDC_COLUMNS}


def array(column: list[str | int | date | None]) -> str:
    """Return values as a PostgreSQL array. JSON writes them as an array does, but for what it escapes."""
    text = to_json(column).decode()
    if "\\" in text:
        text = "[" + ",".join(map(element, column)) + "]"
    return "{" + text[1:-1] + "}"


def element(value: str | int | date | None) -> str:
    if value is None:
        return "null"
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def apply(destination: Connection, records: Iterable[Record]) -> int:
    """Apply records, one for each employee, in one transaction. Returns how many employees changed; the rest was stale.

    Raises one of DATA_ERRORS for records that the destination refuses.
    """
    columns = arrays(records)
    try:
        return run(destination, APPLY, columns)
    except psycopg2.errors.UniqueViolation:
        return run(destination, KNOWN + APPLY, columns)


def run(destination: Connection, statement: str, columns: dict[str, str]) -> int:
    # One round trip, two when something is deleted. BEGIN and COMMIT only then: what is sent at once is a transaction.
    deletes = "DELETE" in columns["action"]
    with destination.cursor() as cursor:
        try:
            cursor.execute(("BEGIN;" if deletes else "") + statement, columns)
            ((changed, deleted),) = cursor.fetchall()
            if deletes:
                cursor.execute(f"{DELETE}; COMMIT" if deleted else "COMMIT", {"deleted": deleted})
        except DATA_ERRORS:
            if deletes:
                cursor.execute("ROLLBACK")
            raise
    return int(changed)
