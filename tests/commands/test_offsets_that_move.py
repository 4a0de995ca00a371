"""What status says of the consumer's offsets while these move."""

from __future__ import annotations

import json

from harness.database import query
from harness.pipeline import Pipeline
from harness.waiting import wait_until

import pytest

EMPLOYEE = 1


def while_a_change_passes(pipeline: Pipeline) -> str:
    """A driver of admin.py: after it has asked for the ends of the topic, one more change is applied, to the end."""
    after = f"""
from cdc.status import stages
import psycopg2, time
bounds = stages.offset_bounds
def slow(*arguments):
    found = bounds(*arguments)
    stages.offset_bounds = bounds
    with psycopg2.connect({pipeline.source_url!r}) as source, source.cursor() as cursor:
        cursor.execute("UPDATE employees SET salary = salary + 1 WHERE emp_id = {EMPLOYEE}")
    time.sleep(1)  # it is published, applied, and its offset is committed
    return found
stages.offset_bounds = slow
"""
    return pipeline.sabotaged("import admin", after)


@pytest.fixture
def carried(shared_running: Pipeline) -> Pipeline:
    """Some changes of one employee have been applied, and their offsets are committed."""
    source = shared_running.source()
    query(source, "INSERT INTO employees (emp_id, salary) VALUES (%s, 1) ON CONFLICT DO NOTHING", (EMPLOYEE,))
    for _ in range(3):
        query(source, "UPDATE employees SET salary = salary + 1")
    wait_until(lambda: shared_running.status()["in_sync"], what="in sync")
    return shared_running


def test_status_does_not_take_an_offset_that_has_just_moved_on_for_a_stranger_s(carried: Pipeline) -> None:
    result = carried.run(while_a_change_passes(carried), "status", "--json")
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(result.stdout)
    assert [partition["lag"] for partition in found["kafka"]["partitions"]] == [0, 0, 0]
