"""Writers that change the source all the time, whatever becomes of their connections."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from random import Random

from tests.chaos.run import Run

import psycopg2
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

WRITERS = 5
HELD = 0.08  # seconds that a transaction is held open at most
KEYS = 300  # employees that the writers share


@contextlib.contextmanager
def writers_at_work(run: Run, seed: int) -> Iterator[None]:
    """Writers change the source as long as the block runs."""
    run.transactions = [threading.Lock() for _ in range(WRITERS)]
    writers = [
        threading.Thread(target=write, args=(run, Random(f"{seed} {number}"), transaction))
        for number, transaction in enumerate(run.transactions)
    ]
    run.writing.set()
    for writer in writers:
        writer.start()
    try:
        yield
    finally:
        run.over.set()
        for writer in writers:
            writer.join()


def write(run: Run, random: Random, transaction: threading.Lock) -> None:
    """Change the source until the run is over, whatever becomes of the connection."""
    connection: Connection | None = None
    while not run.over.is_set():
        if run.writing.wait(0.1):
            with transaction:
                connection = write_once(run, random, connection)
    if connection:
        connection.close()


def write_once(run: Run, random: Random, connection: Connection | None) -> Connection | None:
    """One transaction; returns the connection, None if it is broken."""
    try:
        connection = connection or psycopg2.connect(run.pipeline.source_url, connect_timeout=5)
        with connection.cursor() as cursor:
            change(cursor, random)
            time.sleep(random.uniform(0, HELD))
        connection.rollback() if random.random() < 0.15 else connection.commit()
    except psycopg2.Error:  # two writers in each other's way, or an outage
        connection = usable(connection)
        time.sleep(0 if connection else 0.1)
    return connection


def usable(connection: Connection | None) -> Connection | None:
    """The connection after an error, rolled back; None if it is broken."""
    with contextlib.suppress(psycopg2.Error):
        if connection:
            connection.rollback()
            return connection
    return None


def change(cursor: Cursor, random: Random) -> None:
    """A transaction's statements."""
    for _ in range(random.randint(1, 5)):
        key, other = random.randint(1, KEYS), random.randint(1, KEYS)
        values = {"key": key, "other": other, "city": f"{random.getrandbits(60):x}", "salary": random.getrandbits(30)}
        undone = random.random() < 0.15
        if undone:
            cursor.execute("SAVEPOINT here")
        cursor.execute(random.choice(CHANGES), values)
        if undone:
            cursor.execute("ROLLBACK TO SAVEPOINT here")


CHANGES = (
    """INSERT INTO employees (emp_id, first_name, last_name, dob, city, salary)
       VALUES (%(key)s, 'Ada', 'Ünal', '1999-12-31', %(city)s, %(salary)s) ON CONFLICT DO NOTHING""",
    "INSERT INTO employees (emp_id, city) VALUES (%(key)s, %(city)s) ON CONFLICT DO NOTHING",
    "UPDATE employees SET city = %(city)s, salary = %(salary)s WHERE emp_id = %(key)s",
    "UPDATE employees SET city = %(city)s WHERE emp_id BETWEEN %(key)s AND %(key)s + 3",
    "UPDATE employees SET last_name = %(city)s, dob = NULL WHERE emp_id = %(key)s",
    "DELETE FROM employees WHERE emp_id = %(key)s",
    """UPDATE employees SET emp_id = %(other)s, city = %(city)s
       WHERE emp_id = %(key)s AND NOT EXISTS (SELECT FROM employees WHERE emp_id = %(other)s)""",
)
