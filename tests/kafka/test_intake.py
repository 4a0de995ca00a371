"""How the consumer takes messages: batches that fill, read ahead, and bounded memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

from cdc import intake
from cdc.kafka import Brokers, make_client
from harness.consuming import change, consuming, wait_until_read
from harness.database import query
from harness.kafka import client_settings
from harness.pipeline import Pipeline

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition


def wide(cdc_ids: range, employees: int, letters: str, action: str) -> Iterator[str]:
    """Changes of so many employees, with texts as long as they may be."""
    text = dict.fromkeys(("first_name", "last_name", "city"), letters)
    value = change(1, 1, action, **text, dob="2000-01-01", salary=1)
    keys = '"cdc_id":1,"emp_id":1,'
    assert keys in value
    for cdc_id in cdc_ids:  # far sooner than to make each of them a record
        yield value.replace(keys, f'"cdc_id":{cdc_id},"emp_id":{1 + cdc_id % employees},')


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process's peak from Linux' /proc")
@pytest.mark.parametrize(
    ("employees", "letters", "action", "constraint"),
    [
        pytest.param(5_000, "Ж" * 100, "UPDATE", "", id="few wide employees"),
        pytest.param(150_000, "Ж" * 100, "UPDATE", "", id="many wide employees"),
        pytest.param(150_000, "😀" + "a" * 99, "UPDATE", "", id="four bytes a letter, in Python only"),
        pytest.param(150_000, "😀" + "a" * 99, "INSERT", "", id="by COPY"),
        pytest.param(150_000, "😀" + "a" * 99, "INSERT", "CHECK (emp_id > 0)", id="where COPY cannot be used"),
        pytest.param(0, "", "", "", id="large messages that are no change"),
    ],
)
def test_a_backlog_of_any_kind_stays_within_bounded_memory(
    pipeline: Pipeline, employees: int, letters: str, action: str, constraint: str
) -> None:
    if constraint:
        query(pipeline.destination(), f"ALTER TABLE employees ADD {constraint}")
    if employees:
        for start in range(1, 150_000, 30_000):
            values = wide(range(start, start + 30_000), employees, letters, action)
            pipeline.send(*values, partition=start // 30_000 % 3)
    else:
        for partition in range(3):
            pipeline.send(*("x" * 500_000 for _ in range(100)), partition=partition)
    megabytes = pipeline.peak_memory("consumer.py")
    print(f"peak of the consumer: {megabytes:.0f} MB")
    assert megabytes < 150


@contextmanager
def reading_from_the_end(pipeline: Pipeline) -> Iterator[Consumer]:
    with closing(make_client(Consumer, intake.kafka_settings(), Brokers())) as reading:
        place = TopicPartition(pipeline.topic, 0)
        place.offset = reading.get_watermark_offsets(place, timeout=10)[1]
        reading.assign([place])
        yield reading


def test_a_batch_holds_no_more_bad_messages_than_a_crash_may_send_again(pipeline: Pipeline) -> None:
    count = 3 * intake.MAX_BAD
    with reading_from_the_end(pipeline) as reading:
        pipeline.send(*(f"no change {number}" for number in range(count)), partition=0)
        taking, sizes = intake.Intake(reading), list[int]()
        while sum(sizes) < count:
            batch, _ = taking.take_batch()
            sizes.append(len(batch.bad))
        assert max(sizes) < intake.MAX_BAD + intake.CHUNK


@pytest.mark.timing
@pytest.mark.parametrize("expect_folding", [False, True])
def test_a_backlog_that_is_read_does_not_wait_for_what_trickles_in_after_it(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, expect_folding: bool
) -> None:
    for name in ("FOLDING_FILL_TIME", "FILL_TIME"):
        monkeypatch.setattr(intake, name, 30.0)
    values = [change(n, n) for n in range(1, intake.CHUNK * 3 // 2)]
    with reading_from_the_end(pipeline) as reading, ThreadPoolExecutor(1) as pool:
        pipeline.send(*values, partition=0)
        trickling = True

        def trickle() -> None:
            producer = Producer({**client_settings(), "linger.ms": 0})
            while trickling:
                producer.produce(pipeline.topic, values[0], partition=0)
                assert producer.flush(10) == 0
                time.sleep(0.01)

        trickle_done = pool.submit(trickle)
        try:
            taking = intake.Intake(reading, expect_folding=expect_folding)
            started = time.monotonic()
            while len(taking.batch.messages) < len(values):
                taking.fill()
            assert time.monotonic() - started < 10
        finally:
            trickling = False
        trickle_done.result()


@pytest.mark.timing
@pytest.mark.parametrize("employees", [2000, 500])
def test_a_batch_waits_for_more_only_where_that_leaves_fewer_records(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, employees: int
) -> None:
    monkeypatch.setattr(intake, "MAX_EMPLOYEES", 2000)
    for name in ("FOLDING_CHUNK_WAIT", "FOLDING_FILL_TIME"):
        monkeypatch.setattr(intake, name, 3.0)
    with reading_from_the_end(pipeline) as reading:
        taking = intake.Intake(reading)

        def fill(count: int) -> float:
            pipeline.send(*(change(n, n % employees) for n in range(1, count + 1)), partition=0)
            started = time.monotonic()
            while len(taking.batch.messages) < count:
                taking.fill()
            taking.take_batch()
            return time.monotonic() - started

        assert fill(2000) < 2  # nothing is known yet
        assert (fill(1500) > 2) == (employees < 2000)
        assert fill(1500) > 2  # the batch before was not full: it shows nothing
        assert fill(500) < 2
        assert fill(1500) < 2  # after less than a chunk


def test_of_a_page_that_came_twice_the_newest_change_is_applied(shared: Pipeline) -> None:
    """A producer that crashed publishes its page again: in one batch, an older change can come after a newer one."""
    newer, older = change(10**9 + 1, -5, "UPDATE", city="new"), change(10**9, -5, city="old")
    shared.send(older, newer, older, partition=0)
    with consuming(shared):
        wait_until_read(shared)
    assert query(shared.destination(), "SELECT city FROM employees WHERE emp_id = -5") == [("new",)]
