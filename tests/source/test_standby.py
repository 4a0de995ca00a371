"""Two producers: one is active, the other stands by."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor

from harness.database import administer, query
from harness.log_reader import INSERT
from harness.pipeline import Pipeline
from harness.producing import HELD_BY_WRITERS, published, start_producer, wait_until_published
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


HASTY = ("from cdc import standby", "standby.FROZEN_AFTER = 2.0")  # seconds, not 20: nothing else is here
STOPS = """
publish = producer.publish
def publish_and_stop(client, page, *rest):
    aside = publish(client, page, *rest)
    os.kill(os.getpid(), signal.SIGSTOP)
    return aside
producer.publish = publish_and_stop
"""


@pytest.mark.timing
def test_a_producer_that_is_stopped_is_replaced_and_cannot_save_its_position_afterwards(pipeline: Pipeline) -> None:
    source = pipeline.source()
    first = pipeline.start(pipeline.sabotaged("import producer", STOPS))
    first.wait_for("publishing from")
    second = pipeline.start(pipeline.sabotaged("import producer", *HASTY))
    second.wait_for("another producer is active; standing by")
    query(source, INSERT)
    second.wait_for("has done nothing for 2 s: its session is ended")
    second.wait_for("INSERT employee 1 → published")
    query(source, INSERT)
    wait_until_published(source, 10)
    saved = query(source, "SELECT * FROM cdc_position")
    first.process.send_signal(signal.SIGCONT)
    first.wait_for("another producer is active; standing by")
    assert query(source, "SELECT * FROM cdc_position") == saved
    assert first.stop() == 0
    assert "published, log offset" not in first.output()
    assert second.stop() == 0


@pytest.mark.timing
def test_a_producer_that_is_stopped_asleep_is_replaced(pipeline: Pipeline) -> None:
    first = start_producer(pipeline)
    second = pipeline.start(pipeline.sabotaged("import producer", *HASTY))
    second.wait_for("standing by")
    wait_until(lambda: query(pipeline.source(), HELD_BY_WRITERS) == [("ExclusiveLock",)], what="the first one sleeps")
    first.process.send_signal(signal.SIGSTOP)
    query(pipeline.source(), INSERT)
    second.wait_for("INSERT employee 1 → published")


@pytest.mark.timing
@pytest.mark.parametrize(
    ("granted", "said"),
    [("pg_signal_backend", "we may not see whether it is frozen"), ("pg_read_all_stats", "we may not end its session")],
)
def test_a_standby_that_may_not_replace_a_frozen_producer_says_so_once(
    pipeline: Pipeline, granted: str, said: str
) -> None:
    role = f"{pipeline.name}_standby"
    administer(pipeline.source_url, f"CREATE ROLE {role} LOGIN PASSWORD 'bob' IN ROLE {granted}")
    try:
        first = start_producer(pipeline)
        url = f"postgresql://{role}:bob@{pipeline.source_url.rpartition('@')[2]}"
        second = pipeline.start(pipeline.sabotaged("import producer", *HASTY), SOURCE_DATABASE_URL=url)
        second.wait_for("standing by")
        first.process.send_signal(signal.SIGSTOP)
        second.wait_for(said)
        time.sleep(1)
        assert second.output().count("WARNING") == 1
        assert second.stop() == 0
    finally:
        administer(pipeline.source_url, f"DROP ROLE {role}")


@pytest.mark.long
def test_a_producer_that_is_idle_or_waits_for_its_statement_is_not_replaced(pipeline: Pipeline) -> None:
    source = pipeline.source()
    first = start_producer(pipeline, POLL_INTERVAL="3600")
    second = pipeline.start("producer.py")
    second.wait_for("standing by")
    time.sleep(25)
    query(source, "BEGIN; LOCK TABLE emp_cdc")
    time.sleep(25)
    query(source, "ROLLBACK")
    query(source, INSERT)
    first.wait_for("INSERT employee 1 → published")
    assert first.stop() == 0
    assert "ended" not in second.output()
