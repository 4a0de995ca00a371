"""What every script of the pipeline does at its command line: options, log lines, stopping, exit codes.

Exit codes: 0 done, 1 failed, 2 wrong use or wrong setting.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

DONE, FAILED, WRONG_USE = 0, 1, 2

# Objects between two runs of Python's search for cycles; 700 by default. A batch is tens of thousands, none in a cycle,
# and looking at them again and again took a seventh of the consumer's time.
FEW_COLLECTIONS = 500_000


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help is the script's own docstring, with --verbose."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("-v", "--verbose", action="store_true", help="log every change, and what the Kafka client says")
    return made


def start_logging(verbose: bool) -> None:
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)-7s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stdout,
        force=True,
    )
    # Outages are said once, in our words; the client's own lines repeat with every try.
    logging.getLogger("librdkafka").setLevel(logging.DEBUG if verbose else logging.CRITICAL + 1)


@dataclass
class Stop:
    """Set by Ctrl-C and SIGTERM: the batch in hand is finished, then the script ends. A second signal ends it at once,
    which is safe at any point."""

    requested: bool = False

    def sleep(self, seconds: float) -> None:
        """Wait, but not longer than a tenth of a second once a stop is requested."""
        end = time.monotonic() + seconds
        while not self.requested and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))


class Stopped(Exception):
    """A stop was requested while a server was away; the work in hand is not finished, and will be done again."""


def stop_on_signals() -> Stop:
    stop = Stop()

    def handle(number: int, _frame: FrameType | None) -> None:
        stop.requested = True
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)
    return stop


def fail(message: str, code: int = FAILED) -> NoReturn:
    """Say in one line what is wrong and what to do, and exit."""
    print(message, file=sys.stderr)
    sys.exit(code)


NAMED = 5  # changes: a batch this small is told change by change
LINES_PER_SECOND = 20


@dataclass
class Report:
    """Tells what moved: while traffic is low each change by its name, else about a line a second with the number of
    changes, the newest offset and the milliseconds they took."""

    log: logging.Logger
    verb: str
    total: int = 0
    untold: int = 0
    offset: int = 0
    busy: float = 0.0
    second: float = 0.0
    lines: int = 0

    def batch(
        self,
        count: int,
        offset: int,
        started: float,
        names: Callable[[], list[str]],
        left: Callable[[], int] | None = None,
    ) -> None:
        """Count a batch that began at started (time.monotonic). names() gives a line for each of its changes, left()
        how many are still to come; they are called only where their answer is told."""
        now = time.monotonic()
        self.total += count
        if now - self.second >= 1.0:
            self.second, self.lines = now, 0
        if count <= NAMED and not self.untold and self.lines + count <= LINES_PER_SECOND:
            self.lines += count
            for name in names():
                self.log.info("%s", name)
            return
        self.untold += count
        self.offset = offset
        self.busy += now - started
        if self.lines < 1:
            self._tell(left)

    def idle(self) -> None:
        """Tell what is left to tell; called whenever there is nothing to move."""
        if self.untold and time.monotonic() - self.second >= 1.0:
            self._tell(None)

    def end(self) -> None:
        if self.untold:
            self._tell(None)
        self.log.info("%s %s changes in all", self.verb, f"{self.total:,}")

    def _tell(self, left: Callable[[], int] | None) -> None:
        rate = self.untold / max(self.busy, 0.001)
        text = f"{self.verb} {self.untold:,} changes up to offset {self.offset:,} in {self.busy * 1000:,.0f} ms"
        if left is not None and (remaining := left()) > 0:
            text += f"; about {remaining:,} left, {remaining / rate:,.0f} s at {rate:,.0f}/s"
        self.log.info("%s", text)
        self.untold, self.busy = 0, 0.0
        self.second, self.lines = time.monotonic(), self.lines + 1
