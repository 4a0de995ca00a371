"""Report what moved: each change while there are few, else a line a second."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

Line = tuple[str, dict[str, int | None]]  # what is logged, and its values by the names in cdc/logs.py

NAMED = 5  # changes; a batch this small is reported change by change
LINES_PER_SECOND = 20


@dataclass
class Report:
    """Logs the progress of a script.

    While traffic is low, each change has a line. Otherwise about a line a second gives the number of changes, the
    newest log offset and the milliseconds they took.
    """

    log: logging.Logger
    verb: str  # "published" or "applied"
    total: int = 0
    unreported: int = 0
    log_offset: int = 0  # of the newest unreported change
    busy: float = 0.0  # seconds that the unreported changes took
    second: float = 0.0  # when the current second began (time.monotonic)
    lines: int = 0  # logged in the current second

    def batch(
        self,
        count: int,
        log_offset: int,
        started: float,
        describe: Callable[[], list[Line]],
        count_left: Callable[[], int] | None = None,
    ) -> None:
        """Count a batch that began at started (time.monotonic).

        describe() gives a line for each of its changes, count_left() how many are still to come. Both are called only
        where the answer is logged.
        """
        now = time.monotonic()
        self.total += count
        if now - self.second >= 1.0:
            self.second, self.lines = now, 0
        if count <= NAMED and not self.unreported and self.lines + count <= LINES_PER_SECOND:
            self.lines += count
            for text, values in describe():
                self.log.info("%s", text, extra=values)
            return
        self.unreported += count
        self.log_offset = log_offset
        self.busy += now - started
        if self.lines < 1:
            self._report(count_left)

    def idle(self) -> None:
        """Report what is still unreported. Called whenever there is nothing to move."""
        if self.unreported and time.monotonic() - self.second >= 1.0:
            self._report(None)

    def end(self) -> None:
        if self.unreported:
            self._report(None)
        self.log.info("%s %s changes in all", self.verb, f"{self.total:,}", extra={"count": self.total})

    def _report(self, count_left: Callable[[], int] | None) -> None:
        rate = self.unreported / max(self.busy, 0.001)
        text = f"{self.verb} {self.unreported:,} changes up to log offset {self.log_offset:,}"
        text += f" in {self.busy * 1000:,.0f} ms"
        if count_left is not None and (left := count_left()) > 0:
            text += f"; about {left:,} left, {left / rate:,.0f} s at {rate:,.0f}/s"
        values = {"count": self.unreported, "log_offset": self.log_offset, "duration_seconds": round(self.busy, 6)}
        self.log.info("%s", text, extra=values)
        self.unreported, self.busy = 0, 0.0
        self.second, self.lines = time.monotonic(), self.lines + 1
