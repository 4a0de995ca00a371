"""Rows that become visible at or below the offset, and the order in which changes are published."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import producer
from cdc import emp_cdc
from cdc.message import Change
from harness.database import query
from harness.log_reader import (
    ALL,
    INSERT,
    LOG_HEAD,
    TAKE_XID,
    Reader,
    leave_out,
    log_late_rows,
    the_higher_xid_draws_the_lower_offset,
    the_lower_offset_commits_last,
)
from harness.pipeline import Pipeline
from harness.producing import in_pages_of

import pytest
from confluent_kafka import Producer
from psycopg2.extensions import connection as Connection

Interleaving = Callable[[list[Connection], Callable[[], bool]], Any]


@pytest.mark.parametrize(
    ("interleaving", "needed"),
    [
        pytest.param(the_lower_offset_commits_last, emp_cdc.RUNNING_THEN, id="running at the poll"),
        pytest.param(the_higher_xid_draws_the_lower_offset, emp_cdc.BEGUN_LATER, id="above the snapshot's xmax"),
    ],
)
def test_a_change_that_commits_at_or_below_the_offset_is_not_lost(
    read: Callable[[], Reader],
    sessions: list[Connection],
    monkeypatch: pytest.MonkeyPatch,
    interleaving: Interleaving,
    needed: str,
) -> None:
    def losses() -> set[int]:
        reader = read()
        reader.drain()
        ((head,),) = query(reader.source, LOG_HEAD)
        interleaving(sessions, reader.poll)
        reader.drain()
        assert len(reader.ids()) == len(set(reader.ids()))
        lost = reader.lost(since=head)
        query(reader.source, "UPDATE cdc_position SET snapshot = pg_current_snapshot()")  # what is lost stays lost
        reader.source.close()
        return lost

    for _ in range(5):
        assert losses() == set()
    with monkeypatch.context() as without:
        leave_out(without, needed)
        assert any(losses() for _ in range(20)), "the interleaving does not need this half"
    with monkeypatch.context() as without:
        leave_out(without, emp_cdc.RUNNING_THEN, emp_cdc.BEGUN_LATER)
        assert losses(), "the interleaving does not need the late rows"
    assert losses() == set()


def test_a_rolled_back_transaction_leaves_a_hole_that_stalls_nothing(
    read: Callable[[], Reader], sessions: list[Connection]
) -> None:
    a, b, *_ = sessions
    reader = read()
    query(a, f"BEGIN; {INSERT}")
    query(b, INSERT)
    assert reader.poll()
    query(a, "ROLLBACK")
    query(b, INSERT)
    assert reader.poll()
    assert not reader.poll()
    assert reader.ids() == [2, 3]


def test_an_open_transaction_stalls_nobody(read: Callable[[], Reader], sessions: list[Connection]) -> None:
    a, b, *_ = sessions
    reader = read()
    query(a, f"BEGIN; {INSERT}")
    for cdc_id in range(2, 6):
        query(b, INSERT)
        assert reader.poll()
        assert reader.ids()[-1] == cdc_id
    query(a, "COMMIT")
    assert reader.poll()
    assert reader.ids() == [2, 3, 4, 5, 1]


@pytest.mark.parametrize("page_size", [1, 2, ALL])
def test_late_changes_of_an_employee_go_before_its_newer_ones(
    read: Callable[[], Reader], sessions: list[Connection], page_size: int
) -> None:
    a, b, *_ = sessions
    reader = read()
    query(a, "INSERT INTO employees (emp_id) VALUES (7)")
    query(a, "BEGIN; UPDATE employees SET salary = 1; UPDATE employees SET salary = 2")
    query(b, INSERT)
    reader.drain(page_size)
    query(a, "COMMIT")
    query(b, "UPDATE employees SET salary = 3 WHERE emp_id = 7")
    reader.drain(page_size)
    assert [change.cdc_id for change in reader.published if change.emp_id == 7] == [1, 2, 3, 5]


def test_changes_go_in_the_order_of_their_commits_per_employee_which_is_not_that_of_transaction_ids(
    read: Callable[[], Reader], sessions: list[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, *_ = sessions
    query(a, "INSERT INTO employees (emp_id) VALUES (7)")
    read().drain()

    def cities() -> list[str | None]:
        query(a, f"BEGIN; {TAKE_XID}")
        query(b, "UPDATE employees SET city = 'older'")
        query(a, "UPDATE employees SET city = 'newer'; COMMIT")
        reader = read()
        reader.drain()
        return [change.city for change in reader.published]

    assert cities() == ["older", "newer"]
    leave_unsorted(monkeypatch)
    by_txid = emp_cdc.SESSION.replace("> $1 ORDER BY cdc_id LIMIT $3", "> $1 ORDER BY txid, cdc_id LIMIT $3")
    assert by_txid != emp_cdc.SESSION
    monkeypatch.setattr(emp_cdc, "SESSION", by_txid)
    assert cities()[0] == "newer"


def leave_unsorted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emp_cdc, "sorted", lambda changes, key: list(changes), raising=False)


@pytest.mark.parametrize("order", ["sorted", "as found"])
def test_late_changes_of_an_employee_go_in_their_order_wherever_their_rows_lie(
    read: Callable[[], Reader], sessions: list[Connection], monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    """The index of txid finds a transaction's rows as they lie in the table: a page that was pruned is filled last."""
    if order == "as found":
        leave_unsorted(monkeypatch)
    a, b, *_ = sessions
    reader = read()
    query(a, "INSERT INTO employees (emp_id) SELECT generate_series(100, 400)")
    reader.drain()
    query(a, "DELETE FROM emp_cdc WHERE cdc_id < 200")
    query(a, "BEGIN; INSERT INTO employees (emp_id) VALUES (7)")
    update = "DO 'BEGIN FOR n IN {}..{} LOOP UPDATE employees SET salary = n WHERE emp_id = 7; END LOOP; END'"
    query(a, update.format(1, 150))
    query(b, "VACUUM emp_cdc")
    query(a, update.format(151, 300))
    query(b, INSERT)
    reader.drain()
    query(a, "COMMIT")
    reader.drain()
    salaries = [change.salary for change in reader.published if change.emp_id == 7]
    assert len(salaries) == 301
    assert (salaries == [None, *range(1, 301)]) == (order == "sorted")


# Late rows that are more than a page


def test_late_rows_of_one_snapshot_go_in_bounded_pages_and_what_comes_meanwhile_in_the_next_round(
    read: Callable[[], Reader], sessions: list[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = read()
    log_late_rows(reader, sessions)
    publish = producer.publish  # type: ignore[attr-defined]

    def publish_while_others_commit(client: Producer, page: list[Change], *rest: Any) -> list[Change]:
        aside: list[Change] = publish(client, page, *rest)
        if page[0].cdc_id == 1:
            query(sessions[1], "COMMIT")  # offset 26, below the reader's
            query(sessions[2], INSERT)  # offset 28, beyond it
        return aside

    monkeypatch.setattr(producer, "publish", publish_while_others_commit)
    assert reader.poll(10)
    assert reader.pages == [1, 10, 10, 5]
    assert reader.ids() == [27, *range(1, 26)]
    assert reader.poll(10)
    assert reader.ids() == [27, *range(1, 26), 26, 28]
    assert not reader.poll(10)


def test_late_rows_of_several_pages_are_counted_in_the_total(
    pipeline: Pipeline, read: Callable[[], Reader], sessions: list[Connection]
) -> None:
    log_late_rows(read(), sessions)
    result = pipeline.run(pipeline.sabotaged("import producer", in_pages_of(10)), "--once")
    assert "published 25 changes in all" in result.stdout
