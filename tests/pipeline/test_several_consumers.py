"""Several consumers: two groups, and two members of one group, one of which is killed."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from harness.consuming import history, last_states, start_consumer, wait_until_read
from harness.database import BACKWARDS, WATCH, query
from harness.destination import ids
from harness.pipeline import Pipeline

import psycopg2


def test_two_groups_that_apply_everything_at_once_end_equal_and_never_go_backwards(pipeline: Pipeline) -> None:
    """Each change twice, in any order, on any partition, and read by two groups at once."""
    values, left = history(employees=50, changes=20)
    destination = pipeline.destination()
    query(destination, WATCH)
    doubled = random.sample(values * 2, len(values) * 2)
    for partition in range(3):
        pipeline.send(*doubled[partition::3], partition=partition)
    groups = [f"{pipeline.name}-{number}" for number in range(2)]
    scripts = [pipeline.start("consumer.py", KAFKA_GROUP_ID=group) for group in groups]
    for group in groups:
        wait_until_read(pipeline, group)
    assert query(destination, "SELECT emp_id, salary FROM employees ORDER BY emp_id") == last_states(values)
    assert ids(destination) == left
    assert query(destination, BACKWARDS) == [(0,)]
    for script in scripts:
        assert script.stop() == 0
        assert "applied 2,000 changes in all" in script.output()


WRITES = [
    "INSERT INTO employees VALUES (%(emp_id)s, 'new') ON CONFLICT DO NOTHING",
    "UPDATE employees SET salary = coalesce(salary, 0) + 1 WHERE emp_id = %(emp_id)s",
    "DELETE FROM employees WHERE emp_id = %(emp_id)s",
]


def test_two_consumers_share_the_load_and_one_takes_over_when_the_other_is_killed(running: Pipeline) -> None:
    first, second = running.scripts[1], start_consumer(running)
    first.wait_for("partitions revoked")
    end = time.monotonic() + 2.5

    def write(seed: int) -> int:
        chance, count = random.Random(seed), 0
        with closing(psycopg2.connect(running.source_url)) as source, source.cursor() as cursor:
            while time.monotonic() < end:
                for emp_id in sorted(chance.sample(range(40), chance.randint(1, 4))):  # sorted: no deadlocks here
                    cursor.execute(chance.choice(WRITES), {"emp_id": emp_id})
                    count += cursor.rowcount
                (source.rollback if chance.random() < 0.15 else source.commit)()
        return count

    with ThreadPoolExecutor() as pool:
        writers = [pool.submit(write, seed) for seed in range(4)]
        time.sleep(1.2)  # in the middle of the load
        first.kill()
        assert sum(writer.result(30) for writer in writers) > 100
    running.wait_until_equal()
    assert second.stop() == 0
    for script in (first, second):
        assert "changes up to log offset" in script.output() or "→ applied" in script.output()
