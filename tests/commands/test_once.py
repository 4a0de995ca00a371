"""--once ends: with nothing to do at once, and without progress after a while, with the reason."""

from __future__ import annotations

import time
from typing import Any

from harness.consuming import change, start_consumer
from harness.database import query
from harness.log_reader import INSERT
from harness.pipeline import Pipeline
from harness.producing import create_topic

import pytest

LIMIT = 2  # seconds, not 60


def once(pipeline: Pipeline, script: str) -> Any:
    """Run an impatient script with --once; returns the line that it ends with."""
    impatient = pipeline.sabotaged(f"import {script}", f"{script}.GIVE_UP = {LIMIT}")
    result = pipeline.run(impatient, "--once", seconds=20)
    assert result.returncode == 1, result.stdout + result.stderr
    (line,) = result.stderr.splitlines()
    return line


@pytest.mark.timing
def test_a_consumer_whose_group_has_given_all_partitions_to_others_says_so_at_once(bare_pipeline: Pipeline) -> None:
    create_topic(bare_pipeline, partitions=1)
    assert bare_pipeline.run("db_setup.py").returncode == 0
    start_consumer(bare_pipeline)
    started = time.monotonic()
    result = bare_pipeline.run("consumer.py", "--once", seconds=20)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"nothing applied: other consumers of group {bare_pipeline.name} have all partitions")
    assert time.monotonic() - started < 10


def test_a_consumer_that_joins_another_one_reads_its_share_and_exits_0(shared: Pipeline) -> None:
    with shared.running("consumer.py") as first:
        first.wait_for("partitions assigned")
        result = shared.run("consumer.py", "--once", seconds=20)
        assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.timing
def test_a_consumer_gives_up_where_a_statement_waits_for_a_lock(shared: Pipeline) -> None:
    shared.send(change(1, 1), partition=0)
    user = shared.destination()
    query(user, "BEGIN; LOCK TABLE employees")
    line = once(shared, "consumer")
    query(user, "ROLLBACK")
    assert f"a statement waits for a lock held by pid {user.info.backend_pid}" in line
    assert line.endswith("gave up after 2 s")


@pytest.mark.timing
def test_a_producer_gives_up_where_a_statement_waits_for_a_lock(shared: Pipeline) -> None:
    user = shared.source()
    query(user, "BEGIN; LOCK TABLE emp_cdc")
    line = once(shared, "producer")
    query(user, "ROLLBACK")
    assert f"a statement waits for a lock held by pid {user.info.backend_pid}" in line
    assert line.endswith("gave up after 2 s")


@pytest.mark.timing
def test_a_producer_gives_up_where_a_long_transaction_keeps_it_from_mending_the_log(shared: Pipeline) -> None:
    source, writer = shared.source(), shared.source()
    move = "SELECT setval('emp_cdc_cdc_id_seq', coalesce(max(cdc_id), 0) + {}) FROM emp_cdc"
    query(source, f"{move.format(1_000)}; {INSERT}")
    shared.drain()
    query(source, move.format(-500))  # no row has the offsets that follow
    query(writer, f"BEGIN; {INSERT}")
    try:
        assert once(shared, "producer") == "a long transaction holds emp_cdc; gave up after 2 s"
    finally:  # a second try needs the log mended
        query(writer, "ROLLBACK")
        shared.drain()
