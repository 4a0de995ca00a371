"""verify.py in a test: tables filled on both sides, writers beside it, and what it found."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from harness.database import ROWS, query
from harness.pipeline import Pipeline

import psycopg2

MANY = 50_000  # rows: some pages
FILL = """
INSERT INTO employees (emp_id, first_name, last_name, dob, city, salary)
SELECT id, 'First' || id, 'Last' || id * 7, date '1950-01-01' + id %% 20000, 'City ' || id %% 1000, id %% 200000
FROM generate_series(1, %(rows)s) AS id
"""
SPECIAL = """
INSERT INTO employees (emp_id, first_name, last_name, dob, city, salary) VALUES
(-2147483648, 'first', 'key', 'infinity', 'Ωmega', -2147483648), (2147483647, 'last', 'key', '-infinity', '', NULL),
(-7, NULL, '', '4714-11-24 BC', E'tab\\t"quote"\\\\\\n[/red]', 0), (0, NULL, NULL, NULL, NULL, NULL)
"""
WITHOUT_LOG = "ALTER TABLE employees DISABLE TRIGGER employee_cdc_trigger"
WITH_LOG = "ALTER TABLE employees ENABLE ALWAYS TRIGGER employee_cdc_trigger"


def verify(pipeline: Pipeline, *options: str, wait: int = 5, script: str = "verify.py") -> dict[str, Any]:
    """Run verify.py --json; returns what it found."""
    result = pipeline.run(script, "--json", "--wait", str(wait), "--limit", "1000", *options)
    assert result.stdout, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    assert result.returncode == (0 if found["equal"] else 1), result.stderr
    return found


def differing(found: dict[str, Any]) -> list[int]:
    return sorted(difference["emp_id"] for difference in found["differences"])


def truth(pipeline: Pipeline) -> list[int]:
    """The employees that differ, found by reading all rows."""
    here, there = ({row[0]: row for row in query(side, ROWS)} for side in (pipeline.source(), pipeline.destination()))
    return sorted(key for key in here.keys() | there.keys() if here.get(key) != there.get(key))


def fill_both(pipeline: Pipeline, rows: int) -> None:
    """Fill both sides with the same rows, not through the pipeline."""
    query(pipeline.source(), f"{WITHOUT_LOG}; {FILL}; {WITH_LOG}", {"rows": rows})
    query(pipeline.destination(), FILL, {"rows": rows})


INSERT = "INSERT INTO employees (emp_id) VALUES (%(key)s) ON CONFLICT DO NOTHING"
UPDATE = "UPDATE employees SET salary = %(salary)s WHERE emp_id = %(key)s"
DELETE = "DELETE FROM employees WHERE emp_id = %(key)s"


@contextmanager
def writers(pipeline: Pipeline, hot: int, first: int = 0, last: int = 0) -> Iterator[None]:
    """Update one employee of the source all the time, and change those from first to last at random."""
    stop, errors = threading.Event(), []

    def write(chosen: random.Random, keys: range, statements: tuple[str, ...]) -> None:
        try:
            with closing(psycopg2.connect(pipeline.source_url)) as source:
                source.autocommit = True
                while not stop.wait(0.002):
                    values = {"key": chosen.choice(keys), "salary": chosen.randint(0, 1_000_000)}
                    query(source, chosen.choice(statements), values)
        except psycopg2.Error as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(random.Random(0), range(hot, hot + 1), (UPDATE,)))]
    for seed in range(1, 4) if last else ():
        arguments = (random.Random(seed), range(first, last + 1), (INSERT, UPDATE, UPDATE, DELETE))
        threads.append(threading.Thread(target=write, args=arguments))
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors
