"""Partitions that are added under traffic."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor

from harness.database import BACKWARDS, WATCH, query
from harness.pipeline import Pipeline
from harness.waiting import wait_until

import psycopg2


def test_the_pipeline_stays_right_while_partitions_are_added(pipeline: Pipeline) -> None:
    """Changes of one employee are then on two partitions, in no order among each other."""
    # a producer finds new partitions within 5 minutes, unless it is told to look more often
    pipeline.start("producer.py", KAFKA_TOPIC_METADATA_REFRESH_INTERVAL_MS="500")
    pipeline.start("consumer.py")
    query(pipeline.destination(), WATCH)
    query(pipeline.source(), "CREATE SEQUENCE clock; INSERT INTO employees (emp_id) SELECT generate_series(1, 30)")
    end = time.monotonic() + 60

    def write() -> int:
        chance, count = random.Random(), 0
        with psycopg2.connect(pipeline.source_url) as source, source.cursor() as cursor:
            while time.monotonic() < end:
                touch = "UPDATE employees SET salary = nextval('clock') WHERE emp_id = %s"
                cursor.execute(touch, (chance.randint(1, 30),))
                source.commit()
                count += 1
        return count

    with ThreadPoolExecutor() as pool:
        writers = [pool.submit(write) for _ in range(2)]
        try:
            result = pipeline.run("admin.py", "create", "--partitions", "6")
            assert "6 partitions, 3 before" in result.stdout

            def used() -> int:
                return sum(part["end_offset"] > 0 for part in pipeline.status()["kafka"]["partitions"])

            wait_until(lambda: used() == 6, what="messages on all partitions")
        finally:
            end = time.monotonic()
        assert sum(writer.result(20) for writer in writers) > 60
    pipeline.wait_until_equal()
    destination = pipeline.destination()
    assert query(destination, BACKWARDS) == [(0,)]
    assert query(destination, "SELECT count(*) > 30 FROM seen") == [(True,)]
