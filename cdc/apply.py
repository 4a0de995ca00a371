"""The statement that applies records through the gate, in one transaction; cdc/bulk.py applies large batches.

The gate is the table cdc_applied: it holds the newest cdc_id that was applied to each employee, and lets a record pass
only if its cdc_id is higher. Why the statement is as it is: docs/design.md.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from datetime import date
from operator import attrgetter
from typing import Any

from cdc import metrics
from cdc.message import Change, Record, to_json
from cdc.postgres import first_line
from config import SCHEMA
from employee import ACTIONS, CDC_COLUMNS, EMPLOYEE_COLUMNS

import psycopg2
from msgspec.structs import replace
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
SELECT array[{", ".join(f"count(*) FILTER (WHERE action = '{action}')" for action in ACTIONS)}],
       array_agg(emp_id) FILTER (WHERE action = 'DELETE')
FROM (SELECT emp_id, action FROM record WHERE before IS NULL UNION ALL SELECT emp_id, action FROM newer) AS passed
"""
# The records go to PostgreSQL as settings of the transaction, one for each column, and PL/pgSQL catches every error. So
# none of their values reaches the server's log, whoever owns the role: neither in the text of a refused statement nor
# in "Failing row contains (…)". The settings that would keep them out of the log are a superuser's.
ARRAYS = ("bigint[]", "int[]", "text[]", "text[]", "date[]", "text[]", "int[]", "text[]")
TYPES = dict(zip(CDC_COLUMNS, ARRAYS, strict=True))


def pass_settings(columns: Iterable[str]) -> str:
    """Return the statement that gives columns, as arrays, to the statements that follow in the transaction."""
    return "SELECT " + ", ".join(f"set_config('cdc.{column}', %({column})s, true)" for column in columns)


def incoming(columns: Iterable[str]) -> str:
    """Return the expressions for columns that were given."""
    return ", ".join(f"current_setting('cdc.{column}')::{TYPES[column]}" for column in columns)


INCOMING, PASS = incoming(CDC_COLUMNS), pass_settings(CDC_COLUMNS)
PASS_ONE = ", ".join(f"set_config('cdc.{column}', ARRAY[one.{column}]::text, true)" for column in CDC_COLUMNS)
APPLY = f"EXECUTE apply ({INCOMING})"
REGISTER_KEYS = f"""
INSERT INTO {SCHEMA}.cdc_applied (emp_id, cdc_id)
SELECT emp_id, 0 FROM unnest({incoming(["emp_id"])}) AS emp_id ORDER BY emp_id
ON CONFLICT DO NOTHING;
"""
# A statement of its own, so that its snapshot is taken after the gate's locks are held. Inside APPLY, a DELETE that
# waited for another consumer's INSERT would not see the row it must delete.
DELETE = f"DELETE FROM ONLY {SCHEMA}.employees WHERE emp_id = ANY (deleted)"
# SET CONSTRAINTS: deferred constraints and triggers of the user's own refuse here, and not at the commit.
TRY = f"""
EXECUTE $${APPLY}$$ INTO changed, deleted;
IF deleted IS NOT NULL THEN {DELETE}; END IF;
SET CONSTRAINTS ALL IMMEDIATE;
result := json_build_array(changed);
EXCEPTION WHEN OTHERS OR assert_failure OR query_canceled THEN
    result := json_build_array(json_build_array(0, 0, 0), SQLSTATE, SQLERRM);
"""
DECLARE = "DECLARE changed bigint[]; deleted int[]; result json;"
SHOW = "SELECT current_setting('cdc.result')::json"
TRY_ALL = f"""
{PASS};
DO $do$ {DECLARE}
BEGIN
    BEGIN {{register}} {TRY} END;
    PERFORM set_config('cdc.result', result::text, true);
END $do$;
{SHOW}
"""
TRY_EACH = f"""
{PASS};
DO $do$ {DECLARE} one record; results json[];
BEGIN
    FOR one IN SELECT * FROM unnest({INCOMING}) AS incoming ({", ".join(CDC_COLUMNS)}) LOOP
        PERFORM {PASS_ONE};
        BEGIN {REGISTER_KEYS} {TRY} END;
        results := results || result;
    END LOOP;
    PERFORM set_config('cdc.result', array_to_json(results)::text, true);
END $do$;
{SHOW}
"""
NONE = ", ".join(["'{}'"] * len(CDC_COLUMNS))
TRY_NOTHING = f"""
EXECUTE apply ({NONE});
INSERT INTO {SCHEMA}.cdc_applied (emp_id, cdc_id) SELECT 0, 0 WHERE false ON CONFLICT DO NOTHING;
DELETE FROM ONLY {SCHEMA}.employees WHERE emp_id = ANY ('{{}}'::int[])
"""

