"""The steps of README, as a user would take them."""

from __future__ import annotations

import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor

from harness.database import query
from harness.pipeline import Pipeline
from harness.waiting import wait_until

import pytest


@pytest.mark.timing
def test_what_psql_changes_on_the_source_is_seen_at_the_destination_in_under_a_second(running: Pipeline) -> None:
    source, destination = running.source(), running.destination()
    steps = {
        "INSERT INTO employees (emp_id, city) VALUES (7, 'Rome')": [("Rome",)],
        "UPDATE employees SET city = 'Oslo' WHERE emp_id = 7": [("Oslo",)],
        "DELETE FROM employees WHERE emp_id = 7": [],
    }
    for statement, expected in steps.items():
        query(source, statement)
        started = time.monotonic()
        wait_until(lambda: query(destination, "SELECT city FROM employees WHERE emp_id = 7") == expected)  # noqa: B023
        assert time.monotonic() - started < 1.0, statement


def test_the_demo_script_passes_again_and_again_and_leaves_other_rows_alone(running: Pipeline) -> None:
    for _ in range(2):
        result = running.run("test_cdc.py")
        assert result.returncode == 0, result.stdout + result.stderr
        assert "PASS" in result.stdout
    assert query(running.source(), "SELECT emp_id, city FROM employees") == [(-1, "first")]


def test_ctrl_c_finishes_the_batch_prints_totals_and_exits_0(running: Pipeline) -> None:
    for script, number in zip(running.scripts, (signal.SIGINT, signal.SIGTERM), strict=True):
        assert script.stop(number) == 0, script.output()
        assert "1 change in all" in script.output()
        assert "Traceback" not in script.output()


def write(pipeline: Pipeline, seed: int, seconds: float) -> None:
    """Change random employees in transactions held open for up to 80 ms, 15 % of them rolled back."""
    choose, source = random.Random(seed), pipeline.source()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        query(source, "BEGIN")
        for emp_id in sorted(choose.sample(range(1, 301), choose.randint(1, 4))):  # in one order: no deadlocks
            statement = choose.choice(STATEMENTS)
            query(source, statement, {"emp_id": emp_id, "salary": choose.randrange(100_000)})
        time.sleep(choose.uniform(0, 0.08))
        query(source, "ROLLBACK" if choose.random() < 0.15 else "COMMIT")


STATEMENTS = (
    "INSERT INTO employees (emp_id, salary) VALUES (%(emp_id)s, %(salary)s) ON CONFLICT (emp_id) DO NOTHING",
    "INSERT INTO employees (emp_id, salary) VALUES (%(emp_id)s, %(salary)s) "
    "ON CONFLICT (emp_id) DO UPDATE SET salary = excluded.salary",
    "UPDATE employees SET salary = %(salary)s WHERE emp_id = %(emp_id)s",
    "DELETE FROM employees WHERE emp_id = %(emp_id)s",
)


@pytest.mark.parametrize("seconds", [8, pytest.param(60, marks=pytest.mark.long)])
def test_ten_writers_at_once_lose_not_one_row(running: Pipeline, seconds: float) -> None:
    with ThreadPoolExecutor(10) as writers:
        list(writers.map(lambda seed: write(running, seed, seconds), range(10)))
    running.wait_until_equal()
    ((logged, late),) = query(
        running.source(),
        "SELECT count(*), count(*) FILTER (WHERE late) FROM "
        "(SELECT txid < max(txid) OVER (ORDER BY cdc_id ROWS UNBOUNDED PRECEDING) AS late FROM "
        "(SELECT cdc_id, txid::text::bigint FROM emp_cdc) AS log) AS ordered",
    )
    print(f"{logged:,} changes, {late:,} logged after a later transaction's, none lost")
    assert logged > 10 * seconds
    assert late > 0
    assert not any("ERROR" in script.output() for script in running.scripts)
