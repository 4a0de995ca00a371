"""Dead letters as people read them: a table, or blocks where that would be too narrow."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

WIDE = 100  # columns; below them the letters are blocks
MAX_SHOWN = 80  # characters of a value

COLUMNS = ("when", "employee", "error", "origin", "value")
Cells = tuple[str, ...]


def to_cells(letter: dict[str, Any]) -> Cells:
    """Return what is shown of a letter; a value can be as large as the broker allows."""
    origin = "/".join(part for part in letter["origin"].values() if part)
    texts = (letter["when"], letter["employee"], letter["error"], origin, letter["value"])
    return tuple(shorten(text or "-") for text in texts)


def shorten(text: str) -> str:
    """Return text with at most MAX_SHOWN characters, those replaced that a terminal would act upon."""
    shown = "".join(character if character.isprintable() else "·" for character in text[: MAX_SHOWN + 1])
    return shown if len(shown) <= MAX_SHOWN else shown[:MAX_SHOWN] + "…"


def render(letters: list[Cells], width: int) -> RenderableType:
    return table(letters) if width >= WIDE else Group(*map(block, letters))


def table(letters: list[Cells]) -> Table:
    grid = Table(*COLUMNS, title="dead letters", title_justify="left")
    for cells in letters:
        grid.add_row(*(Text(cell, overflow="fold") for cell in cells))
    return grid


def block(cells: Cells) -> Group:
    """Return a letter as a line with its time, and what else there is below it."""
    lines = zip(COLUMNS[1:], cells[1:], strict=True)
    below = [Padding(Text(f"{name} {cell}", overflow="fold"), (0, 0, 0, 2)) for name, cell in lines]
    return Group(Text(cells[0], style="bold"), *below)
