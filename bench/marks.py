"""A load with marks at both ends: the same clock for every system."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from psycopg2.extensions import connection as Connection

from bench.systems import ended
from tests.pipeline import Script, query

MARKS = 64  # rows in the load's first transaction, and in its last: each partition gets some of both
FIRST_MARKS = f"INSERT INTO employees (emp_id) SELECT -n FROM generate_series(1, {MARKS}) AS n"
LAST_MARKS = f"INSERT INTO employees (emp_id) SELECT -1000 - n FROM generate_series(1, {MARKS}) AS n"
STEP = 0.005  # seconds between two looks at the destination

LOOK = f"""
PREPARE first AS SELECT CASE WHEN EXISTS (SELECT FROM employees WHERE emp_id BETWEEN -{MARKS} AND -1)
                             THEN ({{count}}) END;
PREPARE last AS SELECT 1 FROM employees WHERE emp_id = -1001;
PREPARE all_last AS SELECT 1 FROM employees WHERE emp_id BETWEEN -1000 - {MARKS} AND -1001 HAVING count(*) = {MARKS}
"""


@dataclass
class Arrival:
    """When a load was seen at the destination (time.monotonic()), and what count gave when the first of it was."""

    first: float
    last: float
    count: int


def watch(destination: Connection, count: str, timeout: float, scripts: Sequence[Script]) -> Arrival:
    """Look at the destination every few milliseconds until the last row of the load is visible: one index look-up each
    time, so that watching costs a system next to nothing, and every system the same. count is run once, with the look
    that finds the load's first row: how much of the load came with it."""
    query(destination, f"DEALLOCATE ALL; {LOOK.format(count=count)}")
    end = time.monotonic() + timeout

    def seen(name: str) -> tuple[float, int]:
        while True:
            found = query(destination, f"EXECUTE {name}")
            if found and found[0][0] is not None:
                return time.monotonic(), found[0][0]
            assert time.monotonic() < end, f"{name} row not visible within {timeout:.0f} s"
            assert not ended(scripts), ended(scripts)
            time.sleep(STEP)

    first, counted = seen("first")
    seen("last")
    return Arrival(first, seen("all_last")[0], counted)
