"""The table employees on both sides: fill it, compare it."""

from __future__ import annotations

import time
from typing import Any

from bench.systems import check_running
from harness.database import query
from harness.pipeline import Pipeline
from harness.waiting import wait_until

from psycopg2.extensions import connection as Connection

# A sum does not depend on the order. Two different tables agree in it by accident once
# in 2^64 times.
DIGEST = "SELECT count(*), sum(hashtextextended(employees::text, 0)::numeric)::text FROM employees"


def digests(pipeline: Pipeline) -> list[Any]:
    """Return rows and digest of the source's table, and of the destination's."""
    return [query(connection, DIGEST)[0] for connection in (pipeline.source(), pipeline.destination())]


def check_equal(pipeline: Pipeline) -> None:
    """Fail if the two tables differ."""
    source, destination = digests(pipeline)
    assert source == destination, f"{pipeline.name}: source has (rows, digest) {source}, destination {destination}"


def wait_until_equal(pipeline: Pipeline, seconds: float) -> None:
    """Return when the two tables are equal; fail if that takes too long."""

    def equal() -> bool:
        time.sleep(0.2)
        check_running(pipeline.scripts)
        source, destination = digests(pipeline)
        return bool(source == destination)

    wait_until(equal, seconds, f"{pipeline.name}: both tables equal")


def add_uncaptured(pipeline: Pipeline, insert: str) -> None:
    """Put the same rows on both sides, as if they had been carried over long ago."""
    source, destination = pipeline.source(), pipeline.destination()
    trigger = "ALTER TABLE employees {} TRIGGER employee_cdc_trigger"
    captured = query(source, "SELECT 1 FROM pg_trigger WHERE tgname = 'employee_cdc_trigger'")
    if captured:
        query(source, trigger.format("DISABLE"))
    query(source, insert)
    if captured:
        query(source, trigger.format("ENABLE ALWAYS"))
    add_at_destination(destination, insert)


def add_at_destination(destination: Connection, insert: str) -> None:
    """Put rows into the table, and into the gate if there is one."""
    query(destination, insert)
    if query(destination, "SELECT to_regclass('cdc_applied')")[0][0]:
        query(destination, "INSERT INTO cdc_applied SELECT emp_id, 0 FROM employees")
