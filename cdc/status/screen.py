"""What `admin.py status` shows: the answer, a table of the stages, and what to do. It fits 40, 80 and 120 columns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cdc.status.alarms import ERROR, total_lag, unread_for_long
from cdc.text import age, counted, escape

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

NARROW = 60  # columns; below them the stages are blocks, not a table
WIDE = 110  # columns; below them a table with rates and courses has no room for who is who
WIDE_COURSE = 24  # bars of a course
MAX_PARTITIONS = 12  # rows
BARS = " ▁▂▃▄▅▆▇█"
STYLES = {"error": "red", "warning": "yellow"}


@dataclass
class Row:
    """A stage: a number with its unit, how many wait, and who it is; a partition is a stage, too."""

    stage: str
    now: str = ""
    unit: str = ""
    who: str = ""
    waiting: str = ""
    oldest: float | None = None  # seconds that the oldest of those waits
    alarms: list[dict[str, Any]] = field(default_factory=list)

    def waits(self) -> str:
        return f"oldest {age(self.oldest)}" if self.oldest else ""

    def who_and_what_to_do(self) -> Text:
        text = Text(escape(self.who))
        for alarm in self.alarms:
            if alarm["do"] and alarm["do"] not in text.plain:
                text.append("; " if text.plain else "").append(escape(alarm["do"]), STYLES[alarm["level"]])
        return text


@dataclass
class Motion:
    """What `--watch` knows beyond one look."""

    rates: dict[str, float] = field(default_factory=dict)  # a second, by stage
    courses: dict[str, list[int]] = field(default_factory=dict)  # what waited at the last looks, by stage


def render(status: dict[str, Any], width: int, motion: Motion | None = None) -> RenderableType:
    rows = list(find_rows(status))
    body = blocks(rows, motion) if width < NARROW else table(rows, width, motion)
    below = [*delay_lines(status), *alarm_lines(status)]
    if motion:  # a low terminal cuts off the end
        return Group(headline(status), *below, Text(), body)
    return Group(headline(status), Text(), body, Text(), *below)


def headline(status: dict[str, Any]) -> Text:
    """Return the answer: green, yellow while changes are on their way, red where something is to be done."""
    errors = [alarm["what"] for alarm in status["alarms"] if alarm["level"] == ERROR]
    if status["in_sync"]:
        return Text("in sync: yes", style="bold green").append(f"; but {escape(errors[0])}" if errors else "", "red")
    why = ", ".join(status["not_in_sync_because"])
    return Text(f"in sync: no; {why}", style="bold red" if errors else "bold yellow")


def delay_lines(status: dict[str, Any]) -> Iterator[Text]:
    """Yield how late changes are, as far as it is known."""
    if oldest := status["oldest_change_seconds"]:
        yield Text(f"the oldest change that has not arrived was made {age(oldest)} ago")
    for way, name in ("from table to table", "to_destination"), ("from table to Kafka", "to_kafka"):
        if took := status.get(name):
            median, slowest = took["median_ms"], took["slowest_ms"]
            last = "the last change" if took["changes"] == 1 else f"the last {counted(took['changes'], 'change')}"
            yield Text(f"{way}: {last} took {median:,} ms in the median, {slowest:,} ms at most")


def alarm_lines(status: dict[str, Any]) -> Iterator[Text]:
    for alarm in status["alarms"]:
        line = Text(f"! {escape(alarm['what'])}", style=STYLES[alarm["level"]])
        line.append(f": {escape(alarm['do'])}" if alarm["do"] else "", style="bold")
        yield line


def table(rows: list[Row], width: int, motion: Motion | None) -> Table:
    """Return the stages as a table whose numbers stand below each other."""
    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    shows_who, bars = motion is None or width >= WIDE, WIDE_COURSE if width >= WIDE else WIDE_COURSE // 2
    grid.add_column("stage", no_wrap=True)
    grid.add_column("now", no_wrap=True)
    if motion:
        grid.add_column("a second", justify="right", no_wrap=True)
    grid.add_column("waiting", no_wrap=True)
    if motion:
        grid.add_column("last minutes", no_wrap=True)
    if shows_who:
        grid.add_column("who, or what to do", overflow="fold")
    digits, waiting = max(len(row.now) for row in rows), max(len(row.waiting) for row in rows)
    for row in rows:
        cells: list[RenderableType] = [row.stage, f"{row.now:>{digits}} {row.unit}"]
        if motion:
            cells.append(rate(motion, row.stage))
        cells.append(f"{row.waiting:>{waiting}} {row.waits()}")
        if motion:
            cells.append(sparkline(motion.courses.get(row.stage, []), bars))
        if shows_who:
            cells.append(row.who_and_what_to_do())
        grid.add_row(*cells, style=worst_style(row))
    return grid


def blocks(rows: list[Row], motion: Motion | None) -> Group:
    """Return the stages one below the other, for a narrow terminal."""
    lines: list[RenderableType] = []
    for row in rows:
        lines.append(Text(f"{row.stage}: {row.now} {row.unit}".rstrip(": "), style=worst_style(row) or "bold"))
        below = [escape(row.who)]
        if row.waiting not in ("", "0"):
            below.append(f"waiting: {row.waiting} {row.waits()}")
        if motion and (speed := rate(motion, row.stage)) not in ("", "0"):
            below.append(f"a second: {speed}")
        if motion and any(course := motion.courses.get(row.stage, [])):
            below.append(sparkline(course, WIDE_COURSE))
        lines += [Padding(Text(line), (0, 0, 0, 4)) for line in below if line]
    return Group(*lines)


def worst_style(row: Row) -> str:
    levels = [alarm["level"] for alarm in row.alarms]
    return next((STYLES[level] for level in STYLES if level in levels), "")


def rate(motion: Motion, stage: str) -> str:
    return f"{motion.rates[stage]:,.0f}" if stage in motion.rates else ""


def sparkline(values: list[int], width: int) -> str:
    """Return the last values as bars, the largest of them as a full one."""
    shown, top = values[-width:], max(values[-width:], default=0)
    return "".join(BARS[-(-value * (len(BARS) - 1) // top)] if top else BARS[0] for value in shown)


def find_rows(status: dict[str, Any]) -> Iterator[Row]:
    """Yield the rows, each with the alarms of its stage."""
    for row in [*source_rows(status["source"]), *kafka_rows(status), *destination_rows(status["destination"])]:
        row.alarms = [alarm for alarm in status["alarms"] if alarm["stage"] == row.stage]
        yield row


def source_rows(source: dict[str, Any]) -> Iterator[Row]:
    if "error" in source:
        yield Row("source", who=source["error"])
        return
    yield Row("source", *rows(source), who=source["address"])
    changed = source["last_change_seconds"]
    last = "no change yet" if changed is None else f"last change {age(changed)} ago"
    oldest = source["oldest_unpublished_seconds"]
    yield Row("log", f"{source['log_head']:,}", "log offset", last, f"{source['unpublished']:,}", oldest)
    script, strangers = source["active_producer_script"], source["producer_lock_held_by"]
    who = f"script {script}" if script else source["active_producer"] or "none"
    who += f"; the lock is held by {strangers}" if strangers else ""
    yield Row("producer", f"{source['published_offset']:,}", "log offset", who)


def kafka_rows(status: dict[str, Any]) -> Iterator[Row]:
    kafka = status["kafka"]
    if "error" in kafka:
        yield Row("topic", who=kafka["error"])
        return
    partitions = kafka["partitions"]
    held = sum(part["end_offset"] - part["first_offset"] for part in partitions)
    oldest = max((part["oldest_unread_seconds"] or 0.0 for part in partitions), default=0.0)
    where = f"{kafka['topic']} at {kafka['address']}"
    yield Row("topic", *number(held, "message"), where, f"{total_lag(kafka):,}", oldest)
    shown = partitions if len(partitions) <= MAX_PARTITIONS else worst(partitions)
    for part in shown:
        messages = number(part["end_offset"] - part["first_offset"], "message")
        who, waiting = part["member"] or "no consumer", f"{part['lag']:,}"
        yield Row(f"  partition {part['partition']}", *messages, who, waiting, part["oldest_unread_seconds"])
    if more := len(partitions) - len(shown):
        yield Row("  partitions", f"{more:,}", "more")
    yield Row("group", *number(len(kafka["members"]), "consumer"), kafka["group"])
    yield Row("dead letters", f"{kafka['dead_letters']:,}")


def worst(partitions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the partitions that are worst off, MAX_PARTITIONS at most, in their order."""
    ranked = sorted(partitions, key=lambda part: (part["member"] is not None, not unread_for_long(part), -part["lag"]))
    return sorted(ranked[:MAX_PARTITIONS], key=lambda part: int(part["partition"]))


def destination_rows(destination: dict[str, Any]) -> Iterator[Row]:
    if "error" in destination:
        yield Row("destination", who=destination["error"])
        return
    yield Row("destination", *rows(destination), who=destination["address"])
    found = destination["last_found_equal"]
    if destination["comparison_unknown"]:
        yield Row("comparison", who=f"not known: {destination['comparison_unknown']}")
    elif found is None:
        yield Row("comparison", who="none was equal; run python verify.py")
    else:
        value, unit = number(found["rows"], "row")
        yield Row("comparison", value, f"{unit} equal", f"{age(found['seconds_ago'])} ago")


def rows(stage: dict[str, Any]) -> tuple[str, str]:
    value, unit = number(stage["rows"], "row")
    return value, f"{unit}, estimated" if stage["rows_estimated"] else unit


def number(value: int, noun: str) -> tuple[str, str]:
    value_in_words, _, unit = counted(value, noun).partition(" ")
    return value_in_words, unit
