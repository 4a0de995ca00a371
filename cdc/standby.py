"""One producer is active. Another stands by, and takes over when the first one's session ends, or does nothing more.

PostgreSQL releases the lock ACTIVE with the session that holds it. A producer that was stopped (SIGSTOP, a paused
container) keeps its session, because its kernel answers for it. So an active producer runs a statement at least every
10 s, and a standby that sees none for FROZEN_AFTER seconds ends that session. A producer that goes on afterwards has no
session left. It can neither read another page nor save its position.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import datetime

from cdc import cli, metrics
from cdc.flush import flusher
from cdc.wakeup import ACTIVE, HELD, Holder, lock_holders, name_strangers, try_lock

import psycopg2
from psycopg2.extensions import connection as Connection

log = logging.getLogger(__name__)

CHECK_EVERY = 0.5  # seconds between two checks of a standby
LONGEST_CHECK = 1.0  # seconds that a check counts at most: a standby that was stopped itself has seen nothing meanwhile
FROZEN_AFTER = 20.0  # seconds without a statement
ALIVE_EVERY = 5.0  # seconds between two statements of an active producer that waits for Kafka

# Whether the session waits for its client: for a statement, or for an answer to be read. NULL: we may not see it.
STATE = """
SELECT nullif(state, 'disabled') LIKE 'idle%%' OR coalesce(wait_event, '') = 'ClientWrite', state_change
FROM pg_stat_activity WHERE pid = %(pid)s
"""
END = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = %(pid)s AND state_change = %(changed)s"


def become_active(source: Connection, stop: cli.Stop) -> None:
    """Wait until no other producer is active. From then on, keep our session alive while we wait for Kafka."""
    watch = Watch(source)
    reported: str | None = None
    while not stop.requested and not try_lock(source, ACTIVE):
        holders = lock_holders(source)
        if holders and (strangers := name_strangers(holders)) != reported:
            if strangers:
                log.warning("standing by: %s", HELD.format(strangers))
            else:
                log.info("another producer is active; standing by")
            reported = strangers
        watch.check(holders)
        stop.sleep(CHECK_EVERY)
    flusher.useful = Alive(source)
    metrics.ACTIVE.set(not stop.requested)


def become_active_or_exit(source: Connection) -> None:
    """Become active at once, or exit with one line that says who is."""
    while not try_lock(source, ACTIVE):
        if holders := lock_holders(source):
            if strangers := name_strangers(holders):
                cli.fail(f"nothing published: {HELD.format(strangers)}")
            cli.fail("another producer is active; it publishes what is there")


@dataclass
class Alive:
    """What an active producer does while it waits for Kafka, so that no standby takes it for frozen."""

    source: Connection
    due: float = 0.0  # time.monotonic

    def __call__(self) -> None:
        if time.monotonic() >= self.due:
            with self.source.cursor() as cursor:
                cursor.execute("SELECT 1")
            self.due = time.monotonic() + ALIVE_EVERY


@dataclass
class Watch:
    """Whether the active producer has run a statement since the last check."""

    source: Connection
    seen: tuple[int | None, datetime | None] = (None, None)  # its pid, and when it began to wait for its client
    still: float = 0.0  # seconds for which that has been the same
    checked: float = 0.0  # time.monotonic
    warned: bool = False

    def check(self, holders: list[Holder]) -> None:
        """End the session of a producer that has run no statement for FROZEN_AFTER seconds."""
        now, holder = time.monotonic(), next((holder for holder in holders if holder.is_producer), None)
        waits, changed = self.ask(holder) if holder else (False, None)
        if waits is None:
            self.warn(f"standing by: {holder} is active, and we may not see whether it is frozen; give both one role")
        seen = (holder.pid if holder else None, changed)
        if waits and seen == self.seen:
            self.still += min(now - self.checked, LONGEST_CHECK)
        else:
            self.still = 0.0
        self.seen, self.checked = seen, now
        if holder and self.still >= FROZEN_AFTER:
            self.end(holder)

    def ask(self, holder: Holder) -> tuple[bool | None, datetime | None]:
        with self.source.cursor() as cursor:
            cursor.execute(STATE, {"pid": holder.pid})
            return cursor.fetchone() or (False, None)

    def end(self, holder: Holder) -> None:
        pid, changed = self.seen
        text = f"the active producer, {holder}, has done nothing for {FROZEN_AFTER:.0f} s"
        try:
            with self.source.cursor() as cursor:
                cursor.execute(END, {"pid": pid, "changed": changed})
                ended = cursor.fetchall()
        except psycopg2.errors.InsufficientPrivilege:
            self.warn(f"{text}, and we may not end its session; do it: SELECT pg_terminate_backend({pid})")
        else:
            if ended:
                log.warning("%s: its session is ended", text)
            self.still = 0.0

    def warn(self, text: str) -> None:
        if not self.warned:
            log.warning("%s", text)
        self.warned = True
