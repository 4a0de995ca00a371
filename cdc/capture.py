"""Whether a table `employees` can be kept equal, and whether all of it is captured.

`admin.py status`, `db_setup.py`, `producer.py` and `verify.py` ask; each answer is one line for people.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

from cdc import metrics
from config import SCHEMA
from employee import EMPLOYEE_COLUMNS

from psycopg2.extensions import connection as Connection

log = logging.getLogger(__name__)

CHECK_EVERY = 10.0  # seconds

TYPES = {
    "emp_id": "integer",
    "first_name": "character varying(100)",
    "last_name": "character varying(100)",
    "dob": "date",
    "city": "character varying(100)",
    "salary": "integer",
}
LOG_TYPES = {"action": "", "txid": "xid8", "changed_at": "timestamp with time zone"}
POSITION_TYPES = {
    "only_row": "boolean",
    "last_offset": "bigint",
    "snapshot": "pg_snapshot",
    "system_identifier": "bigint",
    "saved_at": "timestamp with time zone",
}
EMPLOYEES = f"to_regclass('{SCHEMA}.employees')"

COLUMNS = """
SELECT attname, format_type(atttypid, atttypmod), attnotnull, attgenerated <> '',
       atthasdef OR attidentity <> '' OR attgenerated <> ''
FROM pg_attribute WHERE attrelid = to_regclass(%(table)s) AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""
# What a table is that cannot be captured, or NULL. A partition or a child changes without a trigger of its parent.
KIND = """
SELECT CASE
    WHEN relkind = 'p' THEN 'a partitioned table'
    WHEN relkind = 'v' THEN 'a view'
    WHEN relkind = 'm' THEN 'a materialized view'
    WHEN relkind = 'f' THEN 'a foreign table'
    WHEN relkind <> 'r' THEN 'no table'
    WHEN relispartition THEN 'a partition'
    WHEN EXISTS (SELECT FROM pg_inherits WHERE inhparent = pg_class.oid) THEN 'a table that others inherit from'
    WHEN EXISTS (SELECT FROM pg_inherits WHERE inhrelid = pg_class.oid) THEN 'a table that inherits from another'
    WHEN relpersistence = 'u' THEN 'UNLOGGED and empty after a crash'
END
FROM pg_class WHERE oid = to_regclass(%(table)s)
"""
KEY = """
SELECT array_agg(attname::text) FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = ANY (indkey)
WHERE indrelid = to_regclass(%(table)s) AND indisprimary AND indimmediate
"""
# What may refuse a row at the destination: constraints but the key, unique indexes, foreign keys of other tables.
MAY_REFUSE = f"""
SELECT CASE contype WHEN 'c' THEN 'CHECK' WHEN 'u' THEN 'UNIQUE' WHEN 'x' THEN 'EXCLUDE' ELSE 'FOREIGN KEY' END
       || ' constraint ' || quote_ident(conname)
FROM pg_constraint WHERE {EMPLOYEES} IN (conrelid, confrelid) AND contype IN ('c', 'u', 'x', 'f')
UNION ALL
SELECT 'unique index ' || indexrelid::regclass FROM pg_index
WHERE indrelid = {EMPLOYEES} AND indisunique AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
ORDER BY 1
"""
OTHER_TRIGGERS = f"""
SELECT 'trigger ' || quote_ident(tgname) FROM pg_trigger
WHERE tgrelid = {EMPLOYEES} AND NOT tgisinternal
  AND tgname NOT IN ('employee_cdc_trigger', 'employee_cdc_truncate_trigger') AND tgenabled <> 'D'
UNION ALL
SELECT 'rule ' || quote_ident(rulename) FROM pg_rewrite WHERE ev_class = {EMPLOYEES} AND ev_type <> '1'
ORDER BY 1
"""
# The two triggers as sql/source.sql makes them: name, type, function.
TRIGGERS = f"""
SELECT wanted.name, trigger.tgenabled,
       trigger.tgtype = wanted.type AND trigger.tgfoid::regproc = to_regproc(wanted.function)
       AND trigger.tgqual IS NULL AND trigger.tgattr::text = ''
FROM (VALUES ('employee_cdc_trigger', 29, '{SCHEMA}.employee_cdc_trigger_func'),
             ('employee_cdc_truncate_trigger', 34, '{SCHEMA}.employee_cdc_truncate_func'))
     AS wanted (name, type, function)
LEFT JOIN pg_trigger AS trigger ON trigger.tgrelid = {EMPLOYEES} AND trigger.tgname = wanted.name
"""
# Another one after each change of a trigger, also if it was changed back.
VERSIONS = f"""
SELECT string_agg(tgname || ' ' || xmin, ' ' ORDER BY tgname) FROM pg_trigger
WHERE tgrelid = {EMPLOYEES} AND tgname IN ('employee_cdc_trigger', 'employee_cdc_truncate_trigger')
"""
# Where the triggers went with a table that was renamed.
ELSEWHERE = f"""
SELECT relnamespace::regnamespace || '.' || quote_ident(relname)
FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid
WHERE tgfoid = to_regproc('{SCHEMA}.employee_cdc_trigger_func') AND tgrelid IS DISTINCT FROM {EMPLOYEES}::oid
"""
ROW_SECURITY_FORCED = f"SELECT relforcerowsecurity FROM pg_class WHERE oid = {EMPLOYEES}"
OFF = {None: "missing", "D": "disabled", "O": "not ALWAYS", "R": "not ALWAYS"}


