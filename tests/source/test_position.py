"""The position after a restore, and after somebody else has changed it or the log."""

from __future__ import annotations

from collections.abc import Callable

from cdc import position
from employee import CDCRecord
from harness.database import query
from harness.kafka import remove_messages
from harness.log_reader import (
    INSERT,
    TAKE_XID,
    Reader,
    the_higher_xid_draws_the_lower_offset,
    the_lower_offset_commits_last,
)
from harness.pipeline import Pipeline
from harness.producing import published, start_producer, wait_until_published

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection


def moved_to_another_server(source: Connection, shift: int) -> None:
    """Make the source look like one restored from a dump of another server, whose transaction ids are that much higher
    than this one's."""
    query(
        source,
        """
        UPDATE emp_cdc SET txid = (txid::text::bigint + %(shift)s)::text::xid8;
        UPDATE cdc_position SET system_identifier = 1, snapshot = format(
            '%%s:%%s:%%s', pg_snapshot_xmin(snapshot)::text::bigint + %(shift)s,
            pg_snapshot_xmax(snapshot)::text::bigint + %(shift)s,
            (SELECT string_agg((xip::text::bigint + %(shift)s)::text, ',' ORDER BY xip)
             FROM pg_snapshot_xip(snapshot) AS xip))::pg_snapshot
        """,
        {"shift": shift},
    )


@pytest.mark.parametrize("shift", [-500, 0, 1_000_000], ids=["lower", "like here", "higher"])
def test_a_log_restored_from_a_server_whose_transaction_ids_were_goes_on_where_it_stood(
    read: Callable[[], Reader], sessions: list[Connection], shift: int
) -> None:
    a, b, c, d = sessions
    reader = read()
    query(d, INSERT)
    query(a, f"BEGIN; {INSERT}")
    query(c, f"BEGIN; {TAKE_XID}")
    query(b, f"BEGIN; {INSERT}")
    query(c, f"{INSERT}; COMMIT")
    reader.drain()
    assert reader.ids() == [1, 4]
    query(a, "COMMIT")
    query(b, "COMMIT")
    query(c, INSERT)
    moved_to_another_server(a, shift)

    reader = read()
    reader.drain()
    assert reader.ids() == [2, 3, 5]
    the_lower_offset_commits_last(sessions, reader.poll)
    the_higher_xid_draws_the_lower_offset(sessions, reader.poll)
    query(d, INSERT)
    reader.drain()
    assert sorted(reader.ids()) == [2, 3, *range(5, 11)]
    assert read().ids() == []
    reader = read()
    reader.drain()
    assert reader.ids() == []


def test_a_log_restored_on_another_server_is_reported_once_and_reaches_the_destination(
    pipeline: Pipeline, read: Callable[[], Reader]
) -> None:
    source = pipeline.source()
    query(source, INSERT)
    read().drain()
    query(source, INSERT)
    moved_to_another_server(source, 1_000_000)
    first, second = pipeline.run("producer.py", "--once"), pipeline.run("producer.py", "--once")
    assert "restored from another server" in first.stdout
    assert "published 1 change in all" in first.stdout
    assert "restored" not in second.stdout
    assert "published 0 changes in all" in second.stdout
    query(source, INSERT)
    pipeline.drain()
    assert pipeline.equal()


@pytest.mark.parametrize("shift", [-500, 0, 1_000_000], ids=["lower", "like here", "higher"])
def test_a_rebase_waits_for_no_writer_and_a_crash_before_its_end_loses_nothing(
    pipeline: Pipeline,
    read: Callable[[], Reader],
    sessions: list[Connection],
    monkeypatch: pytest.MonkeyPatch,
    shift: int,
) -> None:
    a, b, c, d = sessions
    query(a, f"ALTER DATABASE {pipeline.name} SET lock_timeout = '3s'")
    reader = read()
    for _ in range(5):
        query(d, INSERT)
    query(a, f"BEGIN; {INSERT}")
    query(b, INSERT)
    reader.drain()
    query(a, "COMMIT")  # late
    query(b, INSERT)  # beyond the offset
    moved_to_another_server(a, shift)
    query(c, f"BEGIN; {INSERT}")
    monkeypatch.setattr(position, "STEP", 2)
    with monkeypatch.context() as crash:
        crash.setattr(position, "REBASE", "SELECT 1 / 0")
        with pytest.raises(psycopg2.errors.DivisionByZero):
            read()
    query(b, INSERT)
    reader = read()
    query(c, "COMMIT")
    reader.drain()
    assert sorted(reader.ids()) == [6, 8, 9, 10]
    assert not reader.poll()
    assert query(a, "SELECT count(*) FROM emp_cdc WHERE txid >= pg_snapshot_xmax(pg_current_snapshot())") == [(0,)]


