"""What a poll meets, and how our protocol reads it: the model's side of cdc/emp_cdc.py.

A snapshot's xmax is one above the newest transaction that has *ended*. A running transaction can be above it, and is
then not listed among the running ones (xip).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

OPEN, COMMITTED, ABORTED = "open", "committed", "aborted"


class Snapshot(NamedTuple):
    """A pg_snapshot. The xmin in its text follows from the other two."""

    xmax: int
    xip: tuple[int, ...]

    @property
    def xmin(self) -> int:
        return min(self.xip, default=self.xmax)

    def shows(self, txid: int) -> bool:
        return txid < self.xmax and txid not in self.xip

    def __str__(self) -> str:
        return f"{self.xmin}:{self.xmax}:{','.join(map(str, self.xip))}"


class Position(NamedTuple):
    last_offset: int
    snapshot: Snapshot

    def covers(self, cdc_id: int, txid: int) -> bool:
        return cdc_id <= self.last_offset and self.snapshot.shows(txid)


class Row(NamedTuple):
    """A row of the log. Its cdc_id is its place there, from 1."""

    txid: int
    after: int | None
    published: bool = False


class Page(NamedTuple):
    """What the producer is about to publish, in this order, and the position after it."""

    ids: tuple[int, ...]
    position: Position


class Poll(NamedTuple):
    """What a poll meets."""

    rows: list[tuple[int, int]]  # cdc_id and txid of those that its snapshot shows, in the order of cdc_id
    position: Position
    now: Snapshot
    drawn: int = 0  # the newest cdc_id that anybody has drawn
    late_only: bool = False  # there are more late rows than a page


class State(NamedTuple):
    transactions: tuple[str, ...]  # by txid, from 1
    xmax: int
    log: tuple[Row, ...]
    position: Position  # in the producer's memory
    saved: Position  # in the database
    page: Page | None = None
    too_many_late: bool = False  # the late rows are read next, and nothing else

    def now(self) -> Snapshot:
        running = (txid for txid, status in enumerate(self.transactions, 1) if status == OPEN and txid < self.xmax)
        return Snapshot(self.xmax, tuple(running))

    def poll(self) -> Poll:
        rows = [(i, row.txid) for i, row in enumerate(self.log, 1) if self.transactions[row.txid - 1] == COMMITTED]
        return Poll(rows, self.position, self.now(), len(self.log), self.too_many_late)


NOTHING = Position(0, Snapshot(1, ()))


@dataclass(frozen=True)
class Protocol:
    """Ours; each field is there to be left out."""

    running_then: bool = True  # late rows: of transactions in the xip of the saved snapshot
    begun_later: bool = True  # late rows: of transactions from its xmax on
    late_pages: bool = True  # all late rows, however many
    late_first: bool = True  # before the rows beyond the offset
    by_cdc_id: bool = True  # if not, ORDER BY txid, cdc_id
    save_last: bool = True  # the position, after the acknowledgement
    skips: str = "after nothing"  # offsets that are drawn and not seen; or "never", "always"
    fence: bool = False  # read only rows of transactions below the xmin of now

    def is_late(self, cdc_id: int, txid: int, position: Position) -> bool:
        """Of a row that is visible now: RUNNING_THEN or BEGUN_LATER of cdc/emp_cdc.py."""
        return cdc_id <= position.last_offset and (
            (self.running_then and txid in position.snapshot.xip)
            or (self.begun_later and txid >= position.snapshot.xmax)
        )

    def read(self, poll: Poll, size: int) -> Page | None:
        """Return what read_page() returns, or late_pages(); None if there are more late rows than a page."""
        last_offset, now = poll.position.last_offset, poll.now
        rows = [(i, txid) for i, txid in poll.rows if not self.fence or txid < now.xmin]
        late = [(i, txid) for i, txid in rows if self.is_late(i, txid, poll.position)]
        beyond = [(i, txid) for i, txid in rows if i > last_offset][:size]
        if poll.late_only:
            beyond = []
        elif not self.late_pages:
            late, beyond = late[:size], beyond[: size - len(late[:size])]
        elif len(late) > size:
            return None
        found = late + beyond if self.late_first else beyond + late
        if not self.by_cdc_id:
            found.sort(key=lambda row: (row[1], row[0]))
        ids = tuple(i for i, _ in found)
        newest = poll.drawn if ids and self.skips == "always" else max(last_offset, *ids, 0)
        return Page(ids, Position(newest, now))


OURS = Protocol()
