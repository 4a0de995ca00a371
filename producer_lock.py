"""Who holds the active producer's lock. Any role that may connect can take an advisory lock, not only a producer."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg2.extensions import connection as Connection

POSITION = "cdc_position"
# A producer may save the position, and has the application name that our own settings give. What another role may not
# see of a session (address, without pg_read_all_stats) is NULL. A prepared transaction holds locks without a session.
HOLDERS = """
SELECT pid, usename, application_name, CASE WHEN client_port = -1 THEN 'local' ELSE host(client_addr) END,
       coalesce(application_name = current_setting('application_name')
                AND has_table_privilege(usesysid, %(position)s, 'UPDATE'), false)
FROM pg_locks LEFT JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND classid = 6513763 AND objid = 1 AND objsubid = 2 AND granted
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
ORDER BY pid
"""


@dataclass(frozen=True)
class Holder:
    """A session that holds the lock. Strangers who share it may be several."""

    pid: int | None
    user: str | None
    application: str | None
    address: str | None
    is_producer: bool

    def __str__(self) -> str:
        if self.pid is None:
            return "a prepared transaction (pg_prepared_xacts names it)"
        user, application = (printable(name or "unknown") for name in (self.user, self.application))
        return f"pid {self.pid}, user {user}, application {application}"


def printable(name: str) -> str:
    """The name as one line: its control characters, which a terminal would act upon, escaped."""
    return repr(name)[1:-1]


def lock_holders(source: Connection) -> list[Holder]:
    """Return who holds the lock now; nobody if it was given up meanwhile."""
    with source.cursor() as cursor:
        cursor.execute(HOLDERS, {"position": POSITION})
        return [Holder(*row) for row in cursor.fetchall()]


def strangers(holders: list[Holder]) -> str:
    """Name the holders, or nobody where a producer is among them."""
    return "" if any(holder.is_producer for holder in holders) else " and ".join(map(str, holders))
