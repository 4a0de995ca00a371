"""verify.py --repair: it mends every difference through the pipeline."""

from __future__ import annotations

import time

from harness.database import WAITING, query
from harness.pipeline import Pipeline
from harness.verifying import MANY, WITH_LOG, WITHOUT_LOG, differing, fill_both, verify, writers
from harness.waiting import wait_until

import pytest


def test_repair_mends_all_kinds_of_differences_while_writers_run(running: Pipeline) -> None:
    fill_both(running, MANY)
    destination = running.destination()
    with writers(running, 40_500, 1, 30_000):
        query(destination, "UPDATE employees SET city = 'planted' WHERE emp_id % 100 = 0")
        query(destination, "DELETE FROM employees WHERE emp_id % 1000 = 1")
        query(destination, "INSERT INTO employees (emp_id) SELECT generate_series(-50, -11)")
        found = verify(running, "--repair")
        assert found["equal"]
        assert found["repaired"] > 200  # those that the writers leave alone
        found = verify(running)
        assert (found["equal"], found["repaired"]) == (True, 0)
    running.wait_until_equal()


def test_repair_sends_nothing_but_what_differs(running: Pipeline) -> None:
    source = running.source()
    query(source, "INSERT INTO employees (emp_id) SELECT generate_series(1, 20)")
    running.wait_until_equal()
    ((before,),) = query(source, "SELECT max(cdc_id) FROM emp_cdc")
    query(
        running.destination(),
        "UPDATE employees SET city = 'x' WHERE emp_id = 3; DELETE FROM employees WHERE emp_id = 4",
    )
    query(running.destination(), "INSERT INTO employees (emp_id) VALUES (21)")
    assert verify(running, "--repair")["repaired"] == 3
    sent = query(source, "SELECT emp_id, action FROM emp_cdc WHERE cdc_id > %s ORDER BY emp_id", (before,))
    assert sent == [(3, "UPDATE"), (4, "UPDATE"), (21, "DELETE")]


def test_repair_works_where_the_log_has_been_pruned_or_was_bypassed(running: Pipeline) -> None:
    source = running.source()
    query(source, "INSERT INTO employees (emp_id) SELECT generate_series(1, 10)")
    running.wait_until_equal()
    query(source, "DELETE FROM emp_cdc")
    query(source, WITHOUT_LOG)
    query(source, "UPDATE employees SET city = 'x' WHERE emp_id = 1; DELETE FROM employees WHERE emp_id = 2")
    query(source, WITH_LOG)
    query(running.destination(), "UPDATE employees SET city = 'y' WHERE emp_id = 3")
    found = verify(running)
    assert (differing(found), found["on_their_way"]) == ([1, 2, 3], 0)
    assert verify(running, "--repair")["equal"]
    assert running.equal()


def test_repair_brings_a_restored_destination_up_to_date(running: Pipeline) -> None:
    """Its changes have been read from the topic: they would not come by themselves."""
    source, destination = running.source(), running.destination()
    query(source, "INSERT INTO employees (emp_id, city) SELECT generate_series(1, 10), 'old'")
    running.wait_until_equal()
    query(destination, "CREATE TABLE backup AS TABLE employees; CREATE TABLE gates AS TABLE cdc_applied")
    query(
        source, "UPDATE employees SET city = 'new' WHERE emp_id BETWEEN 1 AND 5; DELETE FROM employees WHERE emp_id = 6"
    )
    running.wait_until_equal()
    query(destination, "TRUNCATE employees, cdc_applied")
    query(destination, "INSERT INTO employees TABLE backup; INSERT INTO cdc_applied TABLE gates")
    found = verify(running, wait=1)
    assert (differing(found), found["on_their_way"]) == ([1, 2, 3, 4, 5, 6], 6)
    found = verify(running, "--repair", wait=2)
    assert (found["equal"], found["repaired"]) == (True, 6)
    assert running.equal()


