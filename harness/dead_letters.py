"""Dead letters in a test: put there, listed and counted."""

from __future__ import annotations

import json
from typing import Any

from employee import CDCRecord
from harness.kafka import client_settings
from harness.pipeline import Pipeline

from confluent_kafka import Producer


def send_dead_letters(pipeline: Pipeline, *values: bytes | str | None, key: str | None = None, **options: Any) -> None:
    """Put letters into the dead-letter topic, as a stranger would: without headers."""
    producer = Producer({**client_settings(), "compression.type": "lz4"})
    for value in values:
        producer.produce(f"{pipeline.topic}_dlq", value, key, **options)
        producer.poll(0)
    assert producer.flush(30) == 0


def listed(pipeline: Pipeline) -> list[dict[str, Any]]:
    result = pipeline.run("admin.py", "dead-letters", "--json")
    assert result.returncode == 0, result.stderr
    letters: list[dict[str, Any]] = json.loads(result.stdout)
    return letters


def waiting(pipeline: Pipeline) -> int:
    """How many dead letters `status` counts."""
    return int(json.loads(pipeline.run("admin.py", "status", "--json").stdout)["kafka"]["dead_letters"])


def output_of(pipeline: Pipeline, *options: str, width: int = 80) -> str:
    """What `admin.py dead-letters` prints when it succeeds."""
    result = pipeline.run("admin.py", "dead-letters", *options, COLUMNS=str(width))
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    return str(result.stdout).strip()


def apply(pipeline: Pipeline) -> None:
    result = pipeline.run("consumer.py", "--once")
    assert result.returncode == 0, result.stdout + result.stderr


def insert(cdc_id: int, emp_id: int, city: str = "Rome") -> str:
    return CDCRecord(cdc_id, emp_id, city=city, action="INSERT").to_json()
