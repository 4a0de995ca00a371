"""Who holds what at the source: our advisory locks, and transactions whose changes are yet to be published."""

from __future__ import annotations

from typing import Any

from cdc.wakeup import ACTIVE, ASLEEP, lock_holders
from config import SCHEMA

from psycopg2.extensions import connection as Connection

LOCKS = {"set-up": 0, "active": ACTIVE, "asleep": ASLEEP}

# Whoever has written into the log and not yet committed holds this lock on it. When a session's transaction began is
# for roles with pg_read_all_stats to see, else NULL. A prepared transaction has no session: its locks share a virtual
# transaction with the lock on its own number.
OPEN_TRANSACTIONS = f"""
WITH held AS (
    SELECT pid, virtualtransaction FROM pg_locks
    WHERE locktype = 'relation' AND relation = to_regclass('{SCHEMA}.emp_cdc') AND mode = 'RowExclusiveLock' AND granted
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
)
SELECT pid, usename::text, application_name, NULL, extract(epoch FROM clock_timestamp() - xact_start)::float
FROM held JOIN pg_stat_activity USING (pid) WHERE pid <> pg_backend_pid()
UNION ALL
SELECT NULL, owner::text, NULL, gid, extract(epoch FROM clock_timestamp() - prepared)::float
FROM held JOIN pg_locks AS number USING (virtualtransaction)
    JOIN pg_prepared_xacts ON transaction = number.transactionid
WHERE held.pid IS NULL AND number.pid IS NULL AND number.locktype = 'transactionid'
ORDER BY 5 DESC NULLS LAST
"""


def open_transactions(source: Connection) -> list[dict[str, Any]]:
    """Return the transactions that have written into the log and are open or prepared, the oldest first."""
    with source.cursor() as cursor:
        cursor.execute(OPEN_TRANSACTIONS)
        names = ("pid", "user", "application", "prepared_as", "seconds")
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def advisory_locks(source: Connection) -> list[dict[str, Any]]:
    """Return who holds each of our advisory locks. A prepared transaction holds them without a session."""
    return [
        {"lock": name, "pid": holder.pid, "user": holder.user, "application": holder.application}
        for name, number in LOCKS.items()
        for holder in lock_holders(source, number)
    ]
