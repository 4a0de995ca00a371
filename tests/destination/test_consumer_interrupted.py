"""A consumer that is killed or stopped while the destination works for it."""

from __future__ import annotations

import signal
import time

from harness.consuming import SAME_PLACE, change, consuming, start_consumer, wait_until_read
from harness.database import WAITING, query
from harness.destination import ids
from harness.pipeline import Pipeline
from harness.waiting import wait_until

import pytest
from psycopg2.extensions import connection as Connection


def test_a_consumer_killed_while_the_server_works_for_it_loses_nothing(
    shared: Pipeline, destination: Connection
) -> None:
    """The server finishes the statement without us, after the next consumer has begun on the same messages."""
    holder = shared.destination()
    query(holder, "BEGIN; INSERT INTO employees (emp_id) VALUES (3)")
    changes = [change(1_000_000 + n, n, city="new") for n in range(1, 6)]
    shared.send(*changes, change(1_000_006, 3, "UPDATE", city="newest"), partition=0)
    killed = shared.start("consumer.py", **SAME_PLACE)
    wait_until(lambda: query(destination, WAITING) == [(1,)], what="the consumer waits for employee 3")
    killed.kill()
    restarted = shared.start("consumer.py", **SAME_PLACE)
    wait_until(lambda: query(destination, WAITING) == [(2,)], what="so does the next one")
    query(holder, "ROLLBACK")
    wait_until_read(shared)
    cities = [(n, "newest" if n == 3 else "new") for n in range(1, 6)]
    assert query(destination, "SELECT emp_id, city FROM employees ORDER BY emp_id") == cities
    assert restarted.stop() == 0


@pytest.mark.timing
def test_a_stop_finishes_the_batch_in_hand_and_commits_its_offsets(shared: Pipeline, destination: Connection) -> None:
    script = shared.start("consumer.py", **SAME_PLACE)
    script.wait_for("partitions assigned")
    holder = shared.destination()
    query(holder, "BEGIN; LOCK TABLE employees")
    shared.send(*(change(2_000_000 + n, n) for n in range(1, 4)), partition=0)
    wait_until(lambda: query(destination, WAITING) == [(1,)], what="the consumer waits for the table")
    script.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert script.process.poll() is None, script.output()
    query(holder, "COMMIT")
    assert script.process.wait(20) == 0
    assert ids(destination) == [1, 2, 3]
    assert "applied 3 changes in all" in script.output()
    wait_until_read(shared, seconds=5)  # nothing runs: it was committed


def test_a_stop_while_another_consumer_takes_our_place_is_no_failure(shared: Pipeline, destination: Connection) -> None:
    first, holder = start_consumer(shared, **SAME_PLACE), shared.destination()
    query(holder, "BEGIN; INSERT INTO employees (emp_id) VALUES (1)")
    shared.send(change(3_000_000, 1), partition=0)
    wait_until(lambda: query(destination, WAITING) == [(1,)], what="the first one waits for employee 1")
    with consuming(shared) as second:
        second.wait_for("partitions assigned")
        first.process.send_signal(signal.SIGTERM)
        query(holder, "ROLLBACK")
        assert first.process.wait(20) == 0, first.output()
        wait_until_read(shared)
    assert ids(destination) == [1]
