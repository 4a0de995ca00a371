"""verify.py and a source that went back in time."""

from __future__ import annotations

import re

from harness.database import query
from harness.pipeline import Pipeline
from harness.verifying import differing, verify

import pytest


@pytest.fixture
def back_in_time(running: Pipeline) -> Pipeline:
    """The destination has applied what the source has lost: rows 1 to 3 differ, 4 and 5 happen to be the same."""
    query(running.source(), "INSERT INTO employees (emp_id, city) SELECT generate_series(1, 10), 'Rome'")
    running.wait_until_equal()
    query(running.destination(), "UPDATE cdc_applied SET cdc_id = cdc_id + 1000 WHERE emp_id <= 5")
    query(running.destination(), "UPDATE employees SET city = 'Oslo' WHERE emp_id IN (1, 2)")
    query(running.destination(), "DELETE FROM employees WHERE emp_id = 3")
    return running


def test_repair_moves_the_log_past_what_the_destination_has_applied(back_in_time: Pipeline) -> None:
    found = verify(back_in_time)
    assert (differing(found), found["on_their_way"], found["source_went_back_in_time"]) == ([1, 2, 3], 0, True)
    found = verify(back_in_time, "--repair")
    assert (found["equal"], found["repaired"]) == (True, 3)
    query(back_in_time.source(), "UPDATE employees SET city = 'Bern' WHERE emp_id IN (4, 6)")
    query(back_in_time.source(), "DELETE FROM employees WHERE emp_id = 5")
    back_in_time.wait_until_equal()
    assert verify(back_in_time)["equal"]


def test_equal_tables_do_not_hide_that_the_source_went_back_in_time(back_in_time: Pipeline) -> None:
    verify(back_in_time, "--repair")
    query(back_in_time.destination(), "UPDATE cdc_applied SET cdc_id = 5000 WHERE emp_id = 4")
    result = back_in_time.run("verify.py")
    assert result.returncode == 1
    assert "the source went back in time: it is at log offset 1,0" in result.stderr
    assert "the destination at 5,000; run python verify.py --repair" in result.stderr


def test_a_log_that_starts_again_at_its_first_offset_is_moved_too(running: Pipeline) -> None:
    query(running.source(), "TRUNCATE emp_cdc RESTART IDENTITY")
    query(running.destination(), "UPDATE cdc_applied SET cdc_id = 1")
    assert verify(running)["source_went_back_in_time"]
    assert verify(running, "--repair")["equal"]
    query(running.source(), "UPDATE employees SET city = 'Bern'")
    running.wait_until_equal()


def test_the_log_is_not_moved_while_somebody_writes_to_it(back_in_time: Pipeline) -> None:
    long = back_in_time.source()
    query(long, "BEGIN")
    query(long, "UPDATE employees SET city = 'Bern' WHERE emp_id = 10")
    result = back_in_time.run("verify.py", "--repair", "--wait", "1")
    assert result.returncode == 1
    assert "a long transaction holds emp_cdc; run python verify.py --repair" in result.stderr
    query(long, "COMMIT")
    assert verify(back_in_time, "--repair")["equal"]


def test_an_offset_that_no_log_reaches_does_not_wear_out_the_sequence(back_in_time: Pipeline) -> None:
    query(back_in_time.destination(), "UPDATE cdc_applied SET cdc_id = 9223372036854775807 WHERE emp_id = 4")
    result = back_in_time.run("verify.py", "--repair")
    assert result.returncode == 3
    (advice,) = re.findall('DELETE FROM "public".cdc_applied WHERE cdc_id > [0-9]+', result.stderr)
    query(back_in_time.destination(), advice)
    assert verify(back_in_time, "--repair")["equal"]
    query(back_in_time.source(), "UPDATE employees SET city = 'Bern'")
    back_in_time.wait_until_equal()
