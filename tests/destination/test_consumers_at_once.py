"""Consumers that apply the same employees at the same time."""

from __future__ import annotations

import random
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from cdc import apply as applying
from cdc.postgres import connect
from harness.consuming import (
    change,
    consuming,
    history,
    last_states,
    not_setting,
    start_consumer,
    wait_until_read,
)
from harness.database import BACKWARDS, WAITING, WATCH, query
from harness.destination import alter_destination, apply, wait_for_rows
from harness.pipeline import Pipeline
from harness.waiting import wait_until

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection

LOCK_GATE_OF = "SELECT FROM cdc_applied WHERE emp_id = {} FOR UPDATE"


def test_consumers_side_by_side_never_replace_a_newer_state(shared: Pipeline, destination: Connection) -> None:
    """Three sessions apply all of one history at once, each in an order of its own, again after a deadlock."""
    values, _ = history(employees=40, changes=25)
    query(destination, WATCH)
    try:

        def apply_all(number: int) -> None:
            shuffled = random.sample(values, len(values))
            with closing(connect("destination", shared.destination_url, applying.SESSION)) as session:
                while shuffled:
                    count = random.randint(1, 30)
                    try:
                        apply(session, *shuffled[:count])
                        del shuffled[:count]
                    except psycopg2.OperationalError:
                        query(session, "ROLLBACK")

        with ThreadPoolExecutor() as pool:
            list(pool.map(apply_all, range(3), timeout=60))
        assert query(destination, BACKWARDS) == [(0,)]
        assert query(destination, "SELECT emp_id, salary FROM employees ORDER BY emp_id") == last_states(values)
        assert query(destination, "SELECT count(*) > 40 FROM seen") == [(True,)]
    finally:
        query(destination, "DROP TRIGGER watch ON employees; DROP FUNCTION watch; DROP TABLE seen")


def test_consumers_that_deadlock_over_the_same_employees_end_right(shared: Pipeline, destination: Connection) -> None:
    """Known keys are locked before new ones. Here employee 3 is new to the first and known to the second, employee 5
    known to both: PostgreSQL ends one of them, and its second try finds what the other has done."""
    apply(destination, change(1, 5))
    query(destination, "INSERT INTO cdc_applied SELECT generate_series(1001, 20000), 1; ANALYZE cdc_applied")
    holder, first, second, third = (shared.destination() for _ in range(4))
    query(holder, "BEGIN; SELECT FROM cdc_applied WHERE emp_id = 5 FOR UPDATE")

    def apply_persistently(session: Connection, *values: str) -> None:
        while True:
            try:
                apply(session, *values)
                return
            except psycopg2.OperationalError:  # a few times, perhaps: the third one is in it, too
                query(session, "ROLLBACK")

    with ThreadPoolExecutor() as pool:
        parts = [pool.submit(apply_persistently, first, change(12, 3, city="first"), change(15, 5, city="first"))]
        wait_until(lambda: query(destination, WAITING) == [(1,)], what="the first waits for employee 5")
        parts.append(pool.submit(apply_persistently, third, change(2, 3, "DELETE")))
        wait_until(lambda: parts[1].done() or query(destination, WAITING) == [(2,)], what="employee 3 becomes known")
        parts.append(
            pool.submit(apply_persistently, second, change(22, 3, city="second"), change(25, 5, city="second"))
        )
        wait_until(lambda: query(destination, WAITING) >= [(2,)], what="the second waits for employee 5")
        query(holder, "COMMIT")
        for part in parts:
            part.result(20)
    assert query(destination, "SELECT * FROM cdc_applied WHERE emp_id < 10 ORDER BY 1") == [(3, 22), (5, 25)]
    assert query(destination, "SELECT emp_id, city FROM employees ORDER BY 1") == [(3, "second"), (5, "second")]


def test_a_deadlock_is_no_dead_letter(shared: Pipeline, destination: Connection) -> None:
    """The consumer's wait closes the circle, so that it is the one that PostgreSQL ends, however slow the machine is:
    a session looks for a deadlock once, a second after it has begun to wait, and the stranger never does."""
    apply(destination, *(change(emp_id, emp_id) for emp_id in (1, 2, 3)))
    holder, stranger = shared.destination(), shared.destination()
    query(holder, f"BEGIN; {LOCK_GATE_OF.format(2)}")
    query(stranger, f"SET deadlock_timeout = '10min'; BEGIN; {LOCK_GATE_OF.format(3)}")
    shared.send(*(change(10 + emp_id, emp_id, "UPDATE", city="new") for emp_id in (1, 2, 3)), partition=0)
    with consuming(shared) as script, ThreadPoolExecutor() as pool:
        wait_until(lambda: query(destination, WAITING) == [(1,)], what="the consumer has employee 1, waits for 2")
        stranger_ends = pool.submit(query, stranger, f"{LOCK_GATE_OF.format(1)}; COMMIT")
        wait_until(lambda: query(destination, WAITING) == [(2,)], what="the stranger has employee 3, waits for 1")
        query(holder, "COMMIT")
        script.wait_for("deadlock detected; waiting")
        stranger_ends.result(20)
        wait_until_read(shared)
        assert query(destination, "SELECT city, count(*) FROM employees GROUP BY city") == [("new", 3)]
        assert "dead letter" not in script.output()


def test_a_serialization_failure_is_no_dead_letter(shared: Pipeline, destination: Connection) -> None:
    apply(destination, change(1, 1))
    alter_destination(shared, "SET default_transaction_isolation = 'repeatable read'")
    try:
        stranger = shared.destination()
        query(stranger, "BEGIN; UPDATE cdc_applied SET cdc_id = 2 WHERE emp_id = 1")
        shared.send(change(11, 1, "UPDATE", city="new"), partition=0)
        with consuming(shared, not_setting(shared, "default_transaction_isolation")) as script:
            wait_until(lambda: query(destination, WAITING) == [(1,)], what="the consumer waits for employee 1")
            query(stranger, "COMMIT")
            script.wait_for("could not serialize access due to concurrent update; waiting")
            wait_until_read(shared)
            assert query(destination, "SELECT city FROM employees") == [("new",)]
            assert "dead letter" not in script.output()
    finally:
        alter_destination(shared, "RESET default_transaction_isolation")


@pytest.mark.timing
def test_a_consumer_that_is_frozen_inside_its_statement_does_not_hold_up_the_one_that_takes_over(
    shared: Pipeline, destination: Connection
) -> None:
    """One round trip is the whole transaction: PostgreSQL ends it without the consumer, and no lock stays."""
    user, first = shared.destination(), start_consumer(shared)
    shared.send(change(1_000_000, 1), partition=0)
    wait_for_rows(shared, [1])
    query(user, "BEGIN; UPDATE employees SET city = 'mine' WHERE emp_id = 1")
    shared.send(change(1_000_001, 1, salary=1), partition=0)
    wait_until(lambda: query(destination, WAITING) == [(1,)], what="the first consumer waits for the row")
    first.process.send_signal(signal.SIGSTOP)
    query(user, "COMMIT")
    shared.send(change(1_000_002, 1, salary=2), partition=0)
    with consuming(shared):
        wait_until(lambda: query(destination, "SELECT salary FROM employees") == [(2,)], 12)
        first.process.send_signal(signal.SIGCONT)
        wait_until_read(shared)
        assert first.stop() == 0
        assert query(destination, "SELECT salary FROM employees") == [(2,)]
