"""Writers: concurrent transactions that insert employees, each with some work between its INSERT and its COMMIT.

Nothing is arranged: a writer knows neither the other writers nor the polls.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field

import psycopg2
from psycopg2.extensions import connection as Connection

WORK = 0.03  # seconds between INSERT and COMMIT at most, as an application takes that does one thing more
PAUSE = 0.02  # seconds between two transactions at most
HELD = 3  # rows of a transaction that is held open
INSERT = """
INSERT INTO employees (first_name, last_name, city, salary) VALUES ('Writer', %(writer)s, 'Anytown', 1000)
RETURNING emp_id, pg_current_xact_id()::text::bigint
"""


@dataclass(frozen=True)
class Row:
    """An employee that was committed."""

    emp_id: int
    txid: int
    writer: str
    committed: float  # when COMMIT had returned


@dataclass
class Writers:
    """Threads with a session each, and the rows that they have committed."""

    url: str
    rows: list[Row] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    errors: list[str] = field(default_factory=list)

    def add(self) -> None:
        self._start(f"writer {len(self.threads) + 1}", self._write)

    def hold(self) -> Callable[[], None]:
        """Begin a transaction and leave it open; returns what lets it commit."""
        release = threading.Event()
        self._start("held open", lambda connection, name: self._transaction(connection, name, HELD, release.wait))
        return release.set

    def end(self) -> None:
        """Let every transaction commit, and end all threads. One that is held open must have been released."""
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def _start(self, name: str, work: Callable[[Connection, str], None]) -> None:
        def run() -> None:
            try:
                with closing(psycopg2.connect(self.url, application_name=name)) as connection:
                    work(connection, name)
            except psycopg2.Error as error:
                self.errors.append(f"{name}: {' '.join(str(error).split())}")

        thread = threading.Thread(target=run, name=name, daemon=True)
        self.threads.append(thread)
        thread.start()

    def _write(self, connection: Connection, name: str) -> None:
        while not self.stop.is_set():
            self._transaction(connection, name, 1, lambda: time.sleep(random.uniform(0, WORK)))
            time.sleep(random.uniform(0, PAUSE))

    def _transaction(self, connection: Connection, name: str, rows: int, work: Callable[[], object]) -> None:
        with connection.cursor() as cursor:
            inserted = []
            for _ in range(rows):
                cursor.execute(INSERT, {"writer": name})
                inserted += cursor.fetchall()
        work()
        connection.commit()
        now = time.time()
        self.rows.extend(Row(emp_id, txid, name, now) for emp_id, txid in inserted)
