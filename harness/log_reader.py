"""Readers of the log in this process, as the producer reads it, and writers that commit late."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import producer
from cdc import cli, emp_cdc
from cdc.message import Change
from cdc.position import Position, Saver
from harness.database import query
from harness.waiting import wait_until

import pytest
from confluent_kafka import Producer
from psycopg2.extensions import connection as Connection

INSERT = "INSERT INTO employees (city) VALUES ('Rome')"
TAKE_XID = "SELECT pg_current_xact_id()"
LOG_HEAD = "SELECT coalesce(max(cdc_id), 0) FROM emp_cdc"
ALL = 10_000  # a page that takes all that a test here logs


@dataclass
class Reader:
    """producer.run_once, poll by poll, and what it has published, in that order."""

    source: Connection
    client: Producer
    saver: Saver
    published: list[Change] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)  # their sizes

    @property
    def position(self) -> Position:
        return self.saver.position

    def poll(self, page_size: int = ALL) -> bool:
        """Whether there was something to publish."""
        published = producer.run_once(self.client, self.saver, cli.Stop(), page_size)
        self.saver.save()
        return bool(published.count)

    def drain(self, page_size: int = ALL) -> None:
        wait_until(lambda: not self.poll(page_size), what="drained")

    def ids(self) -> list[int]:
        return [change.cdc_id for change in self.published]

    def lost(self, since: int = 0) -> set[int]:
        """The log's committed rows beyond the offset since that were not published."""
        return {cdc_id for (cdc_id,) in query(self.source, f"SELECT cdc_id FROM emp_cdc WHERE cdc_id > {since}")} - set(
            self.ids()
        )


def leave_out(monkeypatch: pytest.MonkeyPatch, *conditions: str) -> None:
    """Take conditions out of the queries that read the log."""
    for condition in conditions:
        bound = condition.replace("$1", "%(last_offset)s").replace("$2", "%(snapshot)s::pg_snapshot")
        for name, text in (("SESSION", condition), ("LATE_CURSOR", bound)):
            sql = getattr(emp_cdc, name)
            assert text in sql
            monkeypatch.setattr(emp_cdc, name, sql.replace(text, "false"))


def the_lower_offset_commits_last(sessions: list[Connection], poll: Callable[[], bool]) -> None:
    a, b, *_ = sessions
    query(a, f"BEGIN; {INSERT}")
    query(b, INSERT)
    poll()
    query(a, "COMMIT")


def the_higher_xid_draws_the_lower_offset(sessions: list[Connection], poll: Callable[[], bool]) -> None:
    """At the poll b is above the snapshot's xmax, so not among its running transactions; unless a stranger on the same
    server commits meanwhile."""
    a, b, *_ = sessions
    query(a, f"BEGIN; {TAKE_XID}")
    query(b, f"BEGIN; {INSERT}")
    query(a, f"{INSERT}; COMMIT")
    poll()
    query(b, "COMMIT")


def log_late_rows(reader: Reader, sessions: list[Connection]) -> None:
    """25 rows at offsets 1 to 25 that become visible when the reader stands at 27; that of offset 26 is still open."""
    a, b, c, *_ = sessions
    query(a, "BEGIN; INSERT INTO employees (city) SELECT 'late' FROM generate_series(1, 25)")
    query(b, f"BEGIN; {INSERT}")
    query(c, INSERT)
    assert reader.poll()
    assert reader.ids() == [27]
    query(a, "COMMIT")
