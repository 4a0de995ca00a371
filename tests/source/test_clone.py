"""A clone of the source's disk, with a producer of its own on the same topic: the one that started later gives way."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import config
from cdc.signature import HEADER
from employee import CDCRecord
from harness.database import administer, connect, database_url, query
from harness.kafka import client_settings
from harness.log_reader import INSERT
from harness.pipeline import Pipeline
from harness.producing import published, wait_until_published
from harness.script import Script
from harness.waiting import wait_until

import pytest
from confluent_kafka import Producer
from psycopg2.extensions import connection as Connection

# What a clone of the disk would have kept.
AS_CLONED = """
UPDATE cdc_position SET database = system_identifier || '/' || (
    SELECT oid FROM pg_database WHERE datname = current_database())
"""
REFUSED = "another log is published to it, by a producer that started before this one"
EARLIER = "2026-01-01T00:00:00.000000Z 0a1b2c3d"


def start_producer(pipeline: Pipeline, **environment: str) -> Script:
    """One that looks at the topic five times a second."""
    soon = "history.TOPIC_EVERY = upkeep.EVERY = 0.2"
    script = pipeline.start(
        pipeline.sabotaged("import producer", "from cdc import history, upkeep", soon), **environment
    )
    script.wait_for("publishing from")
    return script


@pytest.fixture
def source(pipeline: Pipeline) -> Connection:
    """Where the original has published two changes of employee 1."""
    source = pipeline.source()
    query(source, f"{INSERT}; UPDATE employees SET salary = 1")
    assert pipeline.run("producer.py", "--once").returncode == 0
    return source


@pytest.fixture
def clone(pipeline: Pipeline, source: Connection) -> Iterator[str]:
    """The URL of a copy that nothing in it tells from the original."""
    for connection in pipeline.connections:
        connection.close()
    name = f"{pipeline.name}_clone"
    administer(config.SOURCE_DATABASE_URL, f"CREATE DATABASE {name} TEMPLATE {pipeline.name}")
    url = database_url(config.SOURCE_DATABASE_URL, name)
    with closing(connect(url)) as connection:
        query(connection, AS_CLONED)
    yield url
    for script in pipeline.scripts:
        script.stop()
    administer(config.SOURCE_DATABASE_URL, f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def writing(source: Connection) -> Iterator[None]:
    """A change every 50 ms."""
    over = threading.Event()

    def write() -> None:
        while not over.wait(0.05):
            query(source, "UPDATE employees SET salary = salary + 1")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        over.set()
        writer.join()


def test_it_does_not_start_while_the_original_publishes(pipeline: Pipeline, clone: str) -> None:
    original = start_producer(pipeline)
    source = pipeline.source()
    with closing(connect(clone)) as connection, writing(pipeline.source()):
        wait_until(lambda: query(source, "SELECT last_offset > 5 FROM cdc_position") == [(True,)], 10)
        query(connection, "UPDATE employees SET city = 'clone'")
        refused = pipeline.run("producer.py", "--once", SOURCE_DATABASE_URL=clone)
    assert refused.returncode == 2, refused.stdout
    (line,) = refused.stderr.splitlines()
    assert REFUSED in line
    assert "python verify.py --repair" in line
    assert "clone" not in {record.city for record in published(pipeline)}
    assert "ANOTHER LOG" not in original.output()


def test_it_ends_when_the_original_publishes_again_which_goes_on(pipeline: Pipeline, clone: str) -> None:
    original = start_producer(pipeline)
    second = start_producer(pipeline, SOURCE_DATABASE_URL=clone)
    with closing(connect(clone)) as connection:
        query(connection, "UPDATE employees SET city = 'clone'")
    original.wait_for("THE TOPIC HOLDS CHANGES OF ANOTHER LOG")
    source = pipeline.source()
    query(source, "UPDATE employees SET city = 'original'")
    second.wait_for(REFUSED)
    assert second.process.wait(10) == 2
    wait_until_published(source, 5)
    pipeline.start("consumer.py")
    pipeline.wait_until_equal()
    assert original.process.poll() is None


# No false alarm


def send_signed(pipeline: Pipeline, record: CDCRecord, signature: str) -> None:
    client = Producer(client_settings())
    client.produce(pipeline.topic, record.to_json(), "1", headers={HEADER: signature})
    assert client.flush(10) == 0


@pytest.fixture
def running(pipeline: Pipeline, source: Connection) -> Script:
    """A producer whose log holds the offsets 2 and 4."""
    query(source, f"DELETE FROM emp_cdc WHERE cdc_id = 1; BEGIN; {INSERT}; ROLLBACK; {INSERT}")
    script = start_producer(pipeline)
    wait_until_published(source, 5)
    return script


@pytest.mark.parametrize("offset", [2, 3], ids=["another one than ours", "one that our log never had"])
def test_a_change_of_an_earlier_producer_ends_this_one(pipeline: Pipeline, running: Script, offset: int) -> None:
    send_signed(pipeline, CDCRecord(offset, 1, city="Bern", action="UPDATE"), EARLIER)
    running.wait_for(REFUSED)
    assert running.process.wait(10) == 2


def test_what_an_earlier_producer_of_our_own_log_had_in_hand_does_not(pipeline: Pipeline, running: Script) -> None:
    send_signed(pipeline, CDCRecord(2, 1, city="Rome", salary=1, action="UPDATE"), EARLIER)
    send_signed(pipeline, CDCRecord(1, 1, city="Rome", action="INSERT"), EARLIER)  # pruned
    send_signed(pipeline, CDCRecord(4, 1, city="Bern", action="UPDATE"), f"{EARLIER}, by a stranger")
    running.wait_for("ANOTHER LOG")
    time.sleep(0.5)
    assert REFUSED not in running.output()
    assert running.stop() == 0
