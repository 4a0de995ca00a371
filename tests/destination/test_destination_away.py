"""A destination that is away, misses a table or cannot be written to: said once, waited out, and nothing is lost."""

from __future__ import annotations

import time

import config
from harness.consuming import change, consuming, not_setting, start_consumer, wait_until_read
from harness.database import administer, query
from harness.destination import alter_destination, let_in, shut_out, terminate, wait_for_rows
from harness.pipeline import Pipeline

import pytest
from psycopg2.extensions import connection as Connection


@pytest.mark.timing
def test_a_long_outage_is_said_once_waited_out_and_costs_no_membership(pipeline: Pipeline) -> None:
    with consuming(pipeline, KAFKA_MAX_POLL_INTERVAL_MS="6000") as script:
        pipeline.send(change(1, 1), partition=0)
        wait_for_rows(pipeline, [1])
        terminate(pipeline)  # only the session: back at once
        pipeline.send(change(2, 2), partition=1)
        wait_for_rows(pipeline, [1, 2])
        assert "; waiting" not in script.output()
        shut_out(pipeline)
        pipeline.send(change(3, 3), partition=0)
        script.wait_for("; waiting")
        before = script.output()
        time.sleep(6.5)  # longer than the group waits for a poll
        assert script.output() == before
        let_in(pipeline)
        pipeline.send(change(4, 4), partition=2)
        wait_for_rows(pipeline, [1, 2, 3, 4])
        wait_until_read(pipeline)
        assert pipeline.destination_url.rpartition("@")[2].partition("/")[0] in before  # the address
        assert script.output().count("partitions assigned") == 1
        assert "partitions revoked" not in script.output()
    assert pipeline.dead_letters() == []


def test_partitions_may_change_hands_while_consumers_wait_for_the_destination(pipeline: Pipeline) -> None:
    first = start_consumer(pipeline)
    pipeline.send(*(change(n, n) for n in range(1, 4)), partition=0)
    wait_for_rows(pipeline, [1, 2, 3])
    shut_out(pipeline)
    for partition in range(3):
        pipeline.send(change(10 + partition, 10 + partition), partition=partition)
    first.wait_for("; waiting")
    second = start_consumer(pipeline)
    first.wait_for("partitions revoked")
    second.wait_for("; waiting")
    for partition in range(3):
        pipeline.send(change(20 + partition, 20 + partition), partition=partition)
    let_in(pipeline)
    wait_for_rows(pipeline, [1, 2, 3, 10, 11, 12, 20, 21, 22])
    for script in (first, second):
        assert script.stop() == 0, script.output()


@pytest.mark.timing
def test_a_partition_given_up_while_the_destination_was_away_is_read_when_it_comes_back(pipeline: Pipeline) -> None:
    first = start_consumer(pipeline)
    shut_out(pipeline)
    for partition in range(3):
        pipeline.send(change(10 + partition, 10 + partition), partition=partition)
    first.wait_for("; waiting")
    second = start_consumer(pipeline)
    first.wait_for("partitions revoked")
    let_in(pipeline)
    wait_for_rows(pipeline, [10, 11, 12])
    assert second.stop() == 0
    for partition in range(3):
        pipeline.send(change(20 + partition, 20 + partition), partition=partition)
    wait_for_rows(pipeline, [10, 11, 12, 20, 21, 22], seconds=8)
    assert first.stop() == 0


@pytest.mark.timing
def test_partitions_added_while_the_destination_is_away_are_read(pipeline: Pipeline) -> None:
    with consuming(pipeline) as script:
        pipeline.send(change(1, 1), partition=0)
        wait_for_rows(pipeline, [1])
        shut_out(pipeline)
        pipeline.send(change(2, 2), partition=0)
        script.wait_for("; waiting")
        assert pipeline.run("admin.py", "create", "--partitions", "5").returncode == 0
        script.wait_for("partitions assigned: 0, 1, 2, 3, 4")
        for partition in range(5):
            pipeline.send(change(10 + partition, 10 + partition), partition=partition)
        time.sleep(1)  # some polls, each of which may meet an event of the new ones
        let_in(pipeline)
        wait_for_rows(pipeline, [1, 2, 10, 11, 12, 13, 14], seconds=6)


@pytest.mark.timing
def test_a_stop_while_the_destination_is_away_ends_soon_and_loses_nothing(shared: Pipeline) -> None:
    query(shared.destination(), "TRUNCATE employees, cdc_applied")
    shut_out(shared)
    try:
        shared.send(change(1, 1), partition=0)
        with consuming(shared) as script:
            script.wait_for("; waiting")
            started = time.monotonic()
            assert script.stop() == 0
            assert time.monotonic() - started < 5
    finally:
        let_in(shared)
    with consuming(shared):
        wait_for_rows(shared, [1])


def test_a_table_missing_at_the_destination_is_said_and_waited_for(pipeline: Pipeline) -> None:
    with consuming(pipeline) as script:
        query(pipeline.destination(), "DROP TABLE cdc_applied")
        pipeline.send(change(1, 1), partition=0)
        script.wait_for("run python db_setup.py; waiting")
        assert pipeline.run("db_setup.py").returncode == 0
        wait_for_rows(pipeline, [1])
        assert script.output().count("; waiting") == 1
    assert pipeline.dead_letters() == []


def test_a_destination_that_is_read_only_is_waited_for(shared: Pipeline, destination: Connection) -> None:
    alter_destination(shared, "SET default_transaction_read_only = on")
    try:
        shared.send(change(1, 1), change(2, 2, "DELETE"), partition=0)
        with consuming(shared, not_setting(shared, "default_transaction_read_only")) as script:
            script.wait_for("in a read-only transaction; waiting")
            alter_destination(shared, "RESET default_transaction_read_only")
            wait_for_rows(shared, [1])
            wait_until_read(shared)
            assert script.output().count("; waiting") == 1
            assert "dead letter" not in script.output()
    finally:
        alter_destination(shared, "RESET default_transaction_read_only")


def test_a_bad_message_is_buried_once_however_long_the_good_ones_wait(
    shared: Pipeline, destination: Connection
) -> None:
    query(destination, "ALTER TABLE cdc_applied RENAME TO away")
    shared.send("bad beside good ones that wait", change(1, 1), partition=0)
    with consuming(shared) as script:
        script.wait_for("; waiting")
        time.sleep(2)  # some more tries
        query(destination, "ALTER TABLE away RENAME TO cdc_applied")
        wait_for_rows(shared, [1])
        wait_until_read(shared)
    letters = [letter for letter in shared.dead_letters() if letter.value() == b"bad beside good ones that wait"]
    assert len(letters) == 1


@pytest.mark.timing
def test_a_destination_without_an_encoding_takes_every_text(bare_pipeline: Pipeline) -> None:
    administer(config.DESTINATION_DATABASE_URL, f"DROP DATABASE {bare_pipeline.name}_copy")
    create = f"CREATE DATABASE {bare_pipeline.name}_copy ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0"
    administer(config.DESTINATION_DATABASE_URL, create)
    bare_pipeline.set_up()
    bare_pipeline.send(change(1, 1, city="Zürich"), partition=0)
    with consuming(bare_pipeline) as script:
        wait_for_rows(bare_pipeline, [1], seconds=5)
        assert "dead letter" not in script.output()
