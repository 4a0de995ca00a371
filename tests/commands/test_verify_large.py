"""verify.py on a large table: little memory, and no long transaction."""

from __future__ import annotations

import threading
import time
from contextlib import closing

from harness.database import query
from harness.pipeline import Pipeline
from harness.script import PEAK
from harness.verifying import MANY, fill_both

import psycopg2
import pytest


@pytest.mark.timing
@pytest.mark.parametrize("rows", [MANY, pytest.param(1_000_000, marks=pytest.mark.long)])
def test_a_large_table_takes_little_memory_and_no_long_transaction(pipeline: Pipeline, rows: int) -> None:
    fill_both(pipeline, rows)
    measured = pipeline.sabotaged("import verify", *PEAK)
    base, longest, done = 0.0, 0.0, threading.Event()

    def watch(url: str) -> None:
        nonlocal longest
        with closing(psycopg2.connect(url)) as connection:
            connection.autocommit = True
            while not done.wait(0.05):
                ((seconds,),) = query(
                    connection,
                    "SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)::float"
                    " FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'employee-cdc'",
                )
                longest = max(longest, seconds)

    watchers = [threading.Thread(target=watch, args=(url,)) for url in (pipeline.source_url, pipeline.destination_url)]
    for watcher in watchers:
        watcher.start()
    try:
        for what, plant in (
            ("equal", "SELECT"),
            ("one in a thousand differs", "UPDATE employees SET city = 'x' WHERE emp_id % 1000 = 0"),
            ("all differ", "UPDATE employees SET city = 'x'"),
        ):
            query(pipeline.destination(), plant)
            started = time.monotonic()
            result = pipeline.run(measured, seconds=900)
            seconds, peak = time.monotonic() - started, int(result.stderr.split()[-1]) / 1024
            base = base or peak
            print(f"{rows:,} rows, {what}: {seconds:.1f} s, peak {peak:.0f} MB")
            assert peak < base + 30
    finally:
        done.set()
        for watcher in watchers:
            watcher.join()
    print(f"longest transaction {longest:.2f} s")
    assert longest < 1.0 + rows / 500_000
