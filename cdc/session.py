"""What every session of ours sets before it does anything else, and how a pooler is noticed that would share it."""

from __future__ import annotations

import json
import select
import time

from psycopg2.extensions import POLL_OK, POLL_READ
from psycopg2.extensions import connection as Connection

# A role, a database or the server may set any of these. What we do must not depend on that.
SETTINGS = {
    # what waits too long, the scripts decide themselves
    "statement_timeout": "0",
    "lock_timeout": "0",
    "transaction_timeout": "0",
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off",
    # off: PostgreSQL refuses to read a table of which a policy hides rows
    "row_security": "off",
    "session_replication_role": "origin",
    # The consumer commits its offsets once the destination has committed. That commit must survive a crash.
    "synchronous_commit": "on",
    # how values are read and written
    "array_nulls": "on",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    # our plans; what enable_seqscan = off overprices would be compiled each time, 40 ms for an UPDATE of one row
    "jit": "off",
    "enable_indexscan": "on",
    "enable_nestloop": "on",
    # a host that vanished must not keep its session, and with it the active producer's lock, for hours
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
# standard_conforming_strings is not one of them: psycopg2 quotes by what it was at the login, even after a SET.
FIRST = "SET search_path = pg_catalog, pg_temp; SET statement_timeout = 0"
# Left alone: what is right already, as the role may have no right to set it; what this version does not have; and every
# synchronous_commit but off, as they all survive a crash.
APPLY = """
SELECT set_config(name, value, false)
FROM json_each_text(%(settings)s) AS ours (name, value) JOIN pg_settings AS theirs USING (name)
WHERE setting <> value AND (name <> 'synchronous_commit' OR setting = 'off')
"""

BACKEND = "SELECT pg_catalog.pg_backend_pid()"
ROUNDS = 5  # one would do, if nobody else used the pooler
SECOND_SERVER = 2.0  # seconds for the pooler to find one


def set_up(connection: Connection) -> None:
    """Make a session independent of what a role, a database or the server sets. Raises InsufficientPrivilege, naming
    the setting, where its role may not set it.

    The search_path comes first: nobody's function or operator can stand in for PostgreSQL's in what follows.
    """
    with connection.cursor() as cursor:
        cursor.execute(FIRST)
        cursor.execute(APPLY, {"settings": json.dumps(SETTINGS)})


def is_shared(first: Connection, second: Connection) -> bool:
    """Whether a pooler gives us another server from one statement to the next, or gives ours to another session.

    second is an asynchronous connection: a pooler in session mode may have no server left for it, and lets it wait.
    """
    held = backend(first)
    until = time.monotonic() + SECOND_SERVER
    if not wait(second, until):
        return False
    for _ in range(ROUNDS):
        cursor = second.cursor()
        cursor.execute(BACKEND)
        if not wait(second, until):
            return False
        # Asked twice: of two servers in turn, every other answer is the one that we had first.
        if cursor.fetchall() == [(held,)] or {backend(first), backend(first)} != {held}:
            return True
    return False


def backend(connection: Connection) -> int:
    with connection.cursor() as cursor:
        cursor.execute(BACKEND)
        return int(cursor.fetchall()[0][0])


def wait(connection: Connection, until: float) -> bool:
    """Wait for an asynchronous connection; False when it is not ready by then (time.monotonic)."""
    while (state := connection.poll()) != POLL_OK:
        reading, writing = ([connection], []) if state == POLL_READ else ([], [connection])
        if not any(select.select(reading, writing, [], max(0.0, until - time.monotonic()))):
            return False
    return True
