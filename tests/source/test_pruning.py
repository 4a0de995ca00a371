"""Pruning: only rows that are published and older than the retention go."""

from __future__ import annotations

from collections.abc import Callable

import config
from cdc import emp_cdc
from cdc.postgres import WrongSetting
from harness.database import query
from harness.log_reader import INSERT, Reader
from harness.pipeline import Pipeline
from harness.producing import published, start_producer
from harness.waiting import wait_until

import pytest
from psycopg2.extensions import connection as Connection


def test_published_rows_older_than_the_retention_are_pruned(pipeline: Pipeline) -> None:
    source = pipeline.source()
    query(source, "INSERT INTO employees (city) SELECT 'Rome' FROM generate_series(1, 2500)")
    query(source, "UPDATE emp_cdc SET changed_at = now() - interval '1 hour 1 minute' WHERE cdc_id <= 2400")
    start_producer(pipeline, RETENTION="1 hour")
    wait_until(lambda: query(source, "SELECT count(*), min(cdc_id) FROM emp_cdc") == [(100, 2401)])
    assert len(published(pipeline)) == 2_500


def test_a_late_row_older_than_the_retention_is_published_before_it_is_pruned(
    read: Callable[[], Reader], sessions: list[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "RETENTION", "0 seconds")
    a, b, *_ = sessions

    def published_late(emp_id: int) -> bool:
        reader = read()
        query(a, f"BEGIN; INSERT INTO employees (emp_id) VALUES ({emp_id})")
        query(b, INSERT)
        reader.drain()
        query(a, "COMMIT")
        emp_cdc.Pruner(reader.source).prune(reader.position)
        reader.drain()
        return emp_id in {change.emp_id for change in reader.published}

    assert published_late(1_000)
    assert query(a, "SELECT emp_id FROM emp_cdc") == [(1_000,)]
    visible = "AND pg_visible_in_snapshot(oldest.txid, %(snapshot)s)"
    assert visible in emp_cdc.PRUNE
    monkeypatch.setattr(emp_cdc, "PRUNE", emp_cdc.PRUNE.replace(visible, ""))
    assert not published_late(1_001)


def test_rows_beyond_the_offset_are_not_pruned_though_the_snapshot_shows_them(
    read: Callable[[], Reader], sessions: list[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "RETENTION", "0 seconds")
    for _ in range(4):
        query(sessions[0], INSERT)
    reader = read()
    assert reader.poll(2)
    assert emp_cdc.Pruner(reader.source).prune(reader.position) == 2
    assert query(reader.source, "SELECT cdc_id FROM emp_cdc") == [(3,), (4,)]


def test_rows_whose_time_is_in_the_future_keep_no_others_from_being_pruned(
    read: Callable[[], Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "RETENTION", "1 hour")
    reader = read()
    query(reader.source, "INSERT INTO employees (city) SELECT 'Rome' FROM generate_series(1, 1200)")
    query(reader.source, "UPDATE emp_cdc SET changed_at = now() + interval '1 day' WHERE cdc_id <= 1100")
    query(reader.source, "UPDATE emp_cdc SET changed_at = now() - interval '1 day' WHERE cdc_id > 1100")
    reader.drain()
    assert emp_cdc.Pruner(reader.source).prune(reader.position) == 100
    assert query(reader.source, "SELECT count(*), max(cdc_id) FROM emp_cdc") == [(1100, 1100)]


@pytest.mark.parametrize("retention", ["7", " -7.5 ", "-1 day", "1 day -25 hours", "soon", ""])
def test_a_retention_that_is_no_span_of_time_is_refused(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, retention: str
) -> None:
    source = pipeline.source()
    monkeypatch.setattr(config, "RETENTION", retention)
    with pytest.raises(WrongSetting, match="with its unit, not negative, such as '7 days'"):
        emp_cdc.prepare(source)
    monkeypatch.setattr(config, "RETENTION", "PT36H")
    emp_cdc.prepare(source)
