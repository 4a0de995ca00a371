"""The destination in a test: what it holds, changes applied to it in this process, and its absence."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import config
from cdc import bulk
from cdc.apply import newest
from cdc.message import read
from harness.database import administer, connect, query
from harness.pipeline import Pipeline
from harness.waiting import wait_until

import pytest
from psycopg2.extensions import connection as Connection

Row = tuple[Any, ...]
ROW = "SELECT first_name, last_name, dob::text, city, salary FROM employees WHERE emp_id = %s"
IDS = "SELECT emp_id FROM employees ORDER BY emp_id"


def ids(connection: Connection) -> list[int]:
    return [emp_id for (emp_id,) in query(connection, IDS)]


def wait_for_rows(pipeline: Pipeline, expected: list[int], seconds: float = 20.0) -> None:
    """Return when the destination holds just these employees."""
    with closing(connect(pipeline.destination_url)) as destination:
        try:
            wait_until(lambda: ids(destination) == expected, seconds)
        except AssertionError:
            raise AssertionError(f"{ids(destination)} instead of {expected}\n{pipeline.outputs()}") from None


def apply(destination: Connection, *values: str) -> int:
    if not query(destination, "SELECT 1 FROM pg_prepared_statements WHERE name = 'apply'"):
        query(destination, bulk.SESSION)
    return bulk.apply(destination, newest(read(value.encode()) for value in values))


def shut_out(pipeline: Pipeline) -> None:
    """Take the destination down: no new sessions, and those that are there end."""
    database = f"{pipeline.name}_copy"
    administer(config.DESTINATION_DATABASE_URL, f"ALTER DATABASE {database} ALLOW_CONNECTIONS false")
    terminate(pipeline)


def terminate(pipeline: Pipeline) -> None:
    end = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{pipeline.name}_copy'"
    administer(config.DESTINATION_DATABASE_URL, end)


def let_in(pipeline: Pipeline) -> None:
    administer(config.DESTINATION_DATABASE_URL, f"ALTER DATABASE {pipeline.name}_copy ALLOW_CONNECTIONS true")


def alter_destination(pipeline: Pipeline, what: str) -> None:
    administer(config.DESTINATION_DATABASE_URL, f"ALTER DATABASE {pipeline.name}_copy {what}")


def log_of_the_server(connection: Connection) -> Path:
    """The file that a server on this machine writes its log to."""
    ((postmaster,),) = query(connection, "SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1)")
    try:
        log = Path(os.readlink(f"/proc/{postmaster}/fd/2"))
    except OSError:
        pytest.skip("the server's log is not on this machine")
    return log if log.is_file() else pytest.skip(f"the server logs to {log}")
