"""sql/trim.sql, the way of docs/operations.md to take deleted employees out of the gate."""

from __future__ import annotations

import random
import re
import threading

from harness import ROOT
from harness.database import WAITING, query
from harness.pipeline import Pipeline
from harness.waiting import wait_until

from psycopg2.extensions import connection as Connection

TRIM = (ROOT / "sql" / "trim.sql").read_text(encoding="utf-8")
KEPT = "SELECT emp_id FROM public.cdc_applied ORDER BY emp_id"
(OLDEST,) = re.findall(r"'(SELECT .*min\(cdc_id\).*)'", (ROOT / "docs" / "operations.md").read_text(encoding="utf-8"))


def oldest(source: Connection) -> str:
    ((offset,),) = query(source, OLDEST)
    return str(offset)


def trimmed(oldest: str) -> str:
    statements = "\n".join(line for line in TRIM.splitlines() if not line.startswith("--"))
    assert ":oldest" in statements
    return statements.replace(":oldest", oldest)


def test_deleted_employees_go_that_the_log_knows_no_more_and_all_others_stay(pipeline: Pipeline) -> None:
    source, destination = pipeline.source(), pipeline.destination()
    query(source, "INSERT INTO employees (emp_id) SELECT generate_series(1, 5)")
    query(source, "DELETE FROM employees WHERE emp_id IN (1, 2)")
    pipeline.drain()
    query(source, "DELETE FROM emp_cdc")  # by the producer, once RETENTION is over
    query(source, "DELETE FROM employees WHERE emp_id = 3")
    pipeline.drain()
    assert query(destination, KEPT) == [(1,), (2,), (3,), (4,), (5,)]
    query(destination, trimmed(oldest(source)))
    assert query(destination, KEPT) == [(3,), (4,), (5,)]
    query(source, "INSERT INTO employees (emp_id) VALUES (2)")
    pipeline.drain()
    assert pipeline.equal()


def test_where_the_log_is_empty_all_deleted_employees_go_but_the_last(pipeline: Pipeline) -> None:
    source, destination = pipeline.source(), pipeline.destination()
    query(source, "INSERT INTO employees (emp_id) SELECT generate_series(1, 3)")
    query(source, "DELETE FROM employees WHERE emp_id < 3")
    pipeline.drain()
    query(source, "DELETE FROM emp_cdc")
    query(destination, trimmed(oldest(source)))
    assert query(destination, KEPT) == [(2,), (3,)]  # 2 has the newest change of all


def test_a_consumer_in_the_middle_of_a_change_waits_and_applies_it(running: Pipeline) -> None:
    source, destination = running.source(), running.destination()
    query(source, "INSERT INTO employees (emp_id) VALUES (1)")
    query(source, "DELETE FROM employees WHERE emp_id = 1")
    running.wait_until_equal()
    query(source, "DELETE FROM emp_cdc WHERE cdc_id < (SELECT max(cdc_id) FROM emp_cdc)")
    query(source, "INSERT INTO employees (emp_id) VALUES (-2)")
    running.wait_until_equal()
    query(destination, trimmed(oldest(source) + " + 1").rsplit("COMMIT", 1)[0])
    assert (1,) not in query(destination, KEPT)
    query(source, "INSERT INTO employees (emp_id) VALUES (1)")
    watcher = running.destination()
    wait_until(lambda: query(watcher, WAITING) == [(1,)])
    query(destination, "COMMIT")
    running.wait_until_equal()


def test_trimming_all_the_time_loses_nothing(running: Pipeline) -> None:
    source, destination, over = running.source(), running.destination(), threading.Event()
    chosen = random.Random(1)

    def trim() -> None:
        reader = running.source()
        while not over.wait(0.02):
            query(destination, trimmed(f"(SELECT {oldest(reader)})"))

    trimmer = threading.Thread(target=trim)
    trimmer.start()
    try:
        for _ in range(600):
            emp_id = {"id": chosen.randint(1, 8)}
            if chosen.random() < 0.5:
                query(source, "DELETE FROM employees WHERE emp_id = %(id)s", emp_id)
            else:
                query(source, "INSERT INTO employees (emp_id) VALUES (%(id)s) ON CONFLICT DO NOTHING", emp_id)
            if chosen.random() < 0.1:  # what is published, as if RETENTION were nothing
                query(source, "DELETE FROM emp_cdc WHERE cdc_id <= (SELECT last_offset - 1 FROM cdc_position)")
    finally:
        over.set()
        trimmer.join()
    running.wait_until_equal()