# Prepared once, because planning takes longer than applying a single record. Each key is looked up by its index, in the
# order of the records, whatever the statistics said of a table that grows since. `= ANY (ARRAY[…])` is for that, too:
# with a plain `=` the planner may read the whole index instead, for its order, where it takes the gate for empty.
SESSION = f"""
SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off;
SET plan_cache_mode = force_generic_plan;
SET idle_in_transaction_session_timeout = '5s';  -- a stopped process must not keep its locks
{APPLY_STATEMENT}
"""

# Errors of the server, or of what runs beside us, by class or code: no row is to blame, and waiting mends them. Any
# other error is an outage only if an empty batch meets it, too: a missing table, column or right.
UNIQUE_VIOLATION, CANCELED = "23505", "57014"
OUTAGES = ("08", "25", "40001", "40003", "40P01", "53", "55P03", "57", "58", "F0", "XX")


class Refused(Exception):
    """PostgreSQL refuses records, in its own words, and its connection lives on."""


def newest(records: Iterable[Record]) -> Collection[Record]:
    """Return the newest record of each employee."""
    by_employee: dict[int, Record] = {}
    keep_newest(by_employee, records)
    return by_employee.values()


def keep_newest(by_employee: dict[int, Record], records: Iterable[Record]) -> None:
    """Put records into by_employee, but for those of which a newer one of the same emp_id is there.

    An UPDATE that supersedes an INSERT becomes one: the employee is new, which spares a large batch half of its work.
    A rare one that took the slow path, a CDCRecord, stays an UPDATE; the end is the same.
    """
    for record in records:
        other = by_employee.setdefault(record.emp_id, record)
        if other.cdc_id < record.cdc_id:
            if other.action == "INSERT" and record.action == "UPDATE" and isinstance(record, Change):
                record = replace(record, action="INSERT")
            by_employee[record.emp_id] = record


def apply(destination: Connection, records: Collection[Record]) -> int:
    """Apply records, one for each employee, in one transaction. Returns how many employees changed; the rest was stale.

    Raises Refused if the records are refused, or take too long for somebody; psycopg2.Error in an outage.
    """
    arrays = to_arrays(records)
    changed, *error = run(destination, TRY_ALL.replace("{register}", ""), arrays)
    if error and error[0] == UNIQUE_VIOLATION:
        changed, *error = run(destination, TRY_ALL.replace("{register}", REGISTER_KEYS), arrays)
    if error and error[0] == CANCELED:
        raise Refused(error[1])
    raise_outage(*error)
    if error:
        raise Refused(error[1])
    return count_applied(changed, len(records))


def apply_each(destination: Connection, records: list[Record]) -> list[tuple[int, str]]:
    """Apply records one by one. Returns for each whether its employee changed, and why it is refused, if it is.

    Raises psycopg2.Error in an outage. What was applied before stays applied.
    """
    try:
        results = run(destination, TRY_EACH, to_arrays(records))
    except Refused as refusal:  # of the text as a whole: a character that the destination's encoding does not have
        if len(records) == 1:
            return [(0, str(refusal))]
        middle = len(records) // 2
        return apply_each(destination, records[:middle]) + apply_each(destination, records[middle:])
    for _, *error in results:
        raise_outage(*error)
    return [(0, in_one_line(*error)) if error else (count_applied(changed, 1), "") for changed, *error in results]


def count_applied(passed: list[int], tried: int) -> int:
    """Count the records that passed the gate, by action, and the others. Returns how many passed."""
    for action, count in zip(ACTIONS, passed, strict=True):
        metrics.APPLIED.add(count, action)
    metrics.STALE.add(tried - sum(passed))
    return sum(passed)


QUOTED = re.compile(r"""["'»„«“].*["'«“»”]""")
WRONG_VALUE = "22"  # a class of errors whose messages quote the value


def in_one_line(state: str, message: str) -> str:
    """Return why PostgreSQL refuses a record. It is logged, so no value of an employee is in it."""
    if state.startswith(WRONG_VALUE):
        message = QUOTED.sub("…", message)
    return " ".join(message.split()) or f"an error without a message, SQLSTATE {state}"


def apply_nothing(destination: Connection) -> None:
    """Apply an empty batch. Raises psycopg2.Error for what is no fault of any record."""
    with destination.cursor() as cursor:
        cursor.execute(TRY_NOTHING)


def run(destination: Connection, statement: str, arrays: dict[str, str]) -> Any:
    """Run a statement in one round trip and one transaction. Returns its result."""
    with destination.cursor() as cursor:
        try:
            cursor.execute(statement, arrays)
        except psycopg2.Error as error:
            if destination.closed or error.pgcode is None or error.pgcode.startswith(OUTAGES):
                raise
            raise Refused(first_line(error)) from None
        return cursor.fetchall()[0][0]


def raise_outage(state: str = "", message: str = "") -> None:
    if state.startswith(OUTAGES):
        raise psycopg2.OperationalError(message)


def to_arrays(records: Iterable[Record], columns: Collection[str] = CDC_COLUMNS) -> dict[str, str]:
    """Return columns of records as PostgreSQL arrays."""
    records = list(records)
    return {column: to_array(list(map(attrgetter(column), records))) for column in columns}


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
