"""Random schedules of several sessions: no change is lost, repeated or reordered."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import producer
from cdc import emp_cdc
from harness.database import query
from harness.log_reader import LOG_HEAD, TAKE_XID, Reader, leave_out
from harness.pipeline import Pipeline
from harness.producing import published, rise_per_employee

import pytest
from psycopg2.extensions import connection as Connection

SEEDS = range(1, 31)  # of schedules that each run plays; others are its own


def random_schedule(seed: int, sessions: list[Connection], poll: Callable[[int], bool]) -> None:
    """Transactions of several sessions, interleaved at random with polls of pages of 1 to 3 rows. Of two open
    transactions no two touch the same employee, as the second would wait."""
    at = random.Random(seed)
    touched: dict[Connection, set[int]] = {}  # by the open transactions

    def change(session: Connection) -> None:
        others = set().union(*(ids for owner, ids in touched.items() if owner is not session))
        if not (free := set(range(1, 13)) - others):
            return
        emp_id = at.choice(sorted(free))
        touched.get(session, set()).add(emp_id)
        statement = at.choice(
            [
                "INSERT INTO employees (emp_id, salary) VALUES (%s, %s) ON CONFLICT (emp_id) DO UPDATE SET salary = 0",
                "UPDATE employees SET emp_id = %s, salary = %s WHERE emp_id = %s",
                "DELETE FROM employees WHERE emp_id = %s",
            ]
        )
        query(session, statement, (emp_id, at.randint(0, 99), emp_id)[: statement.count("%s")])

    for _ in range(60):
        session = at.choice(sessions)
        match at.choices(["begin", "change", "savepoint", "end", "poll"], [2, 5, 1, 1, 2])[0]:
            case "begin" if session not in touched:
                query(session, at.choice(["BEGIN", f"BEGIN; {TAKE_XID}"]))
                touched[session] = set()
            case "change":
                change(session)
            case "savepoint" if session in touched:
                query(session, "SAVEPOINT here")
                change(session)
                query(session, "ROLLBACK TO here")
            case "end" if session in touched:
                query(session, at.choice(["COMMIT", "COMMIT", "COMMIT", "ROLLBACK"]))
                del touched[session]
            case "poll":
                poll(at.randint(1, 3))
    for session in touched:
        query(session, "COMMIT")


@pytest.fixture
def late_rounds(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grows by one each time that late rows are more than a page."""
    rounds: list[None] = []
    publish_late = producer.publish_late

    def count_and_publish(*arguments: Any) -> Any:
        rounds.append(None)
        return publish_late(*arguments)

    monkeypatch.setattr(producer, "publish_late", count_and_publish)
    return rounds


def test_random_schedules_of_four_sessions_lose_repeat_and_reorder_nothing(
    pipeline: Pipeline,
    read: Callable[[], Reader],
    sessions: list[Connection],
    late_rounds: list[None],
    monkeypatch: pytest.MonkeyPatch,
    run_seed: int,
) -> None:
    print(f"seeds: 1 to 30, {run_seed} to {run_seed + 29}")
    reader = read()
    for seed in [*SEEDS, *range(run_seed, run_seed + 30)]:
        monkeypatch.setattr(emp_cdc, "MANY_DRAWN", seed % 2 * 1_000)  # 0: an empty poll skips what has been drawn
        random_schedule(seed, sessions, reader.poll)
    reader.drain(2)
    assert reader.lost() == set()
    assert len(reader.ids()) == len(set(reader.ids())) > 500
    assert rise_per_employee([(str(change.emp_id), change.cdc_id) for change in reader.published])
    records = published(pipeline)
    assert sorted(record.cdc_id for record in records) == sorted(reader.ids())
    assert rise_per_employee([(str(record.emp_id), record.cdc_id) for record in records])
    late = sum(cdc_id < max(reader.ids()[:number], default=0) for number, cdc_id in enumerate(reader.ids()))
    assert late > 20
    assert len(late_rounds) > 5, "late rows were never more than a page"


def test_the_random_schedules_lose_rows_where_late_rows_are_left_out(
    read: Callable[[], Reader], sessions: list[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    for conditions in ((emp_cdc.RUNNING_THEN, emp_cdc.BEGUN_LATER), (emp_cdc.RUNNING_THEN,)):
        with monkeypatch.context() as without:
            leave_out(without, *conditions)
            reader = read()
            reader.drain()
            ((head,),) = query(reader.source, LOG_HEAD)
            for seed in SEEDS:
                random_schedule(seed, sessions, reader.poll)
            reader.drain()
            assert reader.lost(since=head), "the schedules do not need the late rows"
