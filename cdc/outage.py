"""Wait until a server is back: longer and longer, with one warning."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cdc import cli
from cdc.health import HEALTH

log = logging.getLogger(__name__)

SILENCE = 8.0  # seconds that a wait may take without a word
REPEAT = 60.0  # seconds between two lines about the same wait


def outage_key(text: str) -> tuple[str, str]:
    """Return who is down and what to do. The reason between them changes while a server goes down and comes up."""
    return text.partition(": ")[0], text.partition("; ")[2]


@dataclass
class Outage:
    """Warns once when a server is down and once when it is back.

    Between two tries it waits longer and longer, up to a second, with jitter so that many clients do not come back in
    step. A warning reads "who: what is wrong; what to do". It is repeated only if who or what to do is another.
    """

    stop: cli.Stop
    give_up_after: float = float("inf")  # seconds
    reached: bool = False  # whether the server has ever answered
    warning: str = ""
    since: float = 0.0
    delay: float = 0.1
    announced: str = ""

    def wait(
        self, text: str, sleep: Callable[[float], None] | None = None, quiet: bool = False, closed: bool = False
    ) -> None:
        """Wait before the next try. Exits after give_up_after seconds.

        sleep(seconds) may do something useful meanwhile. quiet: another outage, already reported, is the reason.
        closed: only our session has ended, so the first next try comes at once, and without a word.
        """
        if closed and not self.since:
            log.debug("%s; trying again", text)
            self.since = time.monotonic()
            return
        self.since = self.since or time.monotonic()
        if not quiet:
            self.warn(text)
        if time.monotonic() - self.since > self.give_up_after:
            cli.fail(f"{text}; gave up after {self.give_up_after:.0f} s")
        (sleep or self.stop.sleep)(self.delay * random.uniform(0.5, 1.0))
        self.delay = min(self.delay * 2, 1.0)

    def warn(self, text: str) -> None:
        if outage_key(text) != outage_key(self.warning):
            log.warning("%s; waiting", text)
            self.warning = text
            HEALTH.mark_down(self, text)
        else:
            log.debug("%s; waiting", text)

    def announce(self, text: str) -> None:
        """Log how a session begins. During an outage it may fail soon, and begin likewise again and again."""
        if not self.since or not self.announced or (self.warning and text != self.announced):
            log.info("%s", text)
        self.announced = text

    def over(self) -> None:
        """Note that something went through. That a session begins does not yet tell it."""
        if self.warning:
            values = {"duration_seconds": round(time.monotonic() - self.since, 3)} if self.since else {}
            log.info("%s answers again", outage_key(self.warning)[0], extra=values)
        HEALTH.mark_up(self)
        self.reached, self.warning, self.since, self.delay = True, "", 0.0, 0.1


@dataclass
class LongWait:
    """Reports a wait that lasts: after SILENCE seconds, then once a minute, and when it is over."""

    started: float = field(default_factory=time.monotonic)
    due: float = 0.0  # when to report again (time.monotonic)
    reported: str = ""  # who is waited for

    def check(self, describe: Callable[[], str]) -> None:
        """Report, if it is time to, what is waited for: "who: what it does". Nothing: it is reported already."""
        now = time.monotonic()
        if now - self.started < SILENCE or now < self.due:
            return
        if not (text := describe()):
            return
        self.reported, self.due = outage_key(text)[0], now + REPEAT
        log.warning(
            "%s; waiting for %.0f s", text, now - self.started, extra={"duration_seconds": round(now - self.started, 3)}
        )

    def over(self) -> None:
        if self.reported:
            waited = time.monotonic() - self.started
            log.info("%s goes on after %.0f s", self.reported, waited, extra={"duration_seconds": round(waited, 3)})
