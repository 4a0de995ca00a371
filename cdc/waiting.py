"""Wait for PostgreSQL: stop when asked to, do something useful meanwhile, and report a wait that lasts.

psycopg2 calls `waiter` for each statement that has no answer yet, once `connect` has set it as the wait callback.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from math import inf
from typing import Any, TypeVar

from cdc import cli
from cdc.health import HEALTH
from cdc.outage import LongWait
from cdc.session import wait
from cdc.text import escape

import psycopg2
from psycopg2.extensions import POLL_OK, POLL_READ, set_wait_callback
from psycopg2.extensions import connection as Connection

Result = TypeVar("Result")

STOP_GRACE = 2.0  # seconds that a statement may still take when a stop is requested
ANSWER_WAIT = 1.0  # seconds for the server to say what we wait for, or to cancel it
CHECK_EVERY = 0.1  # seconds between two looks at the stop flag
READ_EVERY = 0.005  # the same while there may be something useful to do

# What our session waits for, and who holds it. A role sees the pid, user and application of every session.
EXPLAIN = """
SET search_path = pg_catalog, pg_temp;
SELECT ours.state = 'active', ours.wait_event, blocker.pid, usename, application_name
FROM (SELECT state, wait_event, pg_blocking_pids(pid) AS blockers FROM pg_stat_activity WHERE pid = %(pid)s) AS ours
    LEFT JOIN LATERAL unnest(blockers) AS blocker (pid) ON true
    LEFT JOIN (SELECT pid, usename, application_name FROM pg_stat_activity) AS theirs ON theirs.pid = blocker.pid
"""
# A consumer that is stopped (SIGSTOP, a paused container) in the middle of a COPY keeps its locks: its session is not
# idle, so idle_in_transaction_session_timeout leaves it alone. Who waits for it, or for somebody who does, ends it.
# Consumers are the sessions with our role and application name.
END_STUCK = """
SET search_path = pg_catalog, pg_temp;
WITH RECURSIVE blocker (pid) AS (
    SELECT unnest(pg_blocking_pids(%(pid)s)) UNION SELECT unnest(pg_blocking_pids(pid)) FROM blocker
)
SELECT pg_terminate_backend(pid) FROM blocker JOIN pg_stat_activity USING (pid)
WHERE usename = current_user AND application_name = current_setting('application_name')
AND state = 'active' AND wait_event = 'ClientRead' AND now() - state_change > interval '5 s'
"""
# Not in a COPY: PostgreSQL would log the row that it has just read.
CANCEL = """
SET search_path = pg_catalog, pg_temp;
SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE pid = %(pid)s AND query NOT LIKE 'COPY %%'
"""


class Session(Connection):
    """A connection that knows which database it leads to."""

    database = ""  # "source at localhost:5433"
    url = ""
    pid = 0  # of the server's process; info.backend_pid is a pooler's own


@dataclass
class Waiter:
    """What happens while PostgreSQL has not answered yet: a wait callback of psycopg2."""

    stop: cli.Stop
    useful: Callable[[], bool] | None = None  # called meanwhile; returns whether there was anything to do
    limit: float = inf  # seconds without an answer after which a statement is given up, unless the server works at it
    give_up: Callable[[str], Any] | None = None  # instead of OperationalError

    @contextmanager
    def doing(self, useful: Callable[[], bool]) -> Iterator[None]:
        """Have something useful done while PostgreSQL works."""
        self.useful = useful
        try:
            yield
        finally:
            self.useful = None

    def apart(self, connection: Connection, work: Callable[[], Result]) -> Result:
        """Do work on a connection in a thread, and wait for it as for one statement. Returns what it returns.

        It is for a transaction with a COPY in it, for which psycopg2 calls no wait callback. Whatever ends the wait
        early cuts the connection off: beside a frozen server, too, the thread must not have it any longer.
        """
        set_wait_callback(None)
        try:
            with ThreadPoolExecutor(1) as thread:
                working = thread.submit(work)
                try:
                    self.wait_for(working, Wait(connection, self))
                finally:
                    if not working.done():
                        cut_off(connection)
            try:
                return working.result()
            finally:
                del working  # it holds what it raises, which holds this frame: Python would keep the batch for long
        finally:
            set_wait_callback(self)

    def wait_for(self, working: Future[Any], wait: Wait) -> None:
        """Return when it is done, and do something useful until then."""
        pause = 0.0 if self.useful else CHECK_EVERY
        while not futures.wait({working}, pause).done:
            wait.check()
            if self.useful is not None:
                pause = 0.0 if self.useful() else READ_EVERY
        wait.long.over()

    def __call__(self, connection: Connection) -> None:
        wait = Wait(connection, self)
        while (state := connection.poll()) != POLL_OK:
            reading, writing = ([connection], []) if state == POLL_READ else ([], [connection])
            pause = 0.0
            while not any(select.select(reading, writing, [], pause)[:2]):
                wait.check()
                pause = CHECK_EVERY
                if self.useful is not None:
                    pause = 0.0 if self.useful() else READ_EVERY
        wait.long.over()


@dataclass
class Wait:
    """The wait for one answer."""

    connection: Connection
    waiter: Waiter
    long: LongWait = field(default_factory=LongWait)
    asked: float = 0.0  # when the server was last asked why (time.monotonic)

    def check(self) -> None:
        """Report a long wait. Raises Stopped when a stop is overdue, OperationalError when the limit is reached."""
        HEALTH.turn()
        if self.waiter.stop.overdue(STOP_GRACE):
            cancel(self.connection)
            raise cli.Stopped
        self.long.check(lambda: f"{name(self.connection)}: {explain(self.connection, end_stuck=True)[0]}")
        waited = time.monotonic() - self.long.started
        if waited > self.waiter.limit and time.monotonic() - self.asked > 1.0:
            self.give_up_if_stuck()

    def give_up_if_stuck(self) -> None:
        reason, stuck = explain(self.connection)
        self.asked = time.monotonic()
        if stuck:
            cancel(self.connection)
            text = f"{reason}; gave up after {self.waiter.limit:.0f} s"
            if self.waiter.give_up is not None:
                self.waiter.give_up(f"{name(self.connection)}: {text}")
            raise psycopg2.OperationalError(text)


waiter = Waiter(cli.STOP)


def name(connection: Connection) -> str:
    return connection.database if isinstance(connection, Session) else f"database {connection.info.dbname}"


def cancel(connection: Connection) -> None:
    """Have the server end our statement, if it answers.

    Not by connection.cancel() first: beside a frozen server it does not return, and it holds Python's lock.
    """
    try:
        ask(connection, CANCEL)
    except psycopg2.OperationalError:  # no session to be had, so the server answers
        with suppress(psycopg2.Error):
            connection.cancel()


def cut_off(connection: Connection) -> None:
    """Shut the connection's socket: whoever waits for the server gets an error, and the server ends the transaction."""
    with suppress(OSError, psycopg2.InterfaceError), socket.socket(fileno=os.dup(connection.fileno())) as ours:
        ours.shutdown(socket.SHUT_RDWR)


