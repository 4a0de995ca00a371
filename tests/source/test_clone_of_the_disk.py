"""A clone of the source's disk: a server of its own, with the system identifier of the original."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from harness.database import database_url, query
from harness.log_reader import INSERT
from harness.own_servers import copy_data, ours_alone, own_source, purge, url
from harness.pipeline import Pipeline, new_pipeline
from harness.producing import set_up_here, wait_until_published
from stack import servers
from stack.servers import Server

import psycopg2
import pytest

OFFSET = 6100  # of the ports of the two servers here
SERVER = "SELECT control.system_identifier, database FROM pg_control_system() AS control, cdc_position"
LOOK_SOON = "history.TOPIC_EVERY = upkeep.EVERY = 0.2"


@pytest.fixture
def original(stack: None) -> Iterator[Server]:
    with own_source(OFFSET) as found:
        yield found


@pytest.fixture
def pipeline(original: Server, tmp_path: Path) -> Iterator[Pipeline]:
    with new_pipeline(tmp_path) as pipeline:
        set_up_here(pipeline)
        query(pipeline.source(), INSERT)
        assert pipeline.run("producer.py", "--once").returncode == 0
        yield pipeline


@pytest.fixture
def clone(original: Server, pipeline: Pipeline) -> Iterator[str]:
    """The URL of the pipeline's source on a clone of the server."""
    other = next(server for server in servers.servers(OFFSET + 100) if server.name == "source")
    with ours_alone(state := Path(other.state)):
        purge(state)
        try:
            servers.kill(original)
            copy_data(original.data, other.data)
            servers.start(original)
            servers.start(other)
            for server in (original, other):
                servers.wait(server)
            yield database_url(url(other.port), pipeline.name)
        finally:
            purge(state)


def test_the_producer_of_a_clone_ends_and_that_of_the_original_goes_on(pipeline: Pipeline, clone: str) -> None:
    def start(**environment: str) -> None:
        lines = ("import producer", "from cdc import history, upkeep", LOOK_SOON)
        pipeline.start(pipeline.sabotaged(*lines), **environment).wait_for("publishing from")

    start()
    start(SOURCE_DATABASE_URL=clone)
    original, second = pipeline.scripts
    source = pipeline.source()
    with closing(psycopg2.connect(clone)) as connection:
        connection.autocommit = True
        assert query(connection, SERVER) == query(source, SERVER)
        query(connection, "UPDATE employees SET city = 'clone'")
    original.wait_for("THE TOPIC HOLDS CHANGES OF ANOTHER LOG")
    query(source, "UPDATE employees SET city = 'original'")
    second.wait_for("another log is published to it, by a producer that started before this one")
    assert second.process.wait(10) == 2
    wait_until_published(source, 5)
    pipeline.start("consumer.py")
    pipeline.wait_until_equal()
    assert original.process.poll() is None
