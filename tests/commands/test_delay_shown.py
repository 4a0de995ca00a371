"""admin.py status: how long the last changes took to the destination, where that server keeps the times of commits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from harness.database import query
from harness.own_servers import own_database
from harness.pipeline import Pipeline, new_pipeline
from harness.showing import status_of

import pytest

OFFSET = 6500  # of the port of the destination here
SLEPT = 0.7  # seconds


@pytest.fixture
def keeping_times(stack: None, tmp_path: Path) -> Iterator[Pipeline]:
    with own_database("destination", OFFSET, track_commit_timestamp="on"), new_pipeline(tmp_path) as pipeline:
        pipeline.set_up()
        yield pipeline


def test_the_delay_of_the_last_changes_from_table_to_table(keeping_times: Pipeline) -> None:
    source = keeping_times.source()
    query(source, "INSERT INTO employees (emp_id) VALUES (1)")
    query(source, "UPDATE employees SET city = 'Oslo'")  # the gate knows of this change only
    query(source, f"BEGIN; INSERT INTO employees (emp_id) VALUES (2); SELECT pg_sleep({SLEPT}); COMMIT")
    keeping_times.drain()
    found = status_of(keeping_times)
    delay, to_kafka = found["to_destination"], found["to_kafka"]
    assert (delay["changes"], to_kafka["changes"]) == (2, 3)
    assert 1000 * SLEPT < to_kafka["slowest_ms"] < delay["slowest_ms"] < 30_000
    assert delay["median_ms"] > to_kafka["median_ms"]
    lines = keeping_times.run("admin.py", "status", COLUMNS="120").stdout.splitlines()
    shown = f"from table to table: the last 2 changes took {delay['median_ms']:,} ms in the median, "
    assert f"{shown}{delay['slowest_ms']:,} ms at most" in lines
