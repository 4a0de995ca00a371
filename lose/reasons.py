"""Why a row did not arrive: judged by the log, the polls and the topic, not by what ought to have happened."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime

from harness.kafka import all_messages
from lose.experiment import Experiment, Side
from lose.poller import Poll, passing_poll
from lose.writers import Row


@dataclass(frozen=True)
class Lost:
    """A row that was committed and is not at the destination."""

    row: Row
    cdc_id: int
    drawn: float  # when the trigger had drawn the cdc_id
    poll: Poll | None  # the one that moved the offset past the row and did not see it
    published: bool

    def why(self) -> str:
        if self.poll is None:
            return f"{self._who()}, and it was {'published, but not applied' if self.published else 'not published'}"
        offset = self.poll.offset
        return (
            f"{self._who()}; the poll at {clock(self.poll.at)} did not see it, "
            f"saw cdc_id {offset}, and asks for cdc_id > {offset} ever since"
        )

    def _who(self) -> str:
        return (
            f"cdc_id {self.cdc_id}, employee {self.row.emp_id}, transaction {self.row.txid}: "
            f"{self.row.writer} drew it at {clock(self.drawn)} and committed at {clock(self.row.committed)}"
        )


def clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%H:%M:%S.%f")[:-3]


def explain(experiment: Experiment, side: Side) -> list[Lost]:
    """Return the rows that are missing at a side, in the order of cdc_id."""
    missing = side.missing(experiment.writers.rows)
    changes = experiment.changes(missing)
    polls = experiment.polls() if side is experiment.plain else []
    published = in_topic(side) if missing else set()
    found = []
    for row in missing:
        cdc_id, drawn = changes[row.emp_id]
        found.append(Lost(row, cdc_id, drawn, passing_poll(cdc_id, row.txid, polls), cdc_id in published))
    return sorted(found, key=lambda lost: lost.cdc_id)


def in_topic(side: Side) -> set[int]:
    return {json.loads(message.value() or b"")["cdc_id"] for message in all_messages(side.pipeline.topic)}
