"""What `admin.py trace` shows: a table of the changes where there is room for one, else a block for each."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from cdc.text import escape
from cdc.trace import sides, verdict
from cdc.trace.sides import Letter, Logged, Searched, Sent, Trace
from employee import EMPLOYEE_COLUMNS

from confluent_kafka.admin import AdminClient
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

WIDE = 100  # columns of the terminal from which on the changes are a table

Cells = tuple[str, ...]
HEADINGS = ("log offset", "change", "log", "topic", "destination")


def run(admin: AdminClient, emp_id: int, as_json: bool) -> int:
    """Print where an employee's changes are; returns the exit code."""
    found = sides.trace(admin, emp_id)
    state, line = verdict.judge(found)
    if as_json:
        print(sides.to_json(found, state, line))
    else:
        show(found, Console(highlight=False, markup=False, emoji=False))
        color = {verdict.IN_SYNC: "green", verdict.UNKNOWN: "yellow"}.get(state, "red")
        Console(highlight=False).print(plain(line, color), soft_wrap=True)
    return sides.exit_code(found)


def show(found: Trace, console: Console) -> None:
    console.print(rows(found))
    changes = [cells(found, log_offset) for log_offset in log_offsets(found)]
    if not changes:
        console.print("no changes found")
    elif console.width >= WIDE:
        console.print(wide(changes))
    else:
        for change in changes:
            console.print(block(change))
    for line in notes(found):
        console.print(plain(line))


def rows(found: Trace) -> Table:
    """The employee's row on both sides, what differs marked."""
    title = f"employee {found.emp_id}"
    table = Table("", "source", "destination", title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in EMPLOYEE_COLUMNS[1:]:
        style = "bold red" if name in found.differing and not found.errors else ""
        sides = (("source", found.source), ("destination", found.destination))
        table.add_row(name, *(plain(cell(found, side, row, name), style) for side, row in sides))
    return table


def cell(found: Trace, side: str, row: dict[str, Any] | None, name: str) -> str:
    if side in found.errors:
        return "not known"
    if row is None:
        return "(no row)" if name == EMPLOYEE_COLUMNS[1] else ""
    return "NULL" if row[name] is None else escape(str(row[name]))


def log_offsets(found: Trace) -> list[int | None]:
    """The changes that were found anywhere, the newest first; at the end, None for messages that are no change."""
    parts: list[Logged | Sent | Letter] = [*found.log, *found.messages, *found.letters]
    offsets = {part.log_offset for part in parts}
    known = sorted((offset for offset in offsets if offset is not None), reverse=True)
    return [*known, *([None] if None in offsets else [])]


def cells(found: Trace, log_offset: int | None) -> Cells:
    """One change, stage by stage, in the order of HEADINGS."""
    logged = [change for change in found.log if change.log_offset == log_offset]
    sent = [message for message in found.messages if message.log_offset == log_offset]
    letters = [letter for letter in found.letters if letter.log_offset == log_offset]
    action = (logged or sent or letters)[0].action.partition(":")[0]  # the error says why it is no change
    in_log = [
        f"{short(change.changed_at)}, transaction {change.txid}, {'published' if change.published else 'waiting'}"
        for change in logged
    ]
    in_topic = [f"partition {part.partition}, offset {part.offset}, {short(part.time)}" for part in sent]
    outcome = [
        f"dead letter at offset {letter.offset}: {escape(letter.error or 'no reason given')}" for letter in letters
    ]
    if not letters and sent:
        outcome = [arrival(found, log_offset or 0, sent[-1].read)]
    return (
        "-" if log_offset is None else str(log_offset),
        action,
        *("\n".join(part) or "-" for part in (in_log, in_topic, outcome)),
    )


def arrival(found: Trace, log_offset: int, was_read: bool) -> str:
    """How a message that is no dead letter has fared."""
    if "destination" in found.errors:
        return "not known"
    if not log_offset:
        return "read" if was_read else "not read yet"
    if log_offset == found.applied:
        return "applied"
    if log_offset < (found.applied or 0):
        return f"older than what is applied, {found.applied}"
    return "read, not applied" if was_read else "not read yet"


def wide(changes: list[Cells]) -> Table:
    table = Table(*HEADINGS)
    for change in changes:
        table.add_row(*map(plain, change))
    return table


def block(change: Cells) -> Group:
    log_offset, action, *stages = change
    grid = Table.grid(padding=(0, 1))
    for heading, text in zip(HEADINGS[2:], stages, strict=True):
        grid.add_row(plain(f"  {heading}"), plain(text))
    return Group(plain(f"log offset {log_offset}: {action}", "bold"), grid)


def notes(found: Trace) -> list[str]:
    """How much was searched, and what the gate has."""
    lines = list(found.errors.values())
    if "kafka" not in found.errors:
        lines += [in_words("topic", part) for part in found.searched]
        lines += [in_words("dead letters", part) for part in found.letters_searched if part.end_offset]
    if "destination" not in found.errors:
        applied = "nothing" if found.applied is None else f"log offset {found.applied}"
        lines.append(f"gate: applied up to {applied}")
    return lines


def in_words(topic: str, part: Searched) -> str:
    where = (
        f"{topic}: partition {part.partition} searched from its end, {part.end_offset}, back to {part.searched_from}"
    )
    earlier = part.searched_from - part.first_offset
    return f"{where}; {earlier:,} earlier messages were not searched" if earlier else f"{where}, all there is"


def short(iso: str | None) -> str:
    """Return a time without its zone, which is this machine's, and without the date if that is today."""
    if iso is None:
        return "no time"
    day, _, clock = iso.partition("T")
    return clock[:12] if day == datetime.now().date().isoformat() else f"{day} {clock[:12]}"


def plain(text: str, style: str = "") -> Text:
    """Text of others, in which a new line is ours and nothing else acts upon a terminal."""
    return Text("\n".join(map(escape, text.split("\n"))), style=style, overflow="fold")
