"""The steps of README, as a user would take them."""

from __future__ import annotations

import signal
import time

from tests.pipeline import Pipeline, query, wait_until


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
        assert "1 changes in all" in script.output()
        assert "Traceback" not in script.output()
