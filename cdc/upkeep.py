"""What the producer does beside publishing: watch the capture and the log's history, prune the log."""

from __future__ import annotations

import time
from dataclasses import dataclass

from cdc import capture
from cdc.emp_cdc import Pruner
from cdc.history import History
from cdc.position import Saver

from psycopg2.extensions import connection as Connection

PRUNE_PAUSE = 0.1  # seconds between two batches of pruning
EVERY = 10.0  # seconds between two checks of the log's history; and for something to prune, where there was nothing


@dataclass
class Upkeep:
    """Runs each part when it is due."""

    source: Connection
    history: History
    history_due: float = 0.0  # time.monotonic
    prune_due: float = 0.0

    def __post_init__(self) -> None:
        self.pruner, self.watch = Pruner(self.source), capture.Watch(self.source)

    @property
    def due(self) -> float:
        """When to come back (time.monotonic)."""
        return min(self.history_due, self.prune_due)

    def run_if_due(self, saver: Saver, full: bool) -> None:
        """full: more is waiting to be published, so pruning can wait."""
        self.watch.check()
        now = time.monotonic()
        if now >= self.history_due:
            saver.save()
            position = self.history.check_running(saver.position)
            if position is not saver.position:
                saver.restart_at(position)
            self.history_due = time.monotonic() + EVERY
        if now >= self.prune_due and not full:
            # What is not saved yet would be published again after a crash, so it stays.
            self.prune_due = time.monotonic() + (PRUNE_PAUSE if self.pruner.prune(saver.saved) else EVERY)
