"""How far long work has come: a bar with rate and time left on a terminal, a line every few seconds elsewhere.

A bar is one line without a newline, drawn again each time. Whoever prints something else clears it first.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

LINE_EVERY = 2.0  # seconds between two lines where there is no terminal
DRAW_EVERY = 0.1  # seconds
WIDTH = 24  # characters of the bar itself
CLEAR = "\r\x1b[2K"

drawn: list[TextIO] = []  # where a bar stands now


def draw(stream: TextIO, done: float, total: float, text: str) -> None:
    """Draw a bar over the one that stands there, with a text beside it."""
    from rich.console import Console  # here: most runs show no bar, and it takes a while
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    console = Console(file=stream)
    with console.capture() as shown:
        console.print(ProgressBar(total=max(total, 1), completed=done, width=WIDTH), end="")
        beside = Text(f" {text}")
        beside.truncate(max(console.width - WIDTH - 1, 0), overflow="ellipsis")
        console.print(beside, end="", soft_wrap=True)
    clear()
    stream.write(shown.get())
    stream.flush()
    drawn.append(stream)


def clear() -> None:
    """Take the bar away that stands on the terminal, if there is one."""
    while drawn:
        stream = drawn.pop()
        stream.write(CLEAR)
        stream.flush()


def describe(done: int, total: int, noun: str, rate: float) -> str:
    left = max(total - done, 0) / max(rate, 1.0)
    return f"{done:,} of {total:,} {noun}, {rate:,.0f}/s, {left:,.0f} s left"


@dataclass
class Progress:
    """Shows on stderr how many of so many things are done."""

    total: int
    noun: str
    done: int = 0

    def __post_init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self.started = self.shown = time.monotonic()

    def advance(self, count: int) -> None:
        """Note that so many more are done."""
        self.done += count
        now = time.monotonic()
        if now - self.shown < (DRAW_EVERY if self.terminal else LINE_EVERY):
            return
        self.shown = now
        text = describe(self.done, self.total, self.noun, self.done / max(now - self.started, 0.001))
        if self.terminal:
            draw(sys.stderr, self.done, self.total, text)
        else:
            print(text, file=sys.stderr, flush=True)


@contextmanager
def progress(total: int, noun: str) -> Iterator[Callable[[int], None]]:
    """Show it as long as the work goes on; advance(count) notes that so many more are done."""
    try:
        yield Progress(total, noun).advance
    finally:
        clear()