def test_repair_of_what_the_destination_refuses_ends_and_says_so(running: Pipeline) -> None:
    query(running.source(), "INSERT INTO employees (emp_id, city) VALUES (1, 'Rome')")
    running.wait_until_equal()
    query(running.destination(), "ALTER TABLE employees ADD CONSTRAINT known CHECK (city <> 'Atlantis')")
    query(running.source(), "UPDATE employees SET city = 'Atlantis' WHERE emp_id = 1")
    for _ in range(2):
        found = verify(running, "--repair", wait=1)
        assert (differing(found), found["on_their_way"], found["repaired"]) == ([1], 1, 0)
    query(running.destination(), "ALTER TABLE employees DROP CONSTRAINT known")
    assert verify(running, "--repair", wait=1)["repaired"] == 1


def test_repair_does_not_send_what_is_yet_to_be_published(pipeline: Pipeline) -> None:
    query(pipeline.source(), "INSERT INTO employees (emp_id) VALUES (1)")
    assert verify(pipeline, "--repair", wait=1)["on_their_way"] == 1
    assert query(pipeline.source(), "SELECT count(*) FROM emp_cdc") == [(1,)]


def test_repair_without_a_pipeline_ends_and_what_it_sent_arrives_later(pipeline: Pipeline) -> None:
    query(pipeline.destination(), "INSERT INTO employees (emp_id) VALUES (1)")
    found = verify(pipeline, "--repair", wait=1)
    assert (found["different"], found["on_their_way"]) == (1, 1)
    pipeline.drain()
    assert verify(pipeline)["equal"]


def test_a_row_that_the_source_is_inserting_is_not_deleted_by_repair(running: Pipeline) -> None:
    query(running.destination(), "INSERT INTO employees (emp_id, city) VALUES (9, 'stray')")
    watcher, inserting = running.source(), running.source()
    query(inserting, "BEGIN")
    query(inserting, "INSERT INTO employees (emp_id, city) VALUES (9, 'Rome')")
    repairing = running.start("verify.py", "--repair", "--wait", "5")
    wait_until(lambda: query(watcher, WAITING) == [(1,)], what="repair waits for who writes")
    query(inserting, "COMMIT")
    assert repairing.process.wait(20) == 0, repairing.output()
    running.wait_until_equal()
    assert query(running.destination(), "SELECT city FROM employees WHERE emp_id = 9") == [("Rome",)]


@pytest.mark.timing
def test_repair_holds_nobody_up_while_a_long_transaction_is_open(running: Pipeline) -> None:
    source, long, destination = running.source(), running.source(), running.destination()
    query(source, "INSERT INTO employees (emp_id) SELECT generate_series(1, 10)")
    running.wait_until_equal()
    query(destination, "UPDATE employees SET city = 'x' WHERE emp_id <= 10")
    query(destination, "INSERT INTO employees (emp_id) VALUES (11)")
    query(long, "BEGIN")
    query(long, "UPDATE employees SET salary = 5 WHERE emp_id = 5")
    repairing = running.start("verify.py", "--repair", "--wait", "20")
    wait_until(lambda: query(destination, "SELECT count(*) FROM employees WHERE city = 'x'") == [(1,)])
    slowest = 0.0
    query(source, "SET statement_timeout = '5s'")
    for salary in range(150):
        started = time.monotonic()
        query(source, "UPDATE employees SET salary = %s WHERE emp_id = 6", (salary,))
        slowest = max(slowest, time.monotonic() - started)
        time.sleep(0.02)
    assert repairing.process.poll() is None
    assert query(destination, "SELECT city FROM employees WHERE emp_id IN (5, 11) ORDER BY emp_id") == [("x",), (None,)]
    query(long, "COMMIT")
    assert repairing.process.wait(30) == 0, repairing.output()
    running.wait_until_equal()
    assert slowest < 1.0


def test_repair_gives_up_on_what_stays_locked(running: Pipeline) -> None:
    query(running.source(), "INSERT INTO employees (emp_id) VALUES (1)")
    running.wait_until_equal()
    query(running.destination(), "UPDATE employees SET city = 'x' WHERE emp_id = 1")
    query(running.destination(), "INSERT INTO employees (emp_id) VALUES (2)")
    long = running.source()
    query(long, "BEGIN")
    query(long, "SELECT FROM employees WHERE emp_id = 1 FOR UPDATE")
    query(long, "LOCK TABLE employees IN ROW EXCLUSIVE MODE")
    found = verify(running, "--repair", wait=1)
    assert (differing(found), found["on_their_way"]) == ([1, 2], 0)
