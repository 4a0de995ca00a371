"""`admin.py status --watch`: the status redrawn every second, with rates and with what waited in the last minutes."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from cdc import cli
from cdc.status.alarms import total_lag
from cdc.status.flow import Flow
from cdc.status.screen import Motion, render

from rich.console import Console
from rich.live import Live

EVERY = 1.0  # seconds from one look to the next
RATE_OVER = 5.0  # seconds over which a rate is taken
COURSE = 180.0  # seconds that a course shows
BARS = 24  # of a course


@dataclass
class Look:
    """What moves, at one time."""

    at: float  # time.monotonic
    reached: dict[str, int]  # an offset that rises, by stage
    waiting: dict[str, int]  # by stage


@dataclass
class History:
    """The looks of the last minutes."""

    looks: deque[Look] = field(default_factory=deque)

    def add(self, look: Look) -> None:
        self.looks.append(look)
        while look.at - self.looks[0].at > COURSE:
            self.looks.popleft()

    def motion(self) -> Motion:
        return Motion(self.rates(), self.courses())

    def rates(self) -> dict[str, float]:
        """Return how much a second each stage has moved lately."""
        last = self.looks[-1]
        first = next(look for look in self.looks if last.at - look.at <= RATE_OVER)
        took = last.at - first.at
        if not took:
            return {}
        return {
            stage: max(0, last.reached[stage] - first.reached[stage]) / took
            for stage in last.reached
            if stage in first.reached
        }

    def courses(self) -> dict[str, list[int]]:
        """Return what waited, as the largest number in each part of the time, oldest first."""
        end = self.looks[-1].at
        found: dict[str, list[int]] = {}
        for look in self.looks:
            bar = BARS - 1 - min(BARS - 1, int((end - look.at) / (COURSE / BARS)))
            for stage, number in look.waiting.items():
                bars = found.setdefault(stage, [0] * BARS)
                bars[bar] = max(bars[bar], number)
        return found


def look_at(status: dict[str, Any]) -> Look:
    """Return what moves in a status."""
    source, kafka, look = status["source"], status["kafka"], Look(time.monotonic(), {}, {})
    if "error" not in source:
        look.reached = {"log": source["log_head"], "producer": source["published_offset"]}
        look.waiting["log"] = source["unpublished"]
    if "error" not in kafka:
        partitions = kafka["partitions"]
        look.reached["topic"] = sum(part["end_offset"] for part in partitions)
        look.reached["group"] = sum(part["end_offset"] - part["lag"] for part in partitions)
        look.waiting["topic"] = total_lag(kafka)
        for part in partitions:
            stage = f"  partition {part['partition']}"
            look.reached[stage] = part["end_offset"] - part["lag"]
            look.waiting[stage] = part["lag"]
    return look


def run(flow: Flow, console: Console) -> int:
    """Redraw the status until Ctrl-C; returns the exit code."""
    if not console.is_terminal:
        cli.fail("--watch draws on a terminal; without one take --json or --check", cli.WRONG_USE)
    stop, history = cli.stop_on_signals(), History()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while not stop.requested:
            started = time.monotonic()
            try:
                status = flow.look()
            except cli.Stopped:
                break
            history.add(look_at(status))
            live.update(render(status, console.width, history.motion()), refresh=True)
            stop.sleep(max(0.1, EVERY - (time.monotonic() - started)))
    return cli.DONE
