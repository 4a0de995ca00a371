"""What the producer publishes: keys, values, order, and bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import config
from harness.database import administer, query
from harness.kafka import count_messages
from harness.log_reader import INSERT
from harness.pipeline import Pipeline
from harness.producing import UNPUBLISHED, published, rise_per_employee

import pytest


def test_dates_do_not_depend_on_the_way_the_source_writes_them(pipeline: Pipeline) -> None:
    dates = ["0044-03-15 BC", "12345-06-07", "2001-02-03", "infinity"]
    administer(config.SOURCE_DATABASE_URL, f"ALTER DATABASE {pipeline.name} SET datestyle = 'German'")
    query(pipeline.source(), "INSERT INTO employees (dob) SELECT unnest(%s::date[])", (dates,))
    result = pipeline.run("producer.py", "--once")
    assert result.returncode == 0, result.stdout + result.stderr
    assert sorted(record.dob or "" for record in published(pipeline)) == dates


def test_a_row_without_an_employee_has_no_key(pipeline: Pipeline) -> None:
    query(pipeline.source(), "INSERT INTO emp_cdc (action) VALUES ('UPDATE')")
    result = pipeline.run("producer.py", "--once")
    assert result.returncode == 0, result.stdout + result.stderr
    assert [message.key() for message in pipeline.messages()] == [None]


def test_a_page_larger_than_the_clients_queue_is_published_once_and_in_order(pipeline: Pipeline) -> None:
    source = pipeline.source()
    query(source, "INSERT INTO employees (salary) SELECT generate_series(1, 500)")
    for _ in range(9):
        query(source, "UPDATE employees SET salary = salary + 1")
    result = pipeline.run("producer.py", "--once", KAFKA_QUEUE_BUFFERING_MAX_MESSAGES="100")
    assert result.returncode == 0, result.stdout + result.stderr
    records = published(pipeline)
    assert sorted(record.cdc_id for record in records) == list(range(1, 5_001))
    assert rise_per_employee([(str(record.emp_id), record.cdc_id) for record in records])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process's peak from Linux' /proc")
def test_transactions_of_300_000_rows_stay_within_bounded_memory_on_time_and_late(
    bare_pipeline: Pipeline, record_property: Callable[[str, object], None]
) -> None:
    pipeline = bare_pipeline
    a, b = pipeline.source(), pipeline.source()
    query(
        a,
        """
        CREATE TABLE employees (emp_id SERIAL PRIMARY KEY, first_name VARCHAR(100), last_name VARCHAR(100), dob DATE,
                                city VARCHAR(100), salary INT);
        INSERT INTO employees (first_name, last_name, dob, city, salary)
        SELECT 'Augusta Ada', 'King-Noel', '1815-12-10', 'Ockham', generate_series(1, 300000);
        """,
    )
    pipeline.set_up()  # logs them all in one transaction
    peaks = {"producer, 300,000 rows of one transaction": pipeline.peak_memory("producer.py")}
    peaks["consumer, 300,000 changes"] = pipeline.peak_memory("consumer.py")
    assert pipeline.equal()

    query(a, "BEGIN")
    query(
        a,
        "INSERT INTO emp_cdc (emp_id, first_name, last_name, dob, city, salary, action) "
        "SELECT emp_id, first_name, last_name, dob, city, salary, 'UPDATE' FROM employees",
    )
    query(b, INSERT)
    assert pipeline.run("producer.py", "--once").returncode == 0
    assert query(b, "SELECT last_offset FROM cdc_position") == [(600_001,)]
    query(a, "COMMIT")
    peaks["producer, 300,000 rows of one late transaction"] = pipeline.peak_memory("producer.py")
    assert query(b, UNPUBLISHED) == [(0,)]
    assert count_messages(pipeline.topic) == 600_001
    for name, megabytes in peaks.items():
        record_property(name, f"{megabytes:.0f} MB")
        print(f"peak of the {name}: {megabytes:.0f} MB")
    assert max(peaks.values()) < 150
