"""Large batches by COPY: nobody is held up for long, and nothing of a row is in the server's log."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from cdc import bulk, cli
from cdc.apply import apply as apply_by_statement
from cdc.message import Change, Record
from cdc.postgres import connect, is_closed
from cdc.waiting import waiter
from harness.database import WAITING, query
from harness.destination import log_of_the_server
from harness.pipeline import Pipeline
from harness.waiting import wait_until

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection

SECRET = f"Ada Hidden {os.getpid()}"  # of this process: another one tests beside it what the log holds
MANY = 5_000
STUCK = "a consumer stuck in the middle of a batch had what we wait for, and its session is ended"


@pytest.fixture
def log_kept_secret(destination: Connection) -> Iterator[None]:
    """The server's log does not hold what the test applies."""
    log = log_of_the_server(destination)
    before = log.stat().st_size
    yield
    with log.open("rb") as file:
        file.seek(before)
        assert SECRET.encode() not in file.read()


def records(first_cdc_id: int, count: int = MANY) -> list[Record]:
    """A state of each employee from 1 to count."""
    return [Change(first_cdc_id + n, n, SECRET, None, None, None, n, "INSERT") for n in range(1, count + 1)]


def at_second_read(monkeypatch: pytest.MonkeyPatch, do: Callable[[], object]) -> None:
    """Have something done, once, when COPY has taken the first rows with a name and asks for more."""
    read, reads = bulk.Lines.read, list[int]()

    def interrupted(self: bulk.Lines, size: int = -1) -> bytes:
        if len(reads) == 1:
            reads.append(size)
            do()
        lines = read(self, size)
        if not reads and SECRET.encode() in lines:
            reads.append(size)
        return lines

    monkeypatch.setattr(bulk.Lines, "read", interrupted)


