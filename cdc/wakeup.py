"""The advisory locks of the producer: who is the active one, and how it sleeps without missing a change.

NOTIFY takes a lock of the whole server at commit. So writers notify only a producer that sleeps, and they find out by
trying a lock that a sleeping producer holds:

    writer (trigger)                        producer
    ----------------                        --------
    try ASLEEP shared, until commit         awake: polls, nobody has to notify
      got it   -> the producer is awake     falling asleep:
      not got  -> NOTIFY at commit            1. take ASLEEP exclusively. A writer that saw us awake shares it until
                                                 it commits, so we may have to poll and try again.
                                              2. poll once more: all such writers have committed.
                                              3. asleep: wait for NOTIFY. Every later writer fails to share the lock.
                                            awake again: give ASLEEP back

No change can fall between. POLL_INTERVAL is the floor if a notification is lost or switched off.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import time
from dataclasses import dataclass

import config
from cdc import cli
from cdc.waiting import describe_session
from config import SCHEMA

from psycopg2.extensions import connection as Connection

log = logging.getLogger(__name__)

CDC = 6513763  # 'cdc' in ASCII; sql/source.sql uses the same numbers
ACTIVE, ASLEEP = 1, 2

# Seconds that let the next page fill under steady load. The faster the changes come the longer: writers want the CPU.
PAUSE, PAUSE_PER_CHANGE, LONGEST_PAUSE = 0.002, 0.0001, 0.02
FEW = 5  # changes; a page this small is neither worth a pause nor waking up for
RETRY, MAX_ATTEMPTS = 0.002, 10  # seconds before the first try to fall asleep again; after MAX_ATTEMPTS tries ten times
LONGEST_RETRY = 0.5  # seconds, however long a poll took: it may have been we who were stopped

SCRIPT, LONGEST_NAME = ", script ", 63  # bytes that PostgreSQL keeps of an application name

TRY_LOCK = f"SELECT pg_try_advisory_lock({CDC}, %(lock)s)"
UNLOCK = f"SELECT pg_advisory_unlock({CDC}, %(lock)s)"
# Who holds a lock. Any role that may connect can take an advisory lock. A producer is a session that may save the
# position and has the application name that our own connections have. What our role may not see of a session is NULL;
# a prepared transaction holds locks without a session. Writers share ASLEEP, and are not meant.
HOLDERS = f"""
SELECT pid, usename, application_name, CASE WHEN client_port = -1 THEN 'local' ELSE host(client_addr) END,
       coalesce(split_part(application_name, '{SCRIPT}', 1) =
                    split_part(current_setting('application_name'), '{SCRIPT}', 1)
                AND has_table_privilege(usesysid, '{SCHEMA}.cdc_position', 'UPDATE'), false)
FROM pg_locks LEFT JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND classid = {CDC} AND objid = %(lock)s AND objsubid = 2 AND granted
  AND (mode = 'ExclusiveLock' OR objid = {ACTIVE})
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
ORDER BY pid
"""
ROOM = "SELECT %(longest)s - octet_length(current_setting('application_name'))"
INTRODUCE = "SELECT set_config('application_name', current_setting('application_name') || %(script)s, false)"
HELD = "the producer lock is held by {}; if that is no producer, end it with pg_terminate_backend(pid)"


@dataclass(frozen=True)
class Holder:
    """A session that holds the lock ACTIVE. Strangers who share the lock may be several."""

    pid: int | None
    user: str | None
    application: str | None
    address: str | None
    is_producer: bool

    def __str__(self) -> str:
        return describe_session(self.pid, self.user, self.application)

    @property
    def script(self) -> str:
        """The process that the session belongs to, such as "77 on db1"; "" if it has not introduced itself."""
        return (self.application or "").partition(SCRIPT)[2]


def introduce(source: Connection) -> None:
    """Add our process and host to the session's application name: they are what an operator can act upon."""
    process = f"{SCRIPT}{os.getpid()} on "
    with source.cursor() as cursor:
        cursor.execute(ROOM, {"longest": LONGEST_NAME})
        ((room,),) = cursor.fetchall()
        if room > len(process):  # half of it would not be known as ours
            cursor.execute(INTRODUCE, {"script": (process + socket.gethostname())[:room]})


def lock_holders(source: Connection, lock: int = ACTIVE) -> list[Holder]:
    """Return who holds a lock now; an empty list if it was given back meanwhile."""
    with source.cursor() as cursor:
        cursor.execute(HOLDERS, {"lock": lock})
        return [Holder(*row) for row in cursor.fetchall()]


def name_strangers(holders: list[Holder]) -> str:
    """Return the holders in words, or "" where a producer is among them."""
    return "" if any(holder.is_producer for holder in holders) else " and ".join(map(str, holders))


def try_lock(source: Connection, lock: int) -> bool:
    with source.cursor() as cursor:
        cursor.execute(TRY_LOCK, {"lock": lock})
        return bool(cursor.fetchall()[0][0])


@dataclass
class Rest:
    """What the producer does between two polls: pause, fall asleep, or wait for a writer.

    Small pages are published asleep: the next change notifies, and nothing has to be asked. A larger page wakes the
    producer up, because writers at that rate would pay for notifying.
    """

    source: Connection
    stop: cli.Stop
    asleep: bool = False
    attempts: int = 0  # to fall asleep, in vain

    def after(self, count: int, full: bool, took: float, until: float) -> None:
        """Rest after a poll of took seconds that published count changes.

        full: more may be waiting, so there is no pause. until: when to come back at the latest (time.monotonic).
        """
        if count:
            self.attempts = 0
            if self.asleep and count > FEW:
                self.wake_up()
            elif count > FEW and not full:  # the second such page: a steady load
                self.stop.sleep(min(max(PAUSE, PAUSE_PER_CHANGE * count), LONGEST_PAUSE))
        if self.asleep:
            self.wait_for_writer(until)
        elif not count:
            self.fall_asleep(took)

    def fall_asleep(self, took: float) -> None:
        """Try to; the next poll is the one that sees all writers who saw us awake."""
        self.asleep = try_lock(self.source, ASLEEP)
        if not self.asleep:
            # A writer that saw us awake has yet to commit. A poll wades through all that it has logged.
            self.attempts = min(self.attempts + 1, MAX_ATTEMPTS)
            self.stop.sleep(min(max(RETRY * self.attempts, 5 * took), LONGEST_RETRY))

    def wait_for_writer(self, until: float) -> None:
        """Return when a writer notifies, at the latest after POLL_INTERVAL or at the time until (time.monotonic)."""
        end = min(time.monotonic() + config.POLL_INTERVAL, until)
        while not self.source.notifies and not self.stop.requested and (left := end - time.monotonic()) > 0:
            if select.select([self.source], [], [], min(left, 0.5))[0]:
                self.source.poll()
        self.source.notifies.clear()

    def wake_up(self) -> None:
        with self.source.cursor() as cursor:
            cursor.execute(UNLOCK, {"lock": ASLEEP})
        self.asleep = False
