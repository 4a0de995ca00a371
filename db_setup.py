"""Set up the source (employees, its log and triggers) and the destination (employees and the gate).

Can be run again at any time without harm; upgrades a log that has only the specified columns.

    python db_setup.py
    python db_setup.py --roles    also the roles cdc_producer, cdc_consumer and cdc_monitor, with exactly their rights

The passwords of the roles are CDC_PRODUCER_PASSWORD, CDC_CONSUMER_PASSWORD and CDC_MONITOR_PASSWORD. A role that is
there keeps its password where none is set.
"""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

import config
from cdc import bar, capture, cli, roles
from cdc.postgres import WrongSetting, address, connect_within, first_line
from cdc.schema import find_version, refuse_newer
from cdc.text import counted
from config import SCHEMA
from employee import CDC_COLUMNS

import psycopg2
from psycopg2.extensions import connection as Connection

SQL = Path(__file__).with_name("sql")
NAME = SCHEMA.strip('"')  # of the schema
WAIT = 60  # seconds for a server to come up
CHUNK = 10_000  # rows of an old log that are moved in one transaction
PROGRESS = re.compile(r"cdc\.progress (\d+) of (\d+)")  # what sql/source.sql says while it logs the rows from before

IDENTITY = """
SELECT system_identifier, (SELECT oid FROM pg_database WHERE datname = current_database()) FROM pg_control_system()
"""
# Where a session that sets nothing finds employees. Named with schemas throughout, as its search path is anybody's.
VISIBLE = """
RESET search_path;
SELECT nspname::pg_catalog.text FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace
    ON pg_namespace.oid OPERATOR(pg_catalog.=) relnamespace
WHERE pg_class.oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass('employees')
"""
SAFE_PATH = "SET search_path = pg_catalog, pg_temp"
SCHEMA_EXISTS = "SELECT to_regnamespace(%(schema)s) IS NOT NULL"

COLUMNS = ", ".join(CDC_COLUMNS)
OLD_LOG = f"SELECT to_regclass('{SCHEMA}.emp_cdc_old') IS NOT NULL"
# The new rows are late rows, or beyond the offset: the producer publishes them in any case.
MOVE = f"""
WITH old AS (
    SELECT {COLUMNS} FROM {SCHEMA}.emp_cdc_old WHERE cdc_id > %(after)s ORDER BY cdc_id LIMIT {CHUNK}
), moved AS (
    INSERT INTO {SCHEMA}.emp_cdc ({COLUMNS}) SELECT {COLUMNS} FROM old WHERE action IN ('INSERT', 'UPDATE', 'DELETE')
    ON CONFLICT (cdc_id) DO NOTHING
)
SELECT max(cdc_id), count(*) FILTER (WHERE action IN ('INSERT', 'UPDATE', 'DELETE')) FROM old
"""
KEPT = f"SELECT count(*) FROM {SCHEMA}.emp_cdc_old WHERE action IS NULL OR action NOT IN ('INSERT', 'UPDATE', 'DELETE')"
COUNT_OLD = f"SELECT count(*) FROM {SCHEMA}.emp_cdc_old"
DROP_OLD = f"DROP TABLE {SCHEMA}.emp_cdc_old"


def check_schema(connection: Connection, name: str) -> None:
    """Exit with one line if CDC_SCHEMA is missing, or if employees is in another schema and not in it."""
    with connection.cursor() as cursor:
        cursor.execute(VISIBLE)
        visible = cursor.fetchall()
        cursor.execute(SAFE_PATH)
        cursor.execute(SCHEMA_EXISTS, {"schema": SCHEMA})
        if cursor.fetchall() == [(False,)]:
            cli.fail(f"{name}: there is no schema {NAME}; create it, or correct CDC_SCHEMA", cli.WRONG_USE)
    if visible and visible != [(NAME,)] and not capture.columns(connection, "employees"):
        cli.fail(
            f"{name}: employees is in schema {visible[0][0]}, not in {NAME}; set CDC_SCHEMA={visible[0][0]}, or "
            f"create employees in {NAME} first",
            cli.WRONG_USE,
        )