@dataclass(frozen=True)
class Column:
    name: str
    type: str
    not_null: bool
    generated: bool
    has_default: bool


def columns(connection: Connection, table: str) -> dict[str, Column]:
    """Return the columns of a table by name, none if there is no such table."""
    with connection.cursor() as cursor:
        cursor.execute(COLUMNS, {"table": f"{SCHEMA}.{table}"})
        return {row[0]: Column(*row) for row in cursor.fetchall()}


def refusals(source: Connection, destination: Connection) -> list[str]:
    """Return why the tables that are there cannot be worked with; an empty list if they can."""
    found = refused(source, "source", "employees", TYPES, "emp_id")
    if not is_old_log(source):
        found += refused(source, "source", "emp_cdc", {"cdc_id": "bigint", **TYPES, **LOG_TYPES}, "cdc_id")
    found += refused(source, "source", "cdc_position", POSITION_TYPES, "only_row")
    found += refused(destination, "destination", "employees", TYPES, "emp_id")
    found += refused(destination, "destination", "cdc_applied", {"emp_id": "integer", "cdc_id": "bigint"}, "emp_id")
    return found or refused_at_destination(columns(source, "employees"), columns(destination, "employees"))


def is_old_log(source: Connection) -> bool:
    """Whether the log has only the specified columns, so that sql/source.sql replaces it."""
    log = columns(source, "emp_cdc")
    return "txid" not in log or log["cdc_id"].type != "bigint"


def refused(connection: Connection, side: str, table: str, types: dict[str, str], key: str) -> list[str]:
    """Return why a table that is there is not one that we can work with."""
    found = columns(connection, table)
    if not found:
        return []
    what = f"{side}: the table {table} that is there"
    with connection.cursor() as cursor:
        cursor.execute(KIND, {"table": f"{SCHEMA}.{table}"})
        ((kind,),) = cursor.fetchall()
        cursor.execute(KEY, {"table": f"{SCHEMA}.{table}"})
        ((keys,),) = cursor.fetchall()
    if kind:
        return [f"{what} is {kind}; it must be a plain table of its own"]
    lines = wrong_columns(what, found, types)
    if keys != [key]:
        lines.append(f"{what} needs PRIMARY KEY ({key}), not deferrable")
    if table != "employees":
        lines += [
            f"{what} has {column.name} NOT NULL without a default, and nothing writes it; drop it"
            for column in found.values()
            if column.not_null and not column.has_default and column.name not in types
        ]
    return lines


