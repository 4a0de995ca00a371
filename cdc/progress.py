"""Report what moved: each change while there are few, else a line a second."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import config
from cdc import bar
from cdc.text import counted

Line = tuple[str, dict[str, int | None]]  # what is logged, and its values by the names in cdc/logs.py

NAMED = 5  # changes; a page or a batch this small is reported change by change
LINES_PER_SECOND = 20


@dataclass
class Report:
    """Logs the progress of a script.

    While traffic is low, each change has a line. Otherwise about a line a second gives the number of changes, the
    newest log offset and the milliseconds they took. Where there is a backlog, a terminal shows a bar instead.
    """

    log: logging.Logger
    verb: str  # "published" or "applied"
    total: int = 0
    unreported: int = 0
    log_offset: int = 0  # of the newest unreported change
    busy: float = 0.0  # seconds that the unreported changes took
    second: float = 0.0  # when the current second began (time.monotonic)
    lines: int = 0  # logged in the current second
    catching_up: bool = False  # on a terminal: a bar is shown, and a line only once it has come to its end

    def add(
        self,
        count: int,
        log_offset: int,
        started: float,
        describe: Callable[[], list[Line]],
        count_left: Callable[[], int],
        full: bool,
    ) -> None:
        """Count a page or a batch that began at started (time.monotonic).

        describe() gives a line for each of its changes, count_left() how many are still to come. Both are called only
        where the answer is shown. full: there may be more to come.
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
        backlog = full or self.catching_up
        if self.lines < 1 or (backlog and self._may_draw() and now - self.second >= bar.DRAW_EVERY):
            self._report(count_left() if backlog else 0)

    def idle(self) -> None:
        """Report what is still unreported. Called whenever there is nothing to move."""
        if self.unreported and time.monotonic() - self.second >= 1.0:
            self._report(0)

    def end(self) -> None:
        """Report what is still unreported, and the total; of a script that fails before it has moved any, nothing."""
        if self.unreported:
            self._report(0)
        if self.total or sys.exc_info()[0] is None:
            self.log.info("%s %s in all", self.verb, counted(self.total, "change"), extra={"count": self.total})

    def _report(self, left: int) -> None:
        rate = self.unreported / max(self.busy, 0.001)
        self.second, self.lines = time.monotonic(), self.lines + 1
        self.catching_up = left > 0 and self._may_draw()
        if self.catching_up:
            done, total = self.unreported, self.unreported + left
            bar.draw(sys.stdout, done, total, bar.describe(done, total, f"changes {self.verb}", rate))
            return
        text = f"{self.verb} {counted(self.unreported, 'change')} up to log offset {self.log_offset:,}"
        text += f" in {self.busy * 1000:,.0f} ms"
        if left > 0:
            text += f"; about {left:,} left, {left / rate:,.0f} s at {rate:,.0f}/s"
        values = {"count": self.unreported, "log_offset": self.log_offset, "duration_seconds": round(self.busy, 6)}
        self.log.info("%s", text, extra=values)
        self.unreported, self.busy = 0, 0.0

    def _may_draw(self) -> bool:
        return sys.stdout.isatty() and config.LOG_FORMAT == "text" and self.log.isEnabledFor(logging.INFO)
