"""What a run shows: one table that changes in place on a terminal, lines without one, and the lost rows at its end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from cdc.text import counted
from lose import keys
from lose.experiment import Experiment, Side
from lose.faults import KEYS
from lose.reasons import Lost, clock
from lose.writers import Row

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

LINE_EVERY = 2.0  # seconds
MOST_EVENTS = 4
MOST_LOST = 12  # rows that are listed in the end, on a terminal
WIDE = 79  # columns that the table of them takes
CAUSE = (
    "Each drew its cdc_id before the poll and committed after it. A row with a higher cdc_id was committed sooner. "
    "The poll moved its offset past both, and WHERE cdc_id > offset never finds the first."
)


class Lines:
    """Without a terminal: a line every two seconds, no keys, and every lost row."""

    most_lost = 1_000_000

    def __init__(self, console: Console) -> None:
        self.console, self.due = console, 0.0

    def pressed(self) -> str:
        return ""

    def event(self, line: str) -> None:
        self.console.print(f"{clock(time.time())} {line}", soft_wrap=True)

    def update(self, experiment: Experiment, rows: list[Row], left: float) -> None:
        if time.monotonic() < self.due:
            return
        self.due = time.monotonic() + LINE_EVERY
        sides = "; ".join(f"{side.title} {', '.join(counts(side, rows))}" for side in experiment.sides)
        self.event(f"{counted(len(rows), 'row')} written; {sides}")


class Terminal(Lines):
    """On a terminal: the table in place, the keys, and what they did."""

    most_lost = MOST_LOST

    def __init__(self, console: Console, live: Live) -> None:
        super().__init__(console)
        self.live, self.events = live, list[str]()

    def pressed(self) -> str:
        return keys.pressed()

    def event(self, line: str) -> None:
        self.events = [*self.events, f"{clock(time.time())[:-4]} {line}"][-MOST_EVENTS:]

    def update(self, experiment: Experiment, rows: list[Row], left: float) -> None:
        self.live.update(screen(experiment, rows, left, self.events), refresh=True)


@contextmanager
def view(console: Console) -> Iterator[Lines]:
    if not (console.is_terminal and console.is_interactive):
        yield Lines(console)
        return
    with keys.single_keys(), Live(console=console, auto_refresh=False) as live:
        yield Terminal(console, live)


def counts(side: Side, rows: list[Row]) -> tuple[str, str, str]:
    """Return how many rows have arrived and how many are lost, and the delay."""
    lost, delay = len(side.overtaken(rows)), side.delay(rows)
    return (
        f"{len(rows) - len(side.missing(rows)):,} arrived",
        f"{lost:,} lost",
        f"delay {'-' if delay is None else f'{delay * 1000:,.0f} ms'}",
    )


def screen(experiment: Experiment, rows: list[Row], left: float, events: list[str]) -> RenderableType:
    """Return the table of both designs, with the keys and what they did below it."""
    table = Table(title=f"One source, {len(rows):,} rows written, {max(0.0, left):.0f} s left", title_justify="left")
    for column in ("", "plain design", "Employee CDC"):
        table.add_column(column)
    table.add_row("reads the log by", "cdc_id > offset", "offset and snapshot")
    plain, ours = (measures(side, rows) for side in experiment.sides)
    for name in plain:
        table.add_row(name, plain[name], ours[name])
    help_line = Text("\n".join(f"{key}  {meaning}" for key, meaning in KEYS.items()), style="dim")
    return Group(table, help_line, *(Text(line) for line in events))


def measures(side: Side, rows: list[Row]) -> dict[str, str]:
    missing, lost, delay = len(side.missing(rows)), len(side.overtaken(rows)), side.delay(rows)
    return {
        "arrived": f"{len(rows) - missing:,}",
        "on the way": f"{missing - lost:,}",
        "lost": f"[bold red]{lost:,}[/bold red]" if lost else "[green]0[/green]",
        "delay, median": "-" if delay is None else f"{delay * 1000:,.0f} ms",
    }


def print_lost(console: Console, lost: list[Lost], most: int) -> None:
    """List the lost rows: as sentences, or on a terminal that is wide enough as a table."""
    passed = [each for each in lost if each.poll]
    sentences = lost
    if passed and console.is_terminal and console.width >= WIDE:
        print_table(console, passed[:most], len(lost))
        sentences = [each for each in lost if not each.poll]
    for each in sentences[:most]:
        console.print(f"lost: {each.why()}", soft_wrap=not console.is_terminal)
    if len(sentences) > most:
        console.print(f"and {len(sentences) - most:,} more")
    if passed:
        console.print(CAUSE, soft_wrap=not console.is_terminal)


def print_table(console: Console, passed: list[Lost], count: int) -> None:
    table = Table(title=f"{len(passed)} of {count:,} lost rows", title_justify="left")
    for column in ("cdc_id", "who", "drawn", "polled past", "to offset", "committed"):
        table.add_column(column, no_wrap=True)
    for each in passed:
        assert each.poll
        table.add_row(
            f"{each.cdc_id}",
            each.row.writer,
            clock(each.drawn),
            clock(each.poll.at),
            f"{each.poll.offset}",
            clock(each.row.committed),
        )
    console.print(table)
