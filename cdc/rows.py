"""Rows of both tables `employees` as people read them: a table, or blocks on a narrow terminal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple

from cdc.text import escape
from employee import EMPLOYEE_COLUMNS, Employee

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

NARROW = 76  # columns; below them the rows are blocks
NEIGHBOURS = 3
CHANGED = " *"  # after a value that the step has changed
NUMBERS = ("emp_id", "salary")

Sides = dict[str, list[Employee]]  # "source" and "destination"


def choose(sides: Sides, emp_id: int) -> Sides:
    """Return the employee and its nearest neighbours, the same ones of both sides, the highest emp_id first."""
    found = {employee.emp_id for employees in sides.values() for employee in employees}
    nearest = sorted(found - {emp_id}, key=lambda other: (abs(other - emp_id), -other))[:NEIGHBOURS]
    chosen = {emp_id, *nearest}
    return {
        side: sorted((e for e in employees if e.emp_id in chosen), key=lambda e: e.emp_id, reverse=True)
        for side, employees in sides.items()
    }


def changed_columns(before: Employee | None, after: Employee | None) -> set[str]:
    """Return which columns a step has changed; none where the row is new or gone."""
    if before is None or after is None:
        return set()
    values = zip(EMPLOYEE_COLUMNS, astuple(before), astuple(after), strict=True)
    return {name for name, old, new in values if old != new}


def render(sides: Sides, emp_id: int, changed: set[str], width: int) -> RenderableType:
    """Return the rows that matter for an employee, its changed columns marked."""
    body = table if width >= NARROW else blocks
    legend = [Text(f"{CHANGED.strip()} changed by this step", style="dim")] if changed else []
    return Group(body(choose(sides, emp_id), emp_id, changed), *legend)


def table(sides: Sides, emp_id: int, changed: set[str]) -> Table:
    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    grid.add_column("", no_wrap=True)
    for name in EMPLOYEE_COLUMNS:
        grid.add_column(name, justify="right" if name in NUMBERS else "left", overflow="fold")
    for side, employees in sides.items():
        for number, employee in enumerate(employees):
            grid.add_row(side if number == 0 else "", *cells(employee, emp_id, changed))
        if not employees:
            grid.add_row(side, "(no rows)")
    return grid


def blocks(sides: Sides, emp_id: int, changed: set[str]) -> Group:
    lines: list[RenderableType] = []
    for side, employees in sides.items():
        lines.append(Text(side, style="bold"))
        for employee in employees:
            named = zip(EMPLOYEE_COLUMNS, astuple(employee), cells(employee, emp_id, changed), strict=True)
            line = Text(", ").join(Text(f"{name} ").append(cell) for name, value, cell in named if value is not None)
            lines.append(Padding(line, (0, 0, 0, 2)))
        if not employees:
            lines.append(Text("  (no rows)"))
    return Group(*lines)


def cells(employee: Employee, emp_id: int, changed: set[str]) -> Iterator[Text]:
    """Yield an employee's values; those of the step's employee are bold, and its changed ones marked."""
    ours = employee.emp_id == emp_id
    for name, value in zip(EMPLOYEE_COLUMNS, astuple(employee), strict=True):
        text = Text("NULL" if value is None else escape(str(value)), style="bold" if ours else "")
        if ours and name in changed:
            text.append(CHANGED)
            text.stylize("yellow")
        yield text
