"""Marks at both ends of a load: rows that show when it begins and ends to arrive.

Every system is measured by the same marks and the same clock.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.systems import check_running
from harness.database import query
from harness.script import Script

from psycopg2.extensions import connection as Connection

MARKS = 64  # rows in the load's first transaction, and in its last: some for each partition
FIRST_MARKS = f"INSERT INTO employees (emp_id) SELECT -n FROM generate_series(1, {MARKS}) AS n"
LAST_MARKS = f"INSERT INTO employees (emp_id) SELECT -1000 - n FROM generate_series(1, {MARKS}) AS n"
STEP = 0.005  # seconds between two queries

# One index look-up each, so that watching costs next to nothing.
QUERIES = f"""
PREPARE first AS SELECT CASE WHEN EXISTS (SELECT FROM employees WHERE emp_id BETWEEN -{MARKS} AND -1)
                             THEN ({{count}}) END;
PREPARE last AS SELECT 1 FROM employees WHERE emp_id = -1001;
PREPARE all_last AS SELECT 1 FROM employees WHERE emp_id BETWEEN -1000 - {MARKS} AND -1001 HAVING count(*) = {MARKS}
"""


@dataclass
class Arrival:
    """When a load was visible at the destination, by time.monotonic()."""

    first: float
    last: float
    count: int  # what was there together with the first mark


def watch(destination: Connection, count: str, timeout: float, scripts: Sequence[Script]) -> Arrival:
    """Watch the destination until the load's last mark is visible.

    count: a query, run once in the statement that sees the first mark. It tells how
    much of the load came with it.
    """
    query(destination, f"DEALLOCATE ALL; {QUERIES.format(count=count)}")
    end = time.monotonic() + timeout

    def wait_for(name: str) -> tuple[float, int]:
        while True:
            rows = query(destination, f"EXECUTE {name}")
            if rows and rows[0][0] is not None:
                return time.monotonic(), rows[0][0]
            assert time.monotonic() < end, f"{name} row not visible within {timeout:.0f} s"
            check_running(scripts)
            time.sleep(STEP)

    first, count_at_first = wait_for("first")
    wait_for("last")
    return Arrival(first, wait_for("all_last")[0], count_at_first)
