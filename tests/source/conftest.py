"""Readers of the log and writers beside them, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import config
import producer
from cdc import emp_cdc, publisher
from cdc.kafka import Brokers, make_client
from cdc.message import Change
from cdc.position import Saver, load_position
from harness.capturing import SOURCE
from harness.database import administer, query
from harness.log_reader import Reader
from harness.pipeline import Pipeline, new_pipeline
from harness.producing import set_up_here
from harness.rights import PASSWORD, ROLES, Doors

import pytest
from confluent_kafka import Producer
from psycopg2.extensions import connection as Connection


@pytest.fixture
def pipeline(bare_pipeline: Pipeline) -> Pipeline:
    """Set up, and no script running."""
    set_up_here(bare_pipeline)
    return bare_pipeline


@pytest.fixture
def read(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Reader]]:
    """Makes readers, each from the saved position on, as a producer that starts."""
    monkeypatch.setattr(config, "KAFKA_TOPIC", pipeline.topic)
    client = make_client(Producer, publisher.KAFKA_SETTINGS, Brokers())
    readers: list[Reader] = []
    publish = publisher.publish

    def publish_and_record(client: Producer, page: list[Change], *rest: Any) -> list[Change]:
        aside = publish(client, page, *rest)
        readers[-1].published += page
        readers[-1].pages.append(len(page))
        return aside

    def make() -> Reader:
        source = pipeline.source()
        query(source, emp_cdc.SESSION)
        readers.append(Reader(source, client, Saver(source, load_position(source))))
        return readers[-1]

    monkeypatch.setattr(producer, "publish", publish_and_record)
    yield make
    client.flush(10)


@pytest.fixture
def sessions(pipeline: Pipeline) -> list[Connection]:
    """Writers, each with a session of its own."""
    return [pipeline.source() for _ in range(4)]


@pytest.fixture
def source(bare_pipeline: Pipeline) -> Connection:
    """A session at a source that is set up, in this process."""
    connection = bare_pipeline.source()
    query(connection, SOURCE)
    return connection


@pytest.fixture(scope="module")
def doors(drop_later: Callable[[Pipeline], None], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    """A pipeline that cdc_setup has set up, that has carried two employees and has these rights.

    Its roles own what is in the bare pipelines of the tests, too, whose databases are dropped later, and so before it.
    """
    with new_pipeline(tmp_path_factory.mktemp("rights"), drop=drop_later) as pipeline:
        doors = Doors(pipeline, pipeline.name)
        pipeline.roles += [doors.role(role) for role in ROLES]
        for url in pipeline.servers:
            administer(url, "; ".join(f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'" for name in pipeline.roles))
        doors.lock("cdc_setup")
        for result in (doors.run("cdc_setup", "db_setup.py"), pipeline.run("admin.py")):
            assert result.returncode == 0, result.stdout + result.stderr
        doors.as_superuser("source", "INSERT INTO employees (city) VALUES ('Oslo'), ('Bern')")
        pipeline.drain()
        doors.lock()
        yield doors
