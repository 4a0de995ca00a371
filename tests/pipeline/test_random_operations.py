"""Random operations of random sessions, producer and consumer killed, stopped and started at random points: both tables
are equal in the end."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from random import Random

from harness.consuming import SAME_PLACE
from harness.database import query
from harness.pipeline import Pipeline
from harness.script import Script

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection

EXAMPLES = [pytest.param(number, marks=[] if number < 24 else pytest.mark.long) for number in range(500)]
KEYS = 12  # employees that all sessions share, so that they meet
STATEMENTS = (
    "INSERT INTO employees (emp_id, city, salary) VALUES (%(key)s, %(text)s, %(number)s) ON CONFLICT DO NOTHING",
    """INSERT INTO employees VALUES (%(key)s, %(text)s, NULL, %(dob)s, NULL, %(number)s)
       ON CONFLICT (emp_id) DO UPDATE SET first_name = excluded.first_name, dob = excluded.dob""",
    "INSERT INTO employees (first_name) SELECT %(text)s FROM generate_series(1, %(few)s)",
    "UPDATE employees SET city = %(text)s WHERE emp_id = %(key)s",
    "UPDATE employees SET salary = %(number)s, last_name = %(text)s WHERE emp_id BETWEEN %(key)s AND %(key)s + %(few)s",
    "UPDATE employees SET emp_id = %(other)s WHERE emp_id = %(key)s",
    "UPDATE employees SET emp_id = -emp_id WHERE emp_id BETWEEN %(key)s AND %(key)s + %(few)s",
    "DELETE FROM employees WHERE emp_id = %(key)s",
    "DELETE FROM employees WHERE emp_id % %(few)s = 0 AND emp_id > %(key)s",
    "SAVEPOINT here",
    "ROLLBACK TO SAVEPOINT here",
    "COMMIT",
    "COMMIT",
    "COMMIT",
    "ROLLBACK",
)
TEXTS = ("", "Zoë", "O'Neil \\", '"quoted"', "line\nbreak\t", "😀" * 100, "x" * 100, None)
DATES = ("1970-01-01", "0044-03-15 BC", "infinity", "-infinity", "5874897-12-31", "2024-02-29", None)


@pytest.fixture(scope="module", autouse=True)
def one_place(shared: Pipeline) -> Iterator[None]:
    """A killed consumer is not waited for; and whatever was played, no message was bad."""
    shared.environment.update(SAME_PLACE)
    yield
    assert shared.dead_letters() == []


def session(pipeline: Pipeline) -> Connection:
    """One that gives up a statement rather than wait for another session: all of them are played by one thread."""
    connection: Connection = psycopg2.connect(pipeline.source_url, options="-c lock_timeout=10ms")
    pipeline.connections.append(connection)
    return connection


def operate(random: Random, connection: Connection) -> None:
    """Run a statement in a session's transaction; if it fails, the transaction is rolled back."""
    key, other = random.randint(1, KEYS), random.randint(1, KEYS)
    number, few = random.randint(-(2**31), 2**31 - 1), random.randint(1, 4)
    values = {"key": key, "other": other, "text": random.choice(TEXTS), "dob": random.choice(DATES)}
    statement = random.choice(STATEMENTS) if random.random() > 0.02 else "TRUNCATE employees"
    try:
        query(connection, statement.replace("% %", "%% %"), {**values, "number": number, "few": few})
    except psycopg2.Error:
        connection.rollback()


def running(pipeline: Pipeline, name: str) -> list[Script]:
    return [script for script in pipeline.scripts if name in script.log.name and script.process.poll() is None]


def disturb(random: Random, pipeline: Pipeline) -> None:
    """Start a script that does not run; kill or stop one that does."""
    name = random.choice(("producer.py", "consumer.py"))
    scripts = running(pipeline, name)
    if not scripts:
        pipeline.start(name)
        time.sleep(random.uniform(0, 0.3))
    elif random.random() < 0.7:
        scripts[0].kill()
    else:
        stop(scripts[0])


def stop(script: Script) -> None:
    """SIGTERM: the script may only just have been started, and not be ready for it."""
    assert script.stop() in (0, -signal.SIGTERM), script.output()


@pytest.mark.parametrize("number", EXAMPLES)
def test_both_tables_are_equal_in_the_end(shared: Pipeline, run_seed: int, number: int) -> None:
    """Every second example is the same in every run, the others are new in every run."""
    random = Random(number if number % 2 == 0 else f"{run_seed} {number}")
    sessions = [session(shared) for _ in range(random.randint(1, 4))]
    for _ in range(random.randint(5, 80)):
        operate(random, random.choice(sessions))
        if random.random() < 0.02:
            disturb(random, shared)
    for connection in sessions:
        with suppress(psycopg2.errors.LockNotAvailable):  # commits that notify wait for one another
            connection.commit() if random.random() < 0.8 else connection.rollback()
        connection.close()
    if random.random() < 0.1:  # --once must see all, and end
        for script in running(shared, ""):
            stop(script)
        shared.drain()
        assert shared.equal()
    for name in ("producer.py", "consumer.py"):
        if not running(shared, name):
            shared.start(name)
    shared.wait_until_equal()
    assert not any("Traceback" in script.output() for script in shared.scripts)


def test_nothing_went_to_the_dead_letters(shared: Pipeline) -> None:
    assert shared.dead_letters() == []
