"""Set up the source (employees, its log and triggers) and the destination (employees and the gate).

Can be run again at any time without harm; upgrades a log that has only the specified columns.

    python db_setup.py
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import psycopg2
from psycopg2.extensions import connection as Connection

import cli
import config
from connection import connect_within, explain, first_line

SQL = Path(__file__).with_name("sql")
WAIT = 60  # seconds for a server to come up

IDENTITY = """
SELECT system_identifier, (SELECT oid FROM pg_database WHERE datname = current_database()) FROM pg_control_system()
"""
COLUMNS = """
SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute
WHERE attrelid = to_regclass('employees') AND attnum > 0 AND NOT attisdropped
"""
TYPES = {
    "emp_id": "integer",
    "first_name": "character varying(100)",
    "last_name": "character varying(100)",
    "dob": "date",
    "city": "character varying(100)",
    "salary": "integer",
}
KEY = """
SELECT array_agg(attname::text) FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = ANY (indkey)
WHERE indrelid = to_regclass('employees') AND indisprimary AND indimmediate
"""


def check_employees(connection: Connection, name: str) -> None:
    """Exit with one line if a table `employees` is there that the triggers or the consumer cannot work with."""
    with connection.cursor() as cursor:
        cursor.execute(COLUMNS)
        columns = dict(cursor.fetchall())
        if not columns:
            return
        for column, wanted in TYPES.items():
            if column not in columns:
                cli.fail(f"{name}: the table employees that is there has no column {column}; add or rename it")
            if columns[column] != wanted:
                cli.fail(f"{name}: employees.{column} that is there is {columns[column]}; it must be {wanted}")
        cursor.execute(KEY)
        if cursor.fetchone() != (["emp_id"],):
            cli.fail(f"{name}: the table employees that is there needs PRIMARY KEY (emp_id), not deferrable")


def set_up(connection: Connection, name: str) -> None:
    """Run sql/<name>.sql, one transaction of its own, and print what it says."""
    with connection.cursor() as cursor:
        cursor.execute((SQL / f"{name}.sql").read_text(encoding="utf-8"))
    for notice in connection.notices:
        print(f"{name}: {notice.partition('  ')[2].strip()}")


def main() -> None:
    parser = cli.parser(__doc__)
    cli.start_logging(parser.parse_args().verbose)
    stop = cli.stop_on_signals()
    databases = {"source": config.SOURCE_DATABASE_URL, "destination": config.DESTINATION_DATABASE_URL}
    identities = set()
    for name, url in databases.items():
        with closing(connect_within(name, url, WAIT, stop)) as connection, connection.cursor() as cursor:
            cursor.execute(IDENTITY)
            identities.add(cursor.fetchone())
            check_employees(connection, name)
    if len(identities) == 1:
        cli.fail("source and destination are the same database; a change would go round for ever", cli.WRONG_USE)
    for name, url in databases.items():
        with closing(connect_within(name, url, WAIT, stop)) as connection:
            try:
                set_up(connection, name)
            except psycopg2.errors.LockNotAvailable:
                cli.fail(f"{name}: a long transaction holds the tables; run db_setup.py again when it has ended")
            except psycopg2.Error as error:
                cli.fail(f"{explain(name, url, error)} ({first_line(error)})")
        print(f"{name}: ready")


if __name__ == "__main__":
    main()
