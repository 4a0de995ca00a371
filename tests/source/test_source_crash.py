"""A crash of the source that loses commits, because they were made with synchronous_commit off."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

from harness.database import query
from harness.log_reader import INSERT
from harness.own_servers import own_source
from harness.pipeline import Pipeline, new_pipeline
from harness.producing import set_up_here
from stack import servers
from stack.servers import Server

import pytest

OFFSET = 3300  # of the port of the server here
WAL_WRITER = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'"


@pytest.fixture
def server(stack: None) -> Iterator[Server]:
    """A source of the test's own, which it may kill."""
    with own_source(OFFSET) as found:
        yield found


def test_published_changes_that_a_crash_of_the_source_loses_are_noticed(server: Server, tmp_path: Path) -> None:
    """Ten of them: the sequence goes on 32 further, and shows nothing."""
    with new_pipeline(tmp_path) as pipeline:
        set_up_here(pipeline)
        query(pipeline.source(), f"{INSERT}; {INSERT}")
        pipeline.drain()
        lose_changes(pipeline, server)
        source = pipeline.source()
        assert query(source, "SELECT count(*) FROM emp_cdc") == [(2,)]
        query(source, "UPDATE employees SET city = 'Oslo'")
        result = pipeline.run("producer.py", "--once")
        assert "THE SOURCE WENT BACK IN TIME: the topic holds UPDATE employee" in result.stdout
        pipeline.drain()
        assert pipeline.equal()


def lose_changes(pipeline: Pipeline, server: Server) -> None:
    """Publish and apply five changes of each employee that are never flushed, and crash."""
    source = pipeline.source()
    query(source, "CREATE TABLE flushed ()")
    ((writer,),) = query(source, WAL_WRITER)
    os.kill(writer, signal.SIGSTOP)  # until the server's end
    query(source, "SET synchronous_commit = off")
    for _ in range(5):
        query(source, "UPDATE employees SET salary = coalesce(salary, 0) + 1")
    pipeline.drain()
    servers.kill(server)
    servers.start(server)
    servers.wait(server)
