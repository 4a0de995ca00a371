"""The schema version of our own tables: can these scripts work with them?

`sql/source.sql` and `sql/destination.sql` write it into the comment of a table. Everybody may read a comment, so no
role needs a right for it, and it goes with a dump. A function would do as well, but where anybody may create functions,
somebody else's could be there first.
"""

from __future__ import annotations

from cdc import cli
from cdc.postgres import WrongSetting, first_line
from config import SCHEMA

import psycopg2
from psycopg2.extensions import connection as Connection

# Raised by every change after which scripts of the version before cannot work with our tables, or these scripts with
# the tables of the version before. sql/*.sql say the same number.
VERSION = 1
TABLES = {"source": "emp_cdc", "destination": "cdc_applied"}

FIND = """
SELECT coalesce(substring(obj_description(oid, 'pg_class') FROM 'schema version ([0-9]{1,6})'), '0')::int
FROM pg_class WHERE oid = to_regclass(%(table)s)
"""


def find_version(connection: Connection, side: str) -> int | None:
    """Return the version of the tables of one side: 0 from before there were versions, None if there are none."""
    with connection.cursor() as cursor:
        cursor.execute(FIND, {"table": f"{SCHEMA}.{TABLES[side]}"})
        rows = cursor.fetchall()
    return int(rows[0][0]) if rows else None


def check_version(connection: Connection, side: str) -> None:
    """Raise OperationalError where the tables are too old: db_setup.py mends that. Tables that are missing say so
    themselves. Raises WrongSetting where they are too new."""
    found = find_version(connection, side)
    if found is not None and found < VERSION:
        raise psycopg2.OperationalError(
            f"the tables are of schema version {found}, these scripts need {VERSION}; run python db_setup.py"
        )
    refuse_newer(found, side)


def refuse_newer(found: int | None, side: str) -> None:
    if found is not None and found > VERSION:
        raise WrongSetting(
            f"{side}: the tables are of schema version {found}, these scripts know {VERSION}; install newer scripts"
        )


def check_or_exit(connection: Connection, side: str) -> None:
    """Check the version, for scripts that do one thing and end."""
    try:
        check_version(connection, side)
    except psycopg2.Error as error:
        cli.fail(f"{side}: {first_line(error)}")
    except WrongSetting as error:
        cli.fail(str(error), cli.WRONG_USE)