BACKUP = """
CREATE SCHEMA backup;
CREATE TABLE backup.position AS SELECT * FROM cdc_position;
"""
RESTORE = """
DELETE FROM emp_cdc WHERE cdc_id > (SELECT last_offset FROM backup.position);
SELECT setval('emp_cdc_cdc_id_seq', last_offset) FROM backup.position;
UPDATE cdc_position SET last_offset = backup.last_offset, snapshot = backup.snapshot FROM backup.position AS backup;
"""


@pytest.mark.parametrize(
    ("back", "kept"),
    [
        pytest.param(RESTORE, True, id="backup restored"),
        pytest.param("TRUNCATE emp_cdc RESTART IDENTITY", True, id="log truncated"),
        pytest.param("TRUNCATE emp_cdc RESTART IDENTITY", False, id="log truncated and nothing left in Kafka"),
    ],
)
def test_a_source_that_went_back_in_time_goes_on_after_what_was_published(
    pipeline: Pipeline, read: Callable[[], Reader], back: str, kept: bool
) -> None:
    source = pipeline.source()
    query(source, INSERT)
    read().drain()
    query(source, BACKUP)
    for _ in range(5):
        query(source, "UPDATE employees SET salary = coalesce(salary, 0) + 1")
    read().drain()
    query(source, back)
    if not kept:
        remove_messages(pipeline.topic)
    assert "WENT BACK IN TIME" in pipeline.run("producer.py", "--once").stdout
    query(source, "UPDATE employees SET city = 'Oslo'")
    pipeline.drain()
    assert pipeline.equal()
    assert [record.cdc_id for record in published(pipeline)] == ([1, 2, 3, 4, 5, 6, 7] if kept else [7])


def test_a_log_truncated_after_its_first_change_goes_on_after_it(
    pipeline: Pipeline, read: Callable[[], Reader]
) -> None:
    source = pipeline.source()
    query(source, INSERT)
    read().drain()
    query(source, "TRUNCATE emp_cdc RESTART IDENTITY")
    assert pipeline.run("producer.py", "--once").returncode == 0
    query(source, INSERT)
    assert query(source, "SELECT cdc_id FROM emp_cdc") == [(2,)]


def test_a_log_truncated_while_the_producer_runs_is_noticed(pipeline: Pipeline) -> None:
    source = pipeline.source()
    for _ in range(3):
        query(source, INSERT)
    script = pipeline.start(pipeline.sabotaged("import producer", "from cdc import upkeep", "upkeep.EVERY = 0.2"))
    script.wait_for("publishing from")
    wait_until_published(source, 20)
    query(source, "TRUNCATE emp_cdc RESTART IDENTITY")
    script.wait_for("WENT BACK IN TIME")
    query(source, INSERT)
    assert query(source, "SELECT cdc_id FROM emp_cdc") == [(4,)]


def test_a_strangers_message_does_not_use_up_the_logs_offsets(pipeline: Pipeline) -> None:
    pipeline.send(CDCRecord(2**63 - 1, 1, action="DELETE").to_json())
    assert pipeline.run("producer.py", "--once").returncode == 0
    query(pipeline.source(), INSERT)


def test_a_position_moved_by_someone_else_is_reported_and_read_again(pipeline: Pipeline) -> None:
    source = pipeline.source()
    query(source, INSERT)
    script = start_producer(pipeline)
    wait_until_published(source, 20)
    query(source, "UPDATE cdc_position SET last_offset = 0, snapshot = '1:1:'")
    query(source, INSERT)
    script.wait_for("moved by someone else")
    wait_until_published(source, 20)
    assert [record.cdc_id for record in sorted(published(pipeline), key=lambda record: record.cdc_id)] == [1, 1, 2, 2]
