"""The producer in a test: the script, what it has yet to publish, and what it has published."""

from __future__ import annotations

import time

from employee import CDCRecord
from harness import ROOT
from harness.database import query
from harness.kafka import create
from harness.pipeline import Pipeline
from harness.script import Script
from harness.waiting import wait_until

from confluent_kafka.admin import NewTopic  # type: ignore[attr-defined]
from psycopg2.extensions import connection as Connection

UNPUBLISHED = """
SELECT count(*) FROM emp_cdc, cdc_position WHERE cdc_id > last_offset OR NOT pg_visible_in_snapshot(txid, snapshot)
"""
HELD_BY_WRITERS = """
SELECT mode FROM pg_locks WHERE locktype = 'advisory' AND objid = 2
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
KILL = "os.kill(os.getpid(), signal.SIGKILL)"


def set_up_here(pipeline: Pipeline) -> None:
    """In this process: sooner than by db_setup.py and admin.py, which have tests of their own."""
    query(pipeline.source(), (ROOT / "sql" / "source.sql").read_text(encoding="utf-8"))
    query(pipeline.destination(), (ROOT / "sql" / "destination.sql").read_text(encoding="utf-8"))
    create_topic(pipeline)


def create_topic(pipeline: Pipeline, name: str = "", partitions: int = 3) -> None:
    create(NewTopic(name or pipeline.topic, partitions, 1))


def start_producer(pipeline: Pipeline, **environment: str) -> Script:
    """A producer that has nothing to do."""
    script = pipeline.start("producer.py", **environment)
    script.wait_for("publishing from")
    return script


def wait_until_published(source: Connection, seconds: float) -> float:
    """Returns how long it took."""
    started = time.monotonic()
    wait_until(lambda: query(source, UNPUBLISHED) == [(0,)], seconds, "all published")
    return time.monotonic() - started


def published(pipeline: Pipeline) -> list[CDCRecord]:
    """The topic's messages; those of one employee are in one partition, so in their order."""
    return [CDCRecord.from_json(message.value()) for message in pipeline.messages()]


def rise_per_employee(changes: list[tuple[str, int]]) -> bool:
    newest: dict[str, int] = {}
    for key, cdc_id in changes:
        if cdc_id <= newest.get(key, 0):
            return False
        newest[key] = cdc_id
    return True


def in_pages_of(size: int) -> str:
    return (
        f"run_once = producer.run_once; producer.run_once = lambda *arguments: run_once(*arguments, page_size={size})"
    )
