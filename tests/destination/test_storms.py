"""Thousands of messages that can never be applied: buried fast, once, in order, and without a flood of lines."""

from __future__ import annotations

import time

from harness.consuming import change, consuming, wait_until_read
from harness.database import query
from harness.destination import ids, log_of_the_server, wait_for_rows
from harness.kafka import count_messages
from harness.pipeline import Pipeline
from harness.waiting import wait_until

import pytest
from confluent_kafka import Message

MANY = 10_000
SECONDS = 12  # 2 on a quiet machine; one by one it took 26 there
REFUSE = "ALTER TABLE employees ADD CONSTRAINT adult CHECK (city <> 'Nowhere')"


def offset(letter: Message) -> int:
    return int(dict(letter.headers() or [])["offset"])  # type: ignore[arg-type]


STORMS = {
    "messages that are no change": ["no change"] * MANY,
    "rows that the destination refuses": [change(n, 100_000 + n, city="Nowhere") for n in range(1, MANY + 1)],
}


@pytest.mark.timing
@pytest.mark.parametrize("storm", STORMS)
def test_a_storm_is_buried_in_order_fast_and_in_few_lines(pipeline: Pipeline, storm: str) -> None:
    query(pipeline.destination(), REFUSE)
    pipeline.send(*STORMS[storm], partition=0)
    pipeline.send(change(1, 1), partition=1)
    with consuming(pipeline) as script:
        letters = f"{pipeline.topic}_dlq"
        wait_until(lambda: count_messages(letters) >= 1)
        started = time.monotonic()
        wait_until(lambda: count_messages(letters) >= MANY, 60)
        took = time.monotonic() - started
        wait_for_rows(pipeline, [1])
        wait_until_read(pipeline)
    assert [offset(letter) for letter in pipeline.dead_letters()] == list(range(MANY))
    assert took < SECONDS, took
    output = script.output()
    assert 1 <= output.count(" → dead letter: ") <= 3 + took, output
    assert "applied 1 change in all" in output
    assert f"sent {MANY:,} dead letters in all" in output


def test_a_storm_that_is_interrupted_repeats_no_more_than_the_part_in_hand(pipeline: Pipeline) -> None:
    query(pipeline.destination(), REFUSE)
    pipeline.send(*STORMS["rows that the destination refuses"], partition=0)
    letters = f"{pipeline.topic}_dlq"
    for count in (1, 4_000, MANY):
        with consuming(pipeline):
            wait_until(lambda count=count: count_messages(letters) >= count, 60)  # type: ignore[misc]
            if count == MANY:
                wait_until_read(pipeline)
    offsets = [offset(letter) for letter in pipeline.dead_letters()]
    assert set(offsets) == set(range(MANY))
    assert len(offsets) <= MANY + 2 * 1_000


@pytest.mark.parametrize("deleting", [False, True])
def test_a_refused_batch_leaves_no_names_in_the_servers_log(pipeline: Pipeline, deleting: bool) -> None:
    destination, secret = pipeline.destination(), f"Ada{pipeline.name}"
    query(destination, REFUSE)
    log = log_of_the_server(destination)
    before = log.stat().st_size
    rows = [change(n, n, first_name=secret, city="Nowhere" if n == 3_000 else "Rome") for n in range(1, 5_001)]
    rows += [change(6_000, 1, "DELETE", first_name=secret)] if deleting else []
    pipeline.send(*rows, partition=0)
    with consuming(pipeline):
        wait_until_read(pipeline)
    assert len(ids(destination)) == 4_999 - deleting
    assert len(pipeline.dead_letters()) == 1
    with log.open("rb") as file:
        file.seek(before)
        written = file.read()
    assert secret.encode() not in written
