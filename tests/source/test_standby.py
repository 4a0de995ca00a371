"""Two producers: one is active, the other stands by."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from harness.database import query
from harness.log_reader import INSERT
from harness.pipeline import Pipeline
from harness.producing import published, start_producer, wait_until_published
from harness.waiting import wait_until

import pytest
from psycopg2.extensions import connection as Connection


@pytest.mark.timing
def test_a_second_producer_stands_by_and_takes_over_when_the_first_is_killed(pipeline: Pipeline) -> None:
    source = pipeline.source()
    first = start_producer(pipeline)
    second = pipeline.start("producer.py")
    second.wait_for("another producer is active; standing by")

    def write(connection: Connection) -> None:
        while "publishing from" not in second.output():
            query(connection, INSERT)

    with ThreadPoolExecutor(2) as pool:
        writing = [pool.submit(write, pipeline.source()) for _ in range(2)]
        wait_until(lambda: query(source, "SELECT last_offset > 50 FROM cdc_position") == [(True,)])
        assert "publishing" not in second.output()
        killed = time.monotonic()
        first.kill()
        try:
            second.wait_for("publishing from")
            assert time.monotonic() - killed < 2
        finally:
            second.process.poll() is None or second.stop()
        for future in writing:
            future.result()
    wait_until_published(source, 10)
    records = published(pipeline)
    assert {record.cdc_id for record in records} == {
        cdc_id for (cdc_id,) in query(source, "SELECT cdc_id FROM emp_cdc")
    }


def test_a_standby_that_is_stopped_does_nothing_and_exits_0(pipeline: Pipeline) -> None:
    start_producer(pipeline)
    second = pipeline.start("producer.py")
    second.wait_for("standing by")
    assert second.stop() == 0
    assert "publishing" not in second.output()


def test_once_beside_an_active_producer_exits_1_with_one_line(pipeline: Pipeline) -> None:
    start_producer(pipeline)
    result = pipeline.run("producer.py", "--once")
    assert result.returncode == 1
    assert result.stderr.splitlines() == ["another producer is active; it publishes what is there"]
