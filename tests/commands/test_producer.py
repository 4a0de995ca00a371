"""producer.py at the command line: what is missing, and wrong settings."""

from __future__ import annotations

import time

from harness.database import query
from harness.log_reader import INSERT
from harness.pipeline import Pipeline
from harness.producing import create_topic, wait_until_published

import pytest

OURS_ENDED = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND application_name LIKE 'employee-cdc%'
"""


@pytest.mark.timing
def test_a_producer_started_before_anything_is_set_up_names_what_to_run_and_goes_on(bare_pipeline: Pipeline) -> None:
    pipeline = bare_pipeline
    script = pipeline.start("producer.py")
    script.wait_for("run python db_setup.py")
    assert pipeline.run("db_setup.py").returncode == 0
    source = pipeline.source()
    query(source, INSERT)
    script.wait_for("run python admin.py", 5)
    create_topic(pipeline)
    wait_until_published(source, 10)


def test_the_total_at_the_end_counts_what_was_published_before_an_outage_too(running: Pipeline) -> None:
    producer, source = running.scripts[0], running.source()  # it has published one change
    query(source, OURS_ENDED)
    query(source, INSERT)
    running.wait_until_equal()
    assert producer.stop() == 0
    assert "published 2 changes in all" in producer.output()


def test_what_is_missing_is_reported_once(bare_pipeline: Pipeline) -> None:
    script = bare_pipeline.start("producer.py")
    script.wait_for("run python db_setup.py")
    time.sleep(1)
    assert script.output().count("\n") == 1, script.output()


@pytest.mark.timing
def test_once_gives_up_when_nobody_sets_anything_up(bare_pipeline: Pipeline) -> None:
    impatient = "Outage = producer.Outage; producer.Outage = lambda stop, give_up_after: Outage(stop, 1)"
    result = bare_pipeline.run(bare_pipeline.sabotaged("import producer", impatient), "--once", seconds=5)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.timing
def test_a_missing_trigger_is_reported(pipeline: Pipeline) -> None:
    source = pipeline.source()
    query(source, "DROP TRIGGER employee_cdc_trigger ON employees")
    script = pipeline.start("producer.py")
    script.wait_for("run python db_setup.py", 5)
    assert pipeline.run("db_setup.py").returncode == 0
    query(source, INSERT)
    wait_until_published(source, 10)


@pytest.mark.timing
@pytest.mark.parametrize("value", ["nonsense", "999999999999 days", "200000 years"])
def test_a_wrong_retention_is_named_in_one_line(shared: Pipeline, value: str) -> None:
    result = shared.run("producer.py", "--once", seconds=5, RETENTION=value)
    assert result.returncode == 2
    assert "RETENTION" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("POLL_INTERVAL", "soon", "POLL_INTERVAL"),
        ("POLL_INTERVAL", "0", "POLL_INTERVAL"),
        ("POLL_INTERVAL", "nan", "POLL_INTERVAL"),
        ("KAFKA_SOCKET_TIMEOUT_MS", "1", "socket.timeout.ms"),
        ("KAFKA_BATCH_SIZE", "much", "batch.size"),
        ("SOURCE_DATABASE_URL", "postgres//localhost", "SOURCE_DATABASE_URL"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(shared: Pipeline, name: str, value: str, named: str) -> None:
    result = shared.run("producer.py", "--once", seconds=20, **{name: value})
    assert result.returncode == 2
    assert named in result.stderr
    assert len(result.stderr.splitlines()) == 1
