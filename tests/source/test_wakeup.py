"""Falling asleep and waking up: no change waits for the poll interval."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import config
import producer
from cdc import cli, wakeup
from cdc.history import History
from cdc.kafka import Brokers
from cdc.outage import Outage
from cdc.progress import Report
from cdc.publisher import PAGE
from cdc.topic import Tail
from cdc.upkeep import Upkeep
from harness.database import ALWAYS_NOTIFY, query
from harness.log_reader import INSERT, LOG_HEAD, Reader
from harness.pipeline import Pipeline
from harness.producing import HELD_BY_WRITERS, UNPUBLISHED, start_producer, wait_until_published
from harness.waiting import wait_until

import pytest
from psycopg2.extensions import connection as Connection


@contextmanager
def streaming(reader: Reader) -> Iterator[Future[None]]:
    """producer.stream beside the test, stopped at the end; what it raised, the test raises."""
    stop, brokers, report = cli.Stop(), Brokers(), Report(producer.log, "published")
    upkeep = Upkeep(reader.source, History(reader.source, Tail(brokers), stop))
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(
            producer.stream, reader.client, reader.saver, upkeep, brokers, Outage(stop), report, once=False
        )
        try:
            yield stream
        finally:
            stop.requested = True
        stream.result(10)


@pytest.mark.timing
def test_at_rest_no_change_waits_for_the_poll_interval(pipeline: Pipeline) -> None:
    start_producer(pipeline, POLL_INTERVAL="30")
    source = pipeline.source()
    for pause in [0, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1] * 3:
        time.sleep(pause)  # the producer is awake, falling asleep, or asleep
        query(source, INSERT)
        assert wait_until_published(source, 5) < 1


@pytest.mark.timing
def test_beside_an_open_transaction_no_change_waits_for_the_poll_interval(pipeline: Pipeline) -> None:
    start_producer(pipeline, POLL_INTERVAL="30")
    source, idle = pipeline.source(), pipeline.source()
    for _ in range(5):
        query(idle, f"BEGIN; {INSERT}")
        query(source, INSERT)
        ((last,),) = query(source, LOG_HEAD)
        started = time.monotonic()
        wait_until(lambda: query(source, f"SELECT last_offset >= {last} FROM cdc_position") == [(True,)])  # noqa: B023
        assert time.monotonic() - started < 1
        query(idle, "COMMIT")
        assert wait_until_published(source, 5) < 1


@pytest.mark.parametrize("held", [False, True], ids=["that has committed", "that is still open"])
def test_a_change_that_saw_the_producer_awake_does_not_wait_where_it_falls_asleep(
    read: Callable[[], Reader], sessions: list[Connection], monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    monkeypatch.setattr(config, "POLL_INTERVAL", 30.0)
    try_lock = wakeup.try_lock
    tries: list[bool] = []

    def change_and_try_lock(source: Connection, lock: int) -> bool:
        if not tries:  # the poll before found nothing; the writer still finds the lock free
            query(sessions[0], f"BEGIN; {INSERT}")
            assert query(sessions[1], HELD_BY_WRITERS) == [("ShareLock",)]
        if not held or len(tries) == 3:
            query(sessions[0], "COMMIT")
        tries.append(try_lock(source, lock))
        return tries[-1]

    monkeypatch.setattr(wakeup, "try_lock", change_and_try_lock)
    reader = read()
    with streaming(reader) as stream:
        try:
            wait_until(lambda: reader.ids() == [1] or stream.done(), 5, "the change is published")
        finally:
            query(sessions[0], "COMMIT")
    assert tries[:4] == ([False, False, False, True] if held else [True, *tries[1:4]])


def test_a_poll_that_took_long_makes_no_long_pause(databases: Pipeline) -> None:
    """As of a producer that was stopped in the middle of one, while a writer had yet to commit."""
    producing, writing = databases.source(), databases.source()
    query(writing, f"SELECT pg_advisory_lock_shared({wakeup.CDC}, {wakeup.ASLEEP})")
    started = time.monotonic()
    wakeup.Rest(producing, cli.Stop()).after(0, False, took=8.0, until=started + 60)
    assert time.monotonic() - started < 1


def test_no_change_is_missed_around_the_moment_of_falling_asleep(pipeline: Pipeline) -> None:
    """The first change of a round wakes the producer; others come while it falls asleep again, mostly a single one, as
    the notification of the next one would make good for one that was missed. The next round waits for all. Each page
    saves its position here: a wake-up to save it would make good, too."""
    always = pipeline.sabotaged("import producer", "from cdc import position", "position.EVERY = 0")
    pipeline.start(always, POLL_INTERVAL="30").wait_for("publishing from")
    at = random.Random(1)
    source, *writers = [pipeline.source() for _ in range(5)]

    def write(connection: Connection, before: float, within: float, end: str) -> None:
        time.sleep(before)
        query(connection, f"BEGIN; {INSERT}")
        time.sleep(within)
        query(connection, end)

    slowest = 0.0
    with ThreadPoolExecutor(len(writers)) as pool:
        for _ in range(250):
            query(source, INSERT)
            pauses = [(at.uniform(0, 0.006), at.uniform(0, 0.006)) for _ in range(at.choice([1, 1, 1, 1, 2, 4]))]
            others = [
                pool.submit(write, writer, *pause, at.choice(["COMMIT"] * 5 + ["ROLLBACK"]))
                for writer, pause in zip(writers, pauses, strict=False)
            ]
            for other in others:
                other.result()
            slowest = max(slowest, wait_until_published(source, 10))
    print(f"the slowest round took {slowest * 1000:.0f} ms")
    assert slowest < 2


def notifications_and_commits(pipeline: Pipeline, seconds: float) -> tuple[int, int]:
    listener = pipeline.source()
    query(listener, "LISTEN emp_cdc")

    def write(connection: Connection) -> int:
        end, commits = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            query(connection, INSERT)
            commits += 1
        return commits

    writers = [pipeline.source() for _ in range(4)]
    with ThreadPoolExecutor(len(writers)) as pool:
        commits = sum(pool.map(write, writers))
    query(listener, "SELECT")
    return len(listener.notifies), commits


@pytest.mark.alone  # on a busy machine the writers are slow enough for the producer to fall asleep
def test_under_load_nobody_notifies(pipeline: Pipeline) -> None:
    start_producer(pipeline)
    notifications, commits = notifications_and_commits(pipeline, 2)
    print(f"{notifications} notifications, {commits} commits")
    assert notifications < commits / 20
    source = pipeline.source()
    query(source, ALWAYS_NOTIFY)
    notifications, commits = notifications_and_commits(pipeline, 0.5)
    assert notifications == commits, "the count of notifications shows nothing"


@pytest.mark.timing
@pytest.mark.parametrize(("changes", "wakes"), [(1, 0), (wakeup.FEW, 0), (wakeup.FEW + 1, 1)])
def test_only_a_larger_page_wakes_the_producer_up(
    read: Callable[[], Reader], sessions: list[Connection], monkeypatch: pytest.MonkeyPatch, changes: int, wakes: int
) -> None:
    monkeypatch.setattr(config, "POLL_INTERVAL", 30.0)
    woken: list[None] = []
    wake_up = wakeup.Rest.wake_up
    monkeypatch.setattr(wakeup.Rest, "wake_up", lambda rest: woken.append(wake_up(rest)))
    reader = read()
    with streaming(reader):
        for _ in range(3):
            wait_until(lambda: query(sessions[0], HELD_BY_WRITERS) == [("ExclusiveLock",)], 5, "it sleeps")
            query(sessions[1], f"INSERT INTO employees (salary) SELECT generate_series(1, {changes})")
            wait_until(lambda: query(sessions[0], UNPUBLISHED) == [(0,)], 5, "all published")
            time.sleep(0.1)
    assert (len(reader.ids()), len(woken)) == (3 * changes, 3 * wakes)


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [(wakeup.FEW, 0), (wakeup.FEW + 1, 0.002), (50, 0.005), (100, 0.01), (5_000, 0.02), (PAGE, 0)],
)
def test_the_larger_a_page_the_longer_the_next_one_may_fill(
    read: Callable[[], Reader],
    sessions: list[Connection],
    monkeypatch: pytest.MonkeyPatch,
    changes: int,
    seconds: float,
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(cli.Stop, "sleep", lambda _, seconds: slept.append(seconds))
    reader = read()
    query(reader.source, f"INSERT INTO employees (salary) SELECT generate_series(1, {changes})")
    with streaming(reader):
        wait_until(lambda: query(sessions[0], HELD_BY_WRITERS) == [("ExclusiveLock",)], 5, "it sleeps")
    assert slept == ([seconds] if seconds else [])


@pytest.mark.timing
def test_without_notifications_a_change_waits_for_the_poll_interval_only(pipeline: Pipeline) -> None:
    source = pipeline.source()
    query(source, "SET cdc.notify = off; LISTEN emp_cdc")
    start_producer(pipeline, POLL_INTERVAL="0.3")
    for _ in range(3):
        query(source, INSERT)
        assert wait_until_published(source, 5) < 1
    assert source.notifies == []
