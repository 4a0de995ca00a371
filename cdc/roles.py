"""The roles of `db_setup.py --roles`: one for producer.py, one for consumer.py, one that only looks."""

from __future__ import annotations

import os
import re
from pathlib import Path

from cdc import cli
from config import SCHEMA

from psycopg2.extensions import connection as Connection
from psycopg2.extensions import encrypt_password, quote_ident

SQL = Path(__file__).parent.parent / "sql"
ROLES = {"source": ("cdc_producer", "cdc_monitor"), "destination": ("cdc_consumer", "cdc_monitor")}

FIND = "SELECT rolsuper OR rolcreaterole OR rolreplication FROM pg_roles WHERE rolname = %(role)s"
ATTRIBUTES = "LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION"


def password(role: str) -> str:
    return os.environ.get(variable(role), "")


def variable(role: str) -> str:
    return f"{role.upper()}_PASSWORD"


def check(connection: Connection, side: str) -> None:
    """Exit with one line if a role cannot be made, as its password is not set, or could do more than its rights say."""
    for role in ROLES[side]:
        found = find(connection, role)
        if found is None and not password(role):
            cli.fail(f"{side}: there is no role {role} yet; set {variable(role)}, its password", cli.WRONG_USE)
        if found:
            cli.fail(
                f"{side}: the role {role} is a superuser, or may create roles or replicate, and so is bound by no "
                f"rights; ALTER ROLE {role} {ATTRIBUTES}",
                cli.WRONG_USE,
            )


def find(connection: Connection, role: str) -> bool | None:
    """Return whether the role has powers beyond rights on tables; None if there is no such role."""
    with connection.cursor() as cursor:
        cursor.execute(FIND, {"role": role})
        rows = cursor.fetchall()
    return bool(rows[0][0]) if rows else None


def make(connection: Connection, side: str) -> None:
    """Make the roles of one side, or set their passwords where these are given, and give them their rights.

    The server gets the passwords as SCRAM verifiers: its log, and whoever reads it, does not get to know them.
    """
    with connection.cursor() as cursor:
        for role in ROLES[side]:
            if find(connection, role) is None:
                cursor.execute(f"CREATE ROLE {role} {ATTRIBUTES}")
            if password(role):
                verifier = encrypt_password(password(role), role, connection, "scram-sha-256")
                cursor.execute(f"ALTER ROLE {role} PASSWORD %(verifier)s", {"verifier": verifier})
        cursor.execute(rights(connection, side))
    print(f"{side}: {' and '.join(ROLES[side])} have their rights, and PUBLIC none")


def rights(connection: Connection, side: str) -> str:
    """Return sql/<side>_roles.sql for CDC_SCHEMA and this database."""
    text = (SQL / f"{side}_roles.sql").read_text(encoding="utf-8")
    return re.sub(r"\bpublic\b", SCHEMA, text).replace(':"DBNAME"', quote_ident(connection.info.dbname, connection))