def explain(connection: Connection, end_stuck: bool = False) -> tuple[str, bool]:
    """Return what a statement waits for, and whether it waits at all: the server may work at it.

    end_stuck: if it is for a consumer that is stuck in a COPY, end that one's session.
    """
    try:
        rows = ask(connection, EXPLAIN)
    except psycopg2.OperationalError as error:  # no session to be had, so the server answers
        reason = " ".join(str(error).rpartition("FATAL:")[2].split())
        return f"a statement has no answer, and no second session may ask why ({reason})", True
    except psycopg2.Error:
        rows = None
    if rows is None:
        return "does not answer", True
    if not rows or not rows[0][0]:
        return "the session is gone, or its answer was lost", True
    held_by = [describe_session(*row[2:]) for row in rows if row[2] is not None]
    if held_by:
        with suppress(psycopg2.Error):
            if end_stuck and ask(connection, END_STUCK):
                return "a consumer stuck in the middle of a batch had what we wait for, and its session is ended", True
        return f"a statement waits for a lock held by {' and '.join(held_by)}", True
    if rows[0][1] == "SyncRep":
        return "a commit waits for a standby that does not confirm it (synchronous_standby_names)", True
    return "still works at a statement", False


def ask(connection: Connection, question: str) -> list[tuple[Any, ...]] | None:
    """Return the rows of a question about our session; None if the server does not answer in time.

    The connection for it is asynchronous: its waiting does not call the waiter.
    """
    url = connection.url if isinstance(connection, Session) else connection.dsn
    place: dict[str, Any] = {"host": connection.info.host, "port": connection.info.port}  # of several hosts, ours
    until = time.monotonic() + ANSWER_WAIT
    with closing(psycopg2.connect(url, **place, fallback_application_name="employee-cdc", async_=True)) as second:
        if not wait(second, until):
            return None
        cursor = second.cursor()
        pid = connection.pid if isinstance(connection, Session) else connection.info.backend_pid
        cursor.execute(question, {"pid": pid})
        return cursor.fetchall() if wait(second, until) else None


def describe_session(pid: int | None, user: str | None, application: str | None) -> str:
    """Return a session in words; a prepared transaction (None or 0) holds locks without one."""
    if not pid:
        return "a prepared transaction (pg_prepared_xacts names it)"
    user, application = (escape(text or "unknown") for text in (user, application))
    return f"pid {pid}, user {user}, application {application}"