def check(source: Connection, destination: Connection) -> None:
    """Exit with one line if the two databases are not a source and a destination that we can work with."""
    identities = set()
    for name, connection in (("source", source), ("destination", destination)):
        with connection.cursor() as cursor:
            cursor.execute(IDENTITY)
            identities.add(cursor.fetchone())
        check_schema(connection, name)
        refuse_newer(find_version(connection, name), name)
    if len(identities) == 1:
        cli.fail("source and destination are the same database; a change would go round for ever", cli.WRONG_USE)
    for line in capture.refusals(source, destination):
        cli.fail(line)


class Notices:
    """Takes the notices of a session as they come: shows how far the first run is, and keeps the others."""

    def __init__(self) -> None:
        self.others: list[str] = []
        self.progress: bar.Progress | None = None

    def append(self, notice: str) -> None:
        if match := PROGRESS.search(notice):
            logged, total = map(int, match.groups())
            self.progress = self.progress or bar.Progress(total, "rows logged")
            self.progress.advance(logged - self.progress.done)
        else:
            self.others.append(notice)


def set_up(connection: Connection, name: str) -> None:
    """Run sql/<name>.sql in CDC_SCHEMA, one transaction of its own, and print what it says."""
    text = (SQL / f"{name}.sql").read_text(encoding="utf-8")
    if NAME != "public":
        text = re.sub(r"\bpublic\b", SCHEMA, text)
    notices: Any = Notices()
    connection.notices = notices
    with connection.cursor() as cursor:
        cursor.execute(f"SET cdc.progress = on; {text}")
    bar.clear()
    for notice in notices.others:
        print(f"{name}: {notice.partition('  ')[2].strip()}")


def move_old_log(source: Connection) -> None:
    """Move the rows of a log that sql/source.sql has replaced, some at a time; writers do not wait for it."""
    with source.cursor() as cursor:
        cursor.execute(OLD_LOG)
        if cursor.fetchall() == [(False,)]:
            return
        cursor.execute(COUNT_OLD)
        ((total,),) = cursor.fetchall()
        after, moved = -(2**63), 0
        with bar.progress(total, "rows of the old log moved") as advance:
            while True:
                cursor.execute(MOVE, {"after": after})
                ((newest, count),) = cursor.fetchall()
                if newest is None:
                    break
                after, moved = newest, moved + count
                advance(count)
        cursor.execute(KEPT)
        ((kept,),) = cursor.fetchall()
        if kept:
            print(f"source: rows with another action than INSERT, UPDATE and DELETE stay in emp_cdc_old: {kept:,}")
        else:
            cursor.execute(DROP_OLD)
    print(f"source: old log upgraded, {counted(moved, 'row')}")


@cli.script
def main() -> None:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--roles", action="store_true", help="make the roles, and take from PUBLIC what it has")
    arguments = parser.parse_args()
    cli.start_logging()
    stop = cli.stop_on_signals()
    with (
        closing(connect_within("source", config.SOURCE_DATABASE_URL, WAIT, stop)) as source,
        closing(connect_within("destination", config.DESTINATION_DATABASE_URL, WAIT, stop)) as destination,
    ):
        try:
            check(source, destination)
            if arguments.roles:
                roles.check(source, "source")
                roles.check(destination, "destination")
            set_up(source, "source")
            move_old_log(source)
            print("source: ready")
            set_up(destination, "destination")
            print("destination: ready")
            if arguments.roles:
                roles.make(source, "source")
                roles.make(destination, "destination")
            for line in capture.warnings(source, destination):
                print(line)
        except WrongSetting as error:
            cli.fail(str(error), cli.WRONG_USE)
        except psycopg2.Error as error:
            fail(error, "destination" if error.cursor and error.cursor.connection is destination else "source")


def fail(error: psycopg2.Error, name: str) -> NoReturn:
    if isinstance(error, psycopg2.errors.LockNotAvailable):
        cli.fail(f"{name}: a long transaction holds the tables; run db_setup.py again when it has ended")
    url = config.SOURCE_DATABASE_URL if name == "source" else config.DESTINATION_DATABASE_URL
    cli.fail(f"{name} at {address(url)}: {first_line(error)}")


if __name__ == "__main__":
    main()