def wrong_columns(what: str, table: dict[str, Column], types: dict[str, str]) -> list[str]:
    """Return why columns of these types (any type where it is "") cannot be written into a table."""
    found = []
    for name, wanted in types.items():
        if name not in table:
            found.append(f"{what} has no column {name}; add or rename it")
        elif wanted and table[name].type != wanted:
            found.append(f"{what} has {name} {table[name].type}; it must be {wanted}")
        elif table[name].generated:
            found.append(f"{what} generates {name}; it must be a column that can be written")
    return found


def refused_at_destination(source: dict[str, Column], destination: dict[str, Column]) -> list[str]:
    """Return the columns that would make the destination refuse rows of the source."""
    found = []
    for column in destination.values():
        if not column.not_null or column.name == "emp_id":
            continue
        if column.name not in EMPLOYEE_COLUMNS and not column.has_default:
            found.append(
                f"destination: employees.{column.name} is NOT NULL without a default, and nothing writes it: every row "
                "would be refused"
            )
        if column.name in EMPLOYEE_COLUMNS and not (column.name in source and source[column.name].not_null):
            found.append(f"destination: employees.{column.name} is NOT NULL, and NULL is allowed at the source")
    return found


def warnings(source: Connection, destination: Connection) -> list[str]:
    """Return what is allowed and may still keep the tables from being equal."""
    found = [f"source: {line}" for line in not_captured(source)]
    with destination.cursor() as cursor:
        cursor.execute(MAY_REFUSE)
        names = cursor.fetchall()
        cursor.execute(OTHER_TRIGGERS)
        names += cursor.fetchall()
    return found + [
        f"destination: employees has the {name}; what it refuses becomes a dead letter" for (name,) in names
    ]


def not_captured(source: Connection) -> list[str]:
    """Return the columns of the source that the log does not have."""
    extra = [name for name in columns(source, "employees") if name not in EMPLOYEE_COLUMNS]
    return [f"employees.{name} is not captured" for name in extra]


def gaps(source: Connection) -> list[str]:
    """Return why changes of `employees` are not captured, or not all of them; an empty list if they are."""
    table = columns(source, "employees")
    with source.cursor() as cursor:
        cursor.execute(ELSEWHERE)
        renamed = "".join(f" (the triggers are on {name}: was employees renamed?)" for (name,) in cursor.fetchall())
        if not table:
            return [f"there is no table employees{renamed}; run python db_setup.py"]
        cursor.execute(TRIGGERS)
        found = [
            f"the trigger {name} is {OFF.get(enabled, 'changed')}{renamed}; run python db_setup.py"
            for name, enabled, as_made in cursor.fetchall()
            if enabled != "A" or not as_made
        ]
        cursor.execute(KIND, {"table": f"{SCHEMA}.employees"})
        ((kind,),) = cursor.fetchall()
        if kind:
            found.append(f"employees is {kind}: not all of its changes are captured")
        cursor.execute(ROW_SECURITY_FORCED)
        if cursor.fetchall() == [(True,)]:
            found.append("row-level security is forced on employees: TRUNCATE and verify.py may be refused")
    return found + wrong_columns("employees", table, TYPES)


@dataclass
class Watch:
    """Warns of what is not captured, each thing once, and says when all is captured again."""

    source: Connection
    reported: list[str] = field(default_factory=list)
    versions: str | None = None  # of the triggers when all was captured
    due: float = 0.0

    def check(self) -> None:
        """Check, unless the last check was less than CHECK_EVERY seconds ago."""
        if time.monotonic() < self.due:
            return
        self.due = time.monotonic() + CHECK_EVERY
        missing = gaps(self.source)
        found = missing + not_captured(self.source)
        metrics.TRIGGERS_ENABLED.set(not missing)
        for line in found:
            if line not in self.reported:
                log.error("source: %s", line)
        if any(line not in found for line in self.reported) and not missing:
            log.info("source: employees is captured")
        self.reported = found
        if not missing:
            self.check_versions()

    def check_versions(self) -> None:
        """Warn if the triggers were off, or others, since all was captured."""
        with self.source.cursor() as cursor:
            cursor.execute(VERSIONS)
            ((versions,),) = cursor.fetchall()
        if self.versions not in (None, versions):
            log.error("source: the triggers were off or changed for a while; run python verify.py --repair")
        self.versions = versions
