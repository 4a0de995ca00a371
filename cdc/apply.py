"""The statement that applies records through the gate, in one transaction.

The gate is the table cdc_applied: it holds the newest cdc_id that was applied to each employee, and lets a record pass
only if its cdc_id is higher. Why the statement is as it is: docs/design.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date

from cdc.message import Record, to_json
from config import SCHEMA
from employee import CDC_COLUMNS, EMPLOYEE_COLUMNS

import psycopg2
from psycopg2.extensions import connection as Connection

COLUMNS = ", ".join(EMPLOYEE_COLUMNS)
APPLY_STATEMENT = f"""
PREPARE apply (bigint[], int[], text[], text[], date[], text[], int[], text[]) AS
-- The records, with what was applied before: NULL where the gate does not know the employee. They go by emp_id, so
-- that two consumers with the same employees, as after a rebalance, seldom deadlock; the one that PostgreSQL then ends
-- tries again.
WITH record AS MATERIALIZED (
    SELECT applied.cdc_id AS before, incoming.*
    FROM unnest($1, $2, $3, $4, $5, $6, $7, $8) AS incoming ({", ".join(CDC_COLUMNS)})
    LEFT JOIN {SCHEMA}.cdc_applied AS applied ON applied.emp_id = ANY (ARRAY[incoming.emp_id])
    ORDER BY incoming.emp_id
-- Unknown employees: plain INSERTs, the cheapest way. If another consumer inserts the same key meanwhile, or the table
-- had it before the pipeline, the statement fails. REGISTER_KEYS goes before it the second time.
), first AS (
    INSERT INTO {SCHEMA}.cdc_applied (emp_id, cdc_id) SELECT emp_id, cdc_id FROM record WHERE before IS NULL
-- Known employees: the newer record passes. The UPDATE waits for whoever else has the row, and compares again.
), newer AS (
    UPDATE {SCHEMA}.cdc_applied AS applied SET cdc_id = record.cdc_id FROM record
    WHERE applied.emp_id = ANY (ARRAY[record.emp_id])
    AND record.before < record.cdc_id AND applied.cdc_id < record.cdc_id
    RETURNING record.*
), inserted AS (
    INSERT INTO {SCHEMA}.employees ({COLUMNS}) OVERRIDING SYSTEM VALUE
    SELECT {COLUMNS} FROM record WHERE before IS NULL AND action <> 'DELETE'
), upserted AS (
    INSERT INTO {SCHEMA}.employees ({COLUMNS}) OVERRIDING SYSTEM VALUE
    SELECT {COLUMNS} FROM newer WHERE action <> 'DELETE'
    ON CONFLICT (emp_id) DO UPDATE
    SET {", ".join(f"{column} = excluded.{column}" for column in EMPLOYEE_COLUMNS[1:])}
)
SELECT count(*), array_agg(emp_id) FILTER (WHERE action = 'DELETE')
FROM (SELECT emp_id, action FROM record WHERE before IS NULL UNION ALL SELECT emp_id, action FROM newer) AS passed
"""
APPLY = f"EXECUTE apply ({', '.join(f'%({column})s' for column in CDC_COLUMNS)})"
REGISTER_KEYS = f"""
INSERT INTO {SCHEMA}.cdc_applied (emp_id, cdc_id)
SELECT emp_id, 0 FROM unnest(%(emp_id)s::int[]) AS emp_id ORDER BY emp_id
ON CONFLICT DO NOTHING;
"""
# A statement of its own, so that its snapshot is taken after the gate's locks are held. Inside APPLY, a DELETE that
# waited for another consumer's INSERT would not see the row it must delete.
DELETE = f"DELETE FROM {SCHEMA}.employees WHERE emp_id = ANY (%(deleted)s)"

# Prepared once, because planning takes longer than applying a single record. Each key is looked up by its index, in the
# order of the records, whatever the statistics said of a table that grows since. `= ANY (ARRAY[…])` is for that, too:
# with a plain `=` the planner may read the whole index instead, for its order, where it takes the gate for empty.
SESSION = f"""
SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off;
SET plan_cache_mode = force_generic_plan;
SET idle_in_transaction_session_timeout = '5s';  -- a stopped process must not keep its locks
{APPLY_STATEMENT}
"""

# Errors of the data. Every other error of PostgreSQL is an outage, to be waited out.
DATA_ERRORS = (
    psycopg2.DataError,
    psycopg2.IntegrityError,
    psycopg2.errors.RaiseException,
    psycopg2.errors.WithCheckOptionViolation,
)


def newest(records: Iterable[Record]) -> Iterable[Record]:
    """Return the newest record of each employee."""
    by_employee: dict[int, Record] = {}
    for record in records:
        keep_newest(by_employee, record)
    return by_employee.values()


def keep_newest(by_employee: dict[int, Record], record: Record) -> None:
    """Put a record into by_employee, unless a newer one of the same emp_id is there."""
    other = by_employee.setdefault(record.emp_id, record)
    if other.cdc_id < record.cdc_id:
        by_employee[record.emp_id] = record


def apply(destination: Connection, records: Iterable[Record]) -> int:
    """Apply records, one for each employee, in one transaction. Returns how many employees changed; the rest was stale.

    Raises one of DATA_ERRORS for records that the destination refuses.
    """
    arrays = to_arrays(records)
    try:
        return run(destination, APPLY, arrays)
    except psycopg2.errors.UniqueViolation:
        return run(destination, REGISTER_KEYS + APPLY, arrays)


def run(destination: Connection, statement: str, arrays: dict[str, str]) -> int:
    # One round trip, two when something is deleted. What is sent at once is a transaction: BEGIN and COMMIT only then.
    deletes = "DELETE" in arrays["action"]
    with destination.cursor() as cursor:
        try:
            cursor.execute(("BEGIN;" if deletes else "") + statement, arrays)
            ((changed, deleted),) = cursor.fetchall()
            if deletes:
                cursor.execute(f"{DELETE}; COMMIT" if deleted else "COMMIT", {"deleted": deleted})
        except DATA_ERRORS:
            if deletes:
                cursor.execute("ROLLBACK")
            raise
    return int(changed)


def to_arrays(records: Iterable[Record]) -> dict[str, str]:
    """Return the columns of records as PostgreSQL arrays."""
    records = list(records)
    return {column: to_array([getattr(record, column) for record in records]) for column in CDC_COLUMNS}


def to_array(values: list[str | int | date | None]) -> str:
    """Return values as a PostgreSQL array. JSON writes them as an array does, but for what it escapes."""
    text = to_json(values).decode()
    if "\\" in text:
        text = "[" + ",".join(map(to_element, values)) + "]"
    return "{" + text[1:-1] + "}"


def to_element(value: str | int | date | None) -> str:
    if value is None:
        return "null"
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
