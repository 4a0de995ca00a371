"""Protocols that look right. Each lacks one thing that ours has, and the explorer finds what that thing is for."""

from __future__ import annotations

from dataclasses import dataclass

from proofs.explore import Explored, explore
from proofs.protocol import Protocol, State
from proofs.reading import START, Bounds, steps

# Two sessions. Nothing is forgotten, so the numbers of the story are those of the run.
SMALL = Bounds(transactions=2, ids=2, log=3, page=1, forget=False)
PAGES_OF_TWO = Bounds(transactions=2, ids=2, log=3, page=2, forget=False)


@dataclass(frozen=True)
class Wrong:
    name: str
    reads: str  # which rows of emp_cdc, with the {offset} and the {snapshot} of the position
    ours: str  # what ours does instead
    protocol: Protocol
    bounds: Bounds = SMALL

    def explore(self) -> Explored[State]:
        return explore(START, lambda state: steps(state, self.protocol, self.bounds))


WRONG = (
    Wrong(
        "The naive cursor",
        "WHERE cdc_id > {offset} ORDER BY cdc_id",
        "remembers which transactions the last poll did not see, and reads their rows whatever their offset",
        Protocol(skips="never", running_then=False, begun_later=False),
    ),
    Wrong(
        "Late rows, but not of the transactions in the snapshot's xip",
        "WHERE cdc_id > {offset} OR txid >= pg_snapshot_xmax('{snapshot}') ORDER BY cdc_id",
        "reads what has ended since of pg_snapshot_xip('{snapshot}'), too",
        Protocol(skips="never", running_then=False),
    ),
    Wrong(
        "Late rows, but not of the transactions from the snapshot's xmax on",
        "WHERE cdc_id > {offset} OR txid IN (SELECT pg_snapshot_xip('{snapshot}')) ORDER BY cdc_id",
        "reads txid >= pg_snapshot_xmax('{snapshot}'), too: xmax follows the newest transaction that had ended",
        Protocol(skips="never", begun_later=False),
    ),
    Wrong(
        "A fence: only what is below every running transaction, and a cursor on cdc_id",
        "WHERE txid < pg_snapshot_xmin(pg_current_snapshot()) AND cdc_id > {offset} ORDER BY cdc_id",
        "reads late rows; the order of transactions is not the order of offsets",
        Protocol(skips="never", running_then=False, begun_later=False, fence=True),
    ),
    Wrong(
        "The position saved before Kafka has acknowledged the page",
        "WHERE cdc_id > {offset} OR NOT pg_visible_in_snapshot(txid, '{snapshot}') ORDER BY cdc_id",
        "saves the position last; after a crash the page is published again, and the gate drops what came twice",
        Protocol(skips="never", save_last=False),
    ),
    Wrong(
        "ORDER BY txid, cdc_id",
        "WHERE cdc_id > {offset} OR NOT pg_visible_in_snapshot(txid, '{snapshot}') ORDER BY txid, cdc_id",
        "publishes in the order of cdc_id: the row's lock makes that the order of an employee's commits",
        Protocol(skips="never", by_cdc_id=False),
        PAGES_OF_TWO,
    ),
    Wrong(
        "A page that ends in the midst of the late rows",
        "WHERE cdc_id > {offset} OR NOT pg_visible_in_snapshot(txid, '{snapshot}') ORDER BY cdc_id LIMIT 1",
        "publishes all late rows of one snapshot, page by page, before it saves that snapshot",
        Protocol(skips="never", late_pages=False),
    ),
    Wrong(
        "Late rows after the rows beyond the offset",
        "WHERE cdc_id > {offset} OR NOT pg_visible_in_snapshot(txid, '{snapshot}') ORDER BY cdc_id <= {offset}, cdc_id",
        "publishes late rows first: what is beyond the offset may be newer changes of the same employees",
        Protocol(skips="never", late_first=False),
    ),
    Wrong(
        "Drawn offsets skipped where a poll has found something",
        "WHERE cdc_id > {offset} OR NOT pg_visible_in_snapshot(txid, '{snapshot}') ORDER BY cdc_id",
        "skips them only where a poll has found nothing: then all that its snapshot shows is published",
        Protocol(skips="always"),
    ),
)
