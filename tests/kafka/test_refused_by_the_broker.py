"""Messages that the broker refuses for good: together they are halved, alone they are set aside."""

from __future__ import annotations

from harness.database import query
from harness.kafka import configure
from harness.pipeline import Pipeline
from harness.producing import published


def test_batches_larger_than_the_topic_takes_are_halved_and_each_change_arrives(pipeline: Pipeline) -> None:
    configure(pipeline.topic, "max.message.bytes", "2000")
    source = pipeline.source()
    query(source, "INSERT INTO employees (city) SELECT md5(random()::text) FROM generate_series(1, 1000)")
    for _ in range(3):
        query(source, "UPDATE employees SET city = md5(random()::text)")
    result = pipeline.run("producer.py", "--once")
    assert result.returncode == 0, result.stdout + result.stderr
    last = {record.emp_id: record.cdc_id for record in published(pipeline)}
    assert set(last.values()) == set(range(3001, 4001)), "an employee's last change is the last in its partition"
    assert {record.cdc_id for record in published(pipeline)} == set(range(1, 4001))
    assert pipeline.dead_letters() == []


def test_a_change_that_is_too_large_alone_is_set_aside_and_the_rest_goes_on(pipeline: Pipeline) -> None:
    configure(pipeline.topic, "max.message.bytes", "500")
    source = pipeline.source()
    query(source, "INSERT INTO employees (salary) SELECT generate_series(1, 10)")
    text = "(SELECT string_agg(chr(19968 + (random() * 20000)::int), '') FROM generate_series(1, 100))"
    query(source, f"INSERT INTO employees (first_name, last_name, city) SELECT {text}, {text}, {text}")
    query(source, "INSERT INTO employees (salary) SELECT generate_series(1, 10)")
    result = pipeline.run("producer.py", "--once")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "INSERT employee 11, log offset 11 → dead letter: Broker: Message size too large" in result.stdout
    assert "published 20 changes in all" in result.stdout
    assert {record.cdc_id for record in published(pipeline)} == set(range(1, 22)) - {11}
    (letter,) = pipeline.dead_letters()
    assert letter.key() == b"11"


def test_a_change_without_a_key_is_set_aside_where_the_topic_is_compacted(pipeline: Pipeline) -> None:
    configure(pipeline.topic, "cleanup.policy", "compact")
    source = pipeline.source()
    query(source, "INSERT INTO employees (salary) SELECT generate_series(1, 10)")
    query(source, "INSERT INTO emp_cdc (action) VALUES ('UPDATE')")
    query(source, "INSERT INTO employees (salary) SELECT generate_series(1, 10)")
    result = pipeline.run("producer.py", "--once")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "UPDATE without employee, log offset 11 → dead letter: " in result.stdout
    assert "published 20 changes in all" in result.stdout
    assert {record.cdc_id for record in published(pipeline)} == set(range(1, 22)) - {11}
    assert len(pipeline.dead_letters()) == 1
