"""A server that answers and refuses: said in time and once, ended by a signal, over by itself, and nothing is lost."""

from __future__ import annotations

import time

from harness.database import administer, query
from harness.log_reader import INSERT
from harness.pipeline import Pipeline

import pytest

SAID_WITHIN = 10.0


@pytest.mark.timing
def test_a_session_that_begins_and_fails_again_and_again_is_no_answer(pipeline: Pipeline) -> None:
    """The producer may read and publish, and not prune."""
    role = f"{pipeline.name}_producer"
    administer(pipeline.source_url, f"CREATE ROLE {role} LOGIN PASSWORD 'bob'")
    source = pipeline.source()
    query(source, f"GRANT SELECT, UPDATE ON emp_cdc, cdc_position, emp_cdc_cdc_id_seq TO {role}")
    query(source, INSERT)
    try:
        url = f"postgresql://{role}:bob@{pipeline.source_url.rpartition('@')[2]}"
        script = pipeline.start("producer.py", SOURCE_DATABASE_URL=url)
        script.wait_for("permission denied for table emp_cdc; waiting")
        time.sleep(4)  # several tries
        lines = [line.split(" ", 1)[1] for line in script.output().splitlines()]
        assert len(lines) == len(set(lines)) <= 3, script.output()
        assert "answers again" not in script.output()
        query(source, f"GRANT DELETE ON emp_cdc TO {role}")
        script.wait_for("answers again")
        assert script.stop() == 0
    finally:
        query(source, f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.mark.timing
def test_a_producer_that_waits_for_kafka_ends_at_a_signal_in_good_order(shared: Pipeline) -> None:
    script = shared.start("producer.py", KAFKA_BOOTSTRAP_SERVERS="localhost:1")
    script.wait_for("Kafka at localhost:1 does not answer; waiting", SAID_WITHIN)
    time.sleep(1)  # it asks again
    started = time.monotonic()
    assert script.stop() == 0, script.output()
    assert time.monotonic() - started < 4
