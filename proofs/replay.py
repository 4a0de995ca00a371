"""Replay the polls of a real producer through the model of reading: proofs/record.py has written them down.

The model must read the same pages from the log, as it stands in the end, and every promise must hold on the way.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from proofs.protocol import NOTHING, OURS, Poll, Position, Snapshot

LOG = "SELECT cdc_id, txid::text::bigint, emp_id FROM emp_cdc"


class Logged(NamedTuple):
    """A row of the log, as it stands there in the end."""

    cdc_id: int
    txid: int
    employee: int | None


class Broken(Exception):
    """What the trace shows is not what the model does, or breaks a promise."""


def replay(lines: Iterable[str], log: Iterable[Logged]) -> int:
    """Return how many pages with changes were read and acknowledged. Raises Broken."""
    run = Run(sorted(log, key=lambda row: row.txid))
    for number, line in enumerate(lines, 1):
        try:
            run.follow(json.loads(line))
        except Broken as error:
            raise Broken(f"line {number} of the trace: {error}") from None
    if left := {row.cdc_id for row in run.log} - run.published:
        raise Broken(f"{len(left)} changes were never published, such as log offset {min(left)}")
    return run.pages


def to_position(values: tuple[int, str]) -> Position:
    return Position(values[0], to_snapshot(values[1]))


def to_snapshot(text: str) -> Snapshot:
    _, xmax, xip = text.split(":")
    return Snapshot(int(xmax), tuple(int(txid) for txid in xip.split(",") if txid))


@dataclass
class Reader:
    """A producer's process, as the model sees it."""

    position: Position
    rows: list[Logged] = field(default_factory=list)  # that a snapshot can show by now, and the position does not cover
    begun: int = 0  # how many rows of the log, by txid, a snapshot can show by now
    skip_to: int | None = None  # the newest offset that was drawn, if the last poll found nothing
    page: tuple[int, ...] = ()  # read and not acknowledged
    late: tuple[int, ...] = ()  # late rows of one snapshot that are yet to be published, this page among them
    after: Position = NOTHING  # once it is acknowledged


@dataclass
class Run:
    log: list[Logged]  # by txid
    published: set[int] = field(default_factory=set)
    newest: dict[int | None, int] = field(default_factory=dict)  # published, by employee
    readers: dict[int, Reader] = field(default_factory=dict)  # by process
    reached: set[Position] = field(default_factory=lambda: {NOTHING})
    pages: int = 0

    def __post_init__(self) -> None:
        self.employees = {row.cdc_id: row.employee for row in self.log}

    def follow(self, event: dict[str, Any]) -> None:
        if event["what"] == "loaded":
            self.load(event["process"], to_position(event["position"]))
            return
        reader = self.readers.get(event["process"])
        if reader is None:
            raise Broken("a producer reads before it has loaded its position")
        if event["what"] == "acknowledged":
            self.acknowledge(reader)
            return
        position, now, ids = to_position(event["position"]), to_snapshot(event["now"]), tuple(event["ids"])
        if event["what"] == "page":
            self.go_on(reader, position)
            self.read_page(reader, now, ids, event)
        else:
            self.read_late_page(reader, now, ids)

    def load(self, process: int, position: Position) -> None:
        """A start, or a session after an outage. The position is one that a producer has reached before."""
        if position not in self.reached:
            raise Broken(f"nobody has reached the position {position}")
        self.readers[process] = reader = Reader(position)
        self.begin(reader, position.snapshot)
        self.settle(reader)

    def go_on(self, reader: Reader, position: Position) -> None:
        """The position is where the last page left it; its offset may have skipped some where there were no changes."""
        if position not in (reader.position, reader.position._replace(last_offset=reader.skip_to or 0)):
            raise Broken(f"the position is {position}, the last poll had left it at {reader.position}")
        reader.position, reader.skip_to = position, None
        self.settle(reader)

    def begin(self, reader: Reader, now: Snapshot) -> None:
        begun = bisect_left(self.log, now.xmax, key=lambda row: row.txid)
        reader.rows += self.log[reader.begun : begun]
        reader.begun = max(begun, reader.begun)

    def settle(self, reader: Reader) -> None:
        """Forget what the position covers: it has been published."""
        covers = reader.position.covers
        for row in reader.rows:
            if row.cdc_id not in self.published and covers(row.cdc_id, row.txid):
                raise Broken(f"the position {reader.position} covers log offset {row.cdc_id}, which is not published")
        reader.rows = [row for row in reader.rows if not covers(row.cdc_id, row.txid)]

    def poll(self, reader: Reader, now: Snapshot, drawn: int) -> Poll:
        """After a crash the server may give a txid again, but no offset: so what was not drawn was not there."""
        self.begin(reader, now)
        rows = sorted((row.cdc_id, row.txid) for row in reader.rows if now.shows(row.txid) and row.cdc_id <= drawn)
        return Poll(rows, reader.position, now, drawn)

    def read_page(self, reader: Reader, now: Snapshot, ids: tuple[int, ...], event: dict[str, Any]) -> None:
        page = OURS.read(self.poll(reader, now, event["drawn"]), event["size"])
        if (page is None) != event["too_many_late"] or (page is not None and page.ids != ids):
            raise Broken(f"the producer reads {ids}, the model {page and page.ids}")
        reader.page = reader.late = ()
        if page is not None:
            reader.page, reader.after = page.ids, page.position
        if page is not None and not page.ids:
            reader.position, reader.skip_to = page.position, event["drawn"]
            self.reached |= {page.position, page.position._replace(last_offset=event["drawn"])}

    def read_late_page(self, reader: Reader, now: Snapshot, ids: tuple[int, ...]) -> None:
        if not reader.late:
            page = OURS.read(self.poll(reader, now, reader.position.last_offset)._replace(late_only=True), len(ids))
            assert page is not None
            reader.late, reader.after = page.ids, page.position
        if reader.late[: len(ids)] != ids:
            raise Broken(f"the producer reads {ids} as late rows, the model {reader.late[: len(ids)]}")
        reader.page = ids

    def acknowledge(self, reader: Reader) -> None:
        if not reader.page:
            raise Broken("a page is acknowledged that was not read")
        for cdc_id in reader.page:
            employee = self.employees.get(cdc_id)
            if cdc_id not in self.published and cdc_id < self.newest.get(employee, 0):
                raise Broken(f"log offset {cdc_id} is published after a newer change of employee {employee}")
            self.published.add(cdc_id)
            self.newest[employee] = max(cdc_id, self.newest.get(employee, 0))
        reader.late = reader.late[len(reader.page) :]
        reader.page = ()
        self.pages += 1
        if not reader.late:
            reader.position = reader.after
            self.reached.add(reader.after)