@pytest.mark.timing
def test_a_consumer_frozen_in_a_copy_holds_others_up_for_some_seconds(
    shared: Pipeline, destination: Connection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is active, and not idle, so PostgreSQL would leave it its locks for ever. Here a user waits for it, and the
    second consumer for the user."""
    frozen, go_on, user = threading.Event(), threading.Event(), shared.destination()

    def freeze() -> None:
        frozen.set()
        go_on.wait(60)

    def use() -> None:
        query(user, f"BEGIN; INSERT INTO employees (emp_id) VALUES ({MANY})")
        query(user, "UPDATE employees SET salary = -1 WHERE emp_id = 1; ROLLBACK")

    url = f"{shared.destination_url}?application_name=orders-sync"
    with (
        closing(connect("destination", url, bulk.SESSION)) as first,
        closing(connect("destination", url, bulk.SESSION)) as second,
        ThreadPoolExecutor() as pool,
    ):
        assert bulk.apply(first, records(0, 2_000)) == 2_000
        at_second_read(monkeypatch, freeze)
        try:
            stuck = pool.submit(bulk.try_bulk, first, records(10_000, 4_000))
            assert frozen.wait(10)
            waiting = pool.submit(use)
            wait_until(lambda: query(destination, WAITING) == [(1,)], what="the user waits for the frozen one")
            started = time.monotonic()
            assert bulk.apply(second, records(20_000, 7_000)[4_000:]) == 3_000
            assert 5 < time.monotonic() - started < 15
            waiting.result(20)
        finally:
            go_on.set()
        with pytest.raises(psycopg2.OperationalError):
            stuck.result(20)
    assert query(destination, "SELECT count(*), min(cdc_id) FROM cdc_applied") == [(2_000 + 3_000, 1)]
    assert caplog.text.count(f"{STUCK}; waiting for") == 1


def test_a_stop_beside_a_server_that_is_frozen_in_a_copy_ends_in_time(
    destination: Connection, session: Connection, monkeypatch: pytest.MonkeyPatch, log_kept_secret: None
) -> None:
    stop, backend = cli.Stop(), session.info.backend_pid
    monkeypatch.setattr(waiter, "stop", stop)
    at_second_read(monkeypatch, lambda: os.kill(backend, signal.SIGSTOP))
    threading.Timer(0.5, stop.request).start()
    started = time.monotonic()
    try:
        with pytest.raises(cli.Stopped):
            bulk.try_bulk(session, records(0, 10 * MANY))
        assert time.monotonic() - started < 5
    finally:
        os.kill(backend, signal.SIGCONT)
        stop.requested = False
    assert query(destination, "SELECT count(*) FROM cdc_applied") == [(0,)]


def test_a_stop_while_the_server_works_at_a_large_batch_leaves_no_lock(
    shared: Pipeline, destination: Connection, session: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bulk.apply(session, records(0)) == MANY
    holder, stop = shared.destination(), cli.Stop()
    query(holder, "BEGIN; SELECT FROM employees WHERE emp_id = 1 FOR UPDATE")
    monkeypatch.setattr(waiter, "stop", stop)
    monkeypatch.setattr(bulk, "BEGIN", "BEGIN")  # no lock_timeout: it waits as if the server had much to do
    stop.request()
    with pytest.raises(cli.Stopped):
        bulk.try_bulk(session, records(10_000))
    stop.requested = False
    wait_until(lambda: query(destination, WAITING) == [(0,)], 2, "its statement is cancelled")


@pytest.mark.parametrize("how", ["terminate", "cancel"])
def test_a_session_that_is_ended_in_a_copy_is_begun_again_and_one_cancelled_is_left_to_the_statement(
    shared: Pipeline,
    destination: Connection,
    session: Connection,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    how: str,
) -> None:
    end = f"SELECT pg_{how}_backend({session.info.backend_pid})"
    at_second_read(monkeypatch, lambda: query(shared.destination(), end))
    if how == "terminate":
        with pytest.raises(psycopg2.OperationalError, match="connection closed in the middle of a COPY") as closed:
            bulk.apply(session, records(0))
        assert is_closed(closed.value)  # so it is tried again at once, without a warning
        assert query(destination, "SELECT count(*) FROM cdc_applied") == [(0,)]
    else:
        assert bulk.apply(session, records(0)) == MANY
    assert "AdminShutdown" not in capfd.readouterr().err


def test_what_is_done_meanwhile_may_take_longer_than_a_transaction_may_be_idle(
    destination: Connection, session: Connection
) -> None:
    """A rebalance beside a broker that does not answer takes seconds, and PostgreSQL ends what is idle for 5 s."""
    query(session, "SET idle_in_transaction_session_timeout = '500ms'")

    def rebalance() -> bool:
        time.sleep(1)
        return True

    with waiter.doing(rebalance):
        assert bulk.try_bulk(session, records(0)) == [MANY, 0, 0]


def test_a_batch_that_another_ones_row_refuses_leaves_no_names_in_the_servers_log(
    destination: Connection, session: Connection, log_kept_secret: None
) -> None:
    query(destination, f"INSERT INTO employees (emp_id) VALUES ({MANY})")
    assert bulk.try_bulk(session, records(0)) is None
    assert bulk.apply(session, records(0)) == MANY


def test_rows_of_a_child_table_are_left_alone(
    destination: Connection, session: Connection, log_kept_secret: None
) -> None:
    """It may have a constraint of its own, and PostgreSQL would log the row that it refuses."""
    assert bulk.try_bulk(session, records(0, 3)) == [3, 0, 0]
    query(destination, "CREATE TABLE child (CHECK (salary < 0)) INHERITS (employees)")
    try:
        query(destination, "INSERT INTO child (emp_id, salary) VALUES (1, -1), (2, -1), (3, -1)")
        assert bulk.try_bulk(session, records(10, 3)) == [3, 0, 0]
        for apply, emp_id in ((bulk.try_bulk, 1), (apply_by_statement, 2)):
            assert apply(session, [Change(100, emp_id, None, None, None, None, None, "DELETE")])
        assert query(destination, "SELECT emp_id FROM ONLY employees") == [(3,)]
        assert query(destination, "SELECT emp_id, salary FROM child") == [(1, -1), (2, -1), (3, -1)]
    finally:
        query(destination, "DROP TABLE child")


def test_a_batch_that_waits_for_another_ones_row_is_the_statements_before_a_deadlock_is_looked_for(
    shared: Pipeline, destination: Connection, session: Connection, log_kept_secret: None
) -> None:
    """PostgreSQL would log what the other one has in its hands, too."""
    other = shared.destination()
    query(other, f"BEGIN; INSERT INTO employees (emp_id) VALUES ({MANY})")
    for deadlock_timeout, longest in (("10s", 2.0), ("400ms", 0.4)):
        query(session, f"SET deadlock_timeout = '{deadlock_timeout}'")
        started = time.monotonic()
        assert bulk.try_bulk(session, records(0)) is None
        assert time.monotonic() - started < longest
    query(other, "ROLLBACK")
    assert bulk.try_bulk(session, records(0)) == [MANY, 0, 0]


def test_without_a_thread_to_be_had_a_large_batch_goes_by_the_statement(
    destination: Connection, session: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(ThreadPoolExecutor, "submit", refuse)
    assert bulk.apply(session, records(0)) == MANY


def test_the_wait_callback_is_back_whatever_happens(
    destination: Connection, session: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    with waiter.doing(lambda: 1 / 0 == 1), pytest.raises(ZeroDivisionError):
        bulk.try_bulk(session, records(0))
    assert psycopg2.extensions.get_wait_callback() is waiter
    assert query(destination, "SELECT count(*) FROM cdc_applied") == [(0,)]
