"""Compare the employees of source and destination while both are in use; with --repair send again those that differ.

    python verify.py             which employees differ
    python verify.py --json      the same as JSON
    python verify.py --repair    send them again through the pipeline, wait until they have arrived, compare them again

A change that is still on its way is no difference: verify.py looks again until it has been applied. Exit code 0 equal,
1 different, 2 wrong use.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg2
from psycopg2.extensions import connection as Connection
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

import capture
import cli
import config
from connection import connect_within, explain
from emp_cdc import SANE_JUMP, SEQUENCE
from employee import EMPLOYEE_COLUMNS, INT4

log = logging.getLogger("verify")

CONNECT_WAIT = 10.0  # seconds for a server to answer
PAGE = 20_000  # rows that one checksum covers
PART = 500  # rows: a page that differs is compared again in parts of this size, and only parts that differ are read
SUSPECTS = 10_000  # employees that may wait for a second look before the next page is compared
LINE_EVERY = 2.0  # seconds between lines of progress where there is no terminal
SENT_AT_ONCE = 1_000  # rows that --repair touches in one transaction

# Walk along the keys, also where a table was loaded just now and has no statistics yet.
PLANS = "SET enable_seqscan = off; SET enable_bitmapscan = off; SET jit = off"

# A row as text, the same in all versions and settings: JSON has a date style of its own, and tells NULL from ''.
ROW = f"json_build_array({', '.join(EMPLOYEE_COLUMNS)})::text"
NO_ROW = "null"

RANGE = "emp_id > %(after)s AND emp_id <= %(upto)s"
ROWS = f"SELECT emp_id, {ROW} FROM employees WHERE {RANGE}"
CHECKSUM = f"""
SELECT count(*), encode(sha256(convert_to(string_agg({ROW}, E'\\n' ORDER BY emp_id), 'UTF8')), 'hex')
FROM employees WHERE {RANGE}
"""
BOUND = f"""
SELECT CASE WHEN count(*) < %(size)s THEN %(upto)s ELSE max(emp_id) END
FROM (SELECT emp_id FROM employees WHERE {RANGE} ORDER BY emp_id LIMIT %(size)s) AS first
"""

AT_SOURCE = f"SELECT emp_id, {ROW} FROM employees WHERE emp_id = ANY (%(ids)s::int[])"
AT_DESTINATION = f"""
SELECT emp_id, CASE WHEN employees.emp_id IS NULL THEN '{NO_ROW}' ELSE {ROW} END, coalesce(cdc_id, 0)
FROM unnest(%(ids)s::int[]) AS suspect (emp_id) LEFT JOIN employees USING (emp_id) LEFT JOIN cdc_applied USING (emp_id)
"""
# What the log says: the newest change that the destination has yet to apply, and the row as of the one applied last.
LOGGED = f"""
SET LOCAL enable_nestloop = off;
SELECT emp_id, coalesce(max(cdc_id) FILTER (WHERE cdc_id > applied), 0),
       max(CASE action WHEN 'DELETE' THEN '{NO_ROW}' ELSE {ROW} END) FILTER (WHERE cdc_id = applied)
FROM unnest(%(ids)s::int[], %(applied)s::bigint[]) AS suspect (emp_id, applied) JOIN emp_cdc USING (emp_id)
WHERE cdc_id >= %(lowest)s AND cdc_id >= applied
GROUP BY emp_id
"""
PUBLISHED = "SELECT last_offset FROM cdc_position"
COUNT = "SELECT count(*) FROM employees"
APPLIED = "SELECT coalesce(max(cdc_id), 0) FROM cdc_applied"

# Each of these is one transaction, and none makes writers wait for long: a row that somebody holds is skipped, a lock
# on a table given up after a fifth of a second. Both are tried again at the next look.
TOUCH = """
SET LOCAL lock_timeout = '200ms';
WITH free AS MATERIALIZED (
    SELECT emp_id FROM employees WHERE emp_id = ANY (%(ids)s::int[]) ORDER BY emp_id FOR NO KEY UPDATE SKIP LOCKED)
UPDATE employees SET city = employees.city FROM free WHERE employees.emp_id = free.emp_id RETURNING free.emp_id
"""
# The lock waits for all who write: an INSERT that has yet to commit would be followed, and undone, by our DELETE.
FORGET = """
SET LOCAL lock_timeout = '200ms';
LOCK TABLE employees IN SHARE MODE;
INSERT INTO emp_cdc (emp_id, action)
SELECT emp_id, 'DELETE' FROM unnest(%(ids)s::int[]) AS extra (emp_id)
WHERE NOT EXISTS (SELECT FROM employees WHERE employees.emp_id = extra.emp_id)
RETURNING emp_id
"""
# The lock keeps everybody from drawing an offset between the look at the sequence and its move.
MOVE_ON = """
SET LOCAL lock_timeout = '200ms';
LOCK TABLE emp_cdc IN SHARE MODE;
SELECT setval('emp_cdc_cdc_id_seq', greatest(last_value, %(applied)s)) FROM emp_cdc_cdc_id_seq
"""


@dataclass(frozen=True)
class Side:
    name: str
    url: str
    connection: Connection

    def rows(self, sql: str, **values: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a statement. Exits with one line if the server does not answer or refuses; raises
        LockNotAvailable when a lock was not to be had in time."""
        try:
            with self.connection.cursor() as cursor:
                cursor.execute(sql, values)
                return cursor.fetchall() if cursor.description else []
        except psycopg2.errors.LockNotAvailable:
            raise
        except psycopg2.Error as error:
            cli.fail(explain(self.name, self.url, error))

    def number(self, sql: str, **values: Any) -> int:
        return int(self.rows(sql, **values)[0][0])


def ranges(sides: tuple[Side, Side], after: int, last: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut the keys from after (exclusive) to last into ranges with at most size rows on either side."""
    while after < last:
        upto = min(side.number(BOUND, after=after, upto=last, size=size) for side in sides)
        yield after, upto
        after = upto


def differing(sides: tuple[Side, Side], after: int, upto: int) -> tuple[int, list[int]]:
    """Return how many rows a range of keys has, on the side that has more, and the keys whose rows differ."""
    (ours,), (theirs,) = (side.rows(CHECKSUM, after=after, upto=upto) for side in sides)
    keys: list[int] = []
    if ours != theirs:
        for start, end in ranges(sides, after, upto, PART):
            if len({tuple(side.rows(CHECKSUM, after=start, upto=end)) for side in sides}) == 2:
                here, there = (dict(side.rows(ROWS, after=start, upto=end)) for side in sides)
                keys += [key for key in here.keys() | there.keys() if here.get(key) != there.get(key)]
    return max(ours[0], theirs[0]), keys


@dataclass
class Suspect:
    """An employee whose rows differed when last seen."""

    emp_id: int
    source: str = NO_ROW  # as ROW makes it
    destination: str = NO_ROW
    applied: int = 0  # its newest change at the destination
    awaited: int = 0  # its newest change in the log, while the destination has yet to apply it
    sent: bool = False  # by --repair


@dataclass
class Comparison:
    """What one run has found so far."""

    sides: tuple[Side, Side]
    repair: bool
    patience: float  # seconds
    limit: int
    rows: int = 0
    suspects: dict[int, Suspect] = field(default_factory=dict)
    different: int = 0
    on_their_way: int = 0
    unpublished: int = 0  # of those on their way
    repaired: int = 0
    shown: list[Suspect] = field(default_factory=list)  # of those that differ, at most limit
    back_in_time: bool = False
    not_captured: list[str] = field(default_factory=list)

    def equal(self) -> bool:
        return not (self.different or self.on_their_way or self.back_in_time)

    def run(self, advance: Callable[[int], None], stop: cli.Stop) -> None:
        """Compare all rows. Holds no transaction open, and in memory no more than what differs in a few pages."""
        self.check_sequence()
        for after, upto in ranges(self.sides, INT4[0] - 1, INT4[1], PAGE):
            rows, keys = differing(self.sides, after, upto)
            self.rows += rows
            self.suspects.update((key, Suspect(key)) for key in keys)
            advance(rows)
            self.settle(SUSPECTS, stop)
            if stop.requested:
                return
        self.settle(0, stop)

    def check_capture(self) -> None:
        """Say what of the source is not captured: rows that are equal now may not stay so."""
        source = self.sides[0]
        try:
            self.not_captured = capture.gaps(source.connection) + capture.not_captured(source.connection)
        except psycopg2.Error as error:
            cli.fail(explain(source.name, source.url, error))
        for line in self.not_captured:
            print(f"source: {line}", file=sys.stderr)

    def check_sequence(self) -> None:
        """See whether the destination has applied offsets that the source's log has yet to reach, as after a restore of
        the source: it would take new changes for old ones. With repair, move the log's sequence past them."""
        source, destination = self.sides
        applied = destination.number(APPLIED)  # before the other: what was applied had been drawn
        drawn = source.number(SEQUENCE)
        if applied <= drawn:
            return
        if applied - drawn > SANE_JUMP:
            cli.fail(
                f"destination: cdc_applied holds offset {applied}, which no log reaches; a stray message? Run there "
                f"DELETE FROM cdc_applied WHERE cdc_id > {drawn}; then python verify.py --repair"
            )
        what = f"the source went back in time: its log is at offset {drawn:,}, the destination at {applied:,}"
        self.back_in_time = True
        if self.repair:
            try:
                source.rows(MOVE_ON, applied=applied)
                self.back_in_time = False
            except psycopg2.errors.LockNotAvailable:
                what += "; a long transaction holds emp_cdc"
        advice = "run python verify.py --repair" if self.back_in_time else "new changes go on from there"
        print(f"{what}; {advice}", file=sys.stderr)

    def settle(self, most: int, stop: cli.Stop) -> None:
        """Look until at most so many suspects are left. When none could be let go for as long as patience lasts, the
        pipeline stands still: count them, or with repair send them first and wait once more."""
        patient_until, pause = time.monotonic() + self.patience, 0.05
        while len(self.suspects) > most and not stop.requested:
            before, started = len(self.suspects), time.monotonic()
            last = started > patient_until
            self.look(last)
            if self.on_their_way:
                self.patience = 0  # no use to wait for others
            if last or len(self.suspects) < before:
                patient_until, pause = time.monotonic() + self.patience, 0.05
            if len(self.suspects) > most:
                stop.sleep(max(pause, time.monotonic() - started))
                if pause < 1.0 <= 1.5 * pause:
                    print(f"waiting for changes of {len(self.suspects):,} employees", file=sys.stderr)
                pause = min(1.5 * pause, 1.0)  # also the time between two tries for a lock

    def look(self, last: bool) -> None:
        """Look again at all suspects, and let those go that are equal. Those for whom nothing is on its way, with last
        all of them, are counted; with repair they are sent first."""
        self.read_rows()
        self.read_log()
        certain = [suspect for suspect in self.suspects.values() if last or not suspect.awaited]
        published = self.sides[0].number(PUBLISHED)
        sent = set()
        if self.repair:
            sent = self.send([suspect for suspect in certain if not suspect.sent and suspect.awaited <= published])
        for suspect in certain:
            # sent now: wait for it; not sent now nor before: somebody holds the row, try again
            if suspect.emp_id not in sent and (last or suspect.sent or not self.repair):
                self.count(suspect, published)

    def read_rows(self) -> None:
        """Read the suspects' rows, and let those go that are equal."""
        source, destination = self.sides
        ids = list(self.suspects)
        # The destination first: what it has applied by then, the source shows and has logged when we look there.
        there = destination.rows(AT_DESTINATION, ids=ids)
        here = dict(source.rows(AT_SOURCE, ids=ids))
        for key, row, applied in there:
            suspect = self.suspects[key]
            suspect.source, suspect.destination, suspect.applied = here.get(key, NO_ROW), row, applied
            if suspect.source == suspect.destination:
                self.let_go(suspect)

    def read_log(self) -> None:
        """See for whom something is on its way. The log is read only for those whose awaited change has come: it has no
        index by employee, and what came is near its end."""
        ready = [suspect for suspect in self.suspects.values() if suspect.applied >= suspect.awaited]
        applied = [suspect.applied for suspect in ready]
        ids = [suspect.emp_id for suspect in ready]
        logged = self.sides[0].rows(LOGGED, ids=ids, applied=applied, lowest=min(applied)) if ready else []
        changes = {key: (newest, row) for key, newest, row in logged}
        for suspect in ready:
            newest, row = changes.get(suspect.emp_id, (0, None))
            if newest and suspect.awaited and row == suspect.destination:
                self.let_go(suspect)  # it changes all the time; what we awaited has come, and left the row as it should
            suspect.awaited = newest

    def let_go(self, suspect: Suspect) -> None:
        del self.suspects[suspect.emp_id]
        self.repaired += suspect.sent

    def count(self, suspect: Suspect, published: int) -> None:
        del self.suspects[suspect.emp_id]
        self.different += 1
        self.on_their_way += suspect.awaited > 0
        self.unpublished += suspect.awaited > published
        if len(self.shown) < self.limit:
            self.shown.append(suspect)

    def send(self, suspects: list[Suspect]) -> set[int]:
        """Have the source log their rows again, as a DELETE those that it does not have. Returns whose it did."""
        sent: set[int] = set()
        for start in range(0, len(suspects), SENT_AT_ONCE):
            some = suspects[start : start + SENT_AT_ONCE]
            for statement, missing in ((TOUCH, False), (FORGET, True)):
                if ids := [suspect.emp_id for suspect in some if (suspect.source == NO_ROW) == missing]:
                    with suppress(psycopg2.errors.LockNotAvailable):
                        sent |= {key for (key,) in self.sides[0].rows(statement, ids=ids)}
        for suspect in suspects:
            suspect.sent = suspect.emp_id in sent
            log.debug("%s employee %d again", "sent" if suspect.sent else "could not send", suspect.emp_id)
        return sent


@contextmanager
def progress(total: int) -> Iterator[Callable[[int], None]]:
    """Show how many rows have been compared, the rate and the time left, on stderr: a bar on a terminal, else lines."""
    console, started, told, done = Console(stderr=True), time.monotonic(), time.monotonic(), 0
    columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)

        def advance(rows: int) -> None:
            nonlocal done, told
            done += rows
            rate = done / (time.monotonic() - started)
            text = f"{done:,} of {total:,} rows, {rate:,.0f}/s"
            bar.update(task, advance=rows, description=text)
            if bar.disable and time.monotonic() - told > LINE_EVERY:
                told = time.monotonic()
                print(f"{text}, {max(total - done, 0) / max(rate, 1):,.0f} s left", file=sys.stderr)

        yield advance


def as_json(found: Comparison, seconds: float) -> str:
    differences = [
        {
            "emp_id": suspect.emp_id,
            "source": columns(suspect.source),
            "destination": columns(suspect.destination),
            "on_its_way": suspect.awaited > 0,
        }
        for suspect in found.shown
    ]
    result = {
        "equal": found.equal(),
        "rows": found.rows,
        "different": found.different,
        "on_their_way": found.on_their_way,
        "repaired": found.repaired,
        "source_went_back_in_time": found.back_in_time,
        "not_captured": found.not_captured,
        "differences": differences,
        "seconds": round(seconds, 1),
    }
    return json.dumps(result, indent=2, ensure_ascii=False)


def columns(row: str) -> dict[str, Any] | None:
    values = json.loads(row)
    return values and dict(zip(EMPLOYEE_COLUMNS, values, strict=True))


def show(found: Comparison, seconds: float, console: Console) -> None:
    if found.shown:
        table = Table("emp_id", "source", "destination", title="employees that differ", title_justify="left")
        for suspect in found.shown:
            here, there = columns(suspect.source), columns(suspect.destination)
            table.add_row(str(suspect.emp_id), in_words(here, there), in_words(there, here))
        console.print(table)
    if left_out := found.different - len(found.shown):
        console.print(f"and {left_out:,} more")
    if found.on_their_way:
        console.print(f"{found.on_their_way:,} of them wait for a change {suspicion(found)}", soft_wrap=True)
    if found.repaired:
        console.print(f"{found.repaired:,} employees repaired")
    verdict = f"DIFFERENT: {found.different:,} employees" if found.different else "EQUAL"
    console.print(f"{verdict}; {found.rows:,} rows compared in {seconds:.1f} s")


def in_words(row: dict[str, Any] | None, other: dict[str, Any] | None) -> Text:
    """The columns of a row that differ from the other one, all of them if there is no other."""
    if row is None:
        return Text("no such row")
    return Text(
        ", ".join(
            f"{name} {'NULL' if value is None else json.dumps(value, ensure_ascii=False)}"
            for name, value in row.items()
            if name != "emp_id" and (other is None or value != other[name])
        )
    )


def suspicion(found: Comparison) -> str:
    """Which script seems not to run, judged by how far the changes have come."""
    if found.unpublished:
        return "that is not published; does python producer.py run?"
    return (
        "that is published but not applied; does python consumer.py run? If so it is a dead letter (python admin.py "
        "dead-letters), or a backup of the destination was restored (python verify.py --repair)"
    )


def number(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return int(text)


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--repair", action="store_true", help="send again what differs")
    parser.add_argument("--json", action="store_true", help="the result as JSON")
    parser.add_argument("--limit", type=number, default=20, help="how many differences to show; default 20")
    parser.add_argument(
        "--wait",
        type=number,
        default=30,
        help="seconds without any progress until the pipeline stands still; default 30",
    )
    asked = parser.parse_args()
    cli.start_logging(asked.verbose)
    if asked.json:
        logging.disable(logging.WARNING)  # stdout is for the JSON alone
    stop = cli.stop_on_signals()
    started = time.monotonic()
    with (
        closing(connect_within("source", config.SOURCE_DATABASE_URL, CONNECT_WAIT, stop)) as source,
        closing(connect_within("destination", config.DESTINATION_DATABASE_URL, CONNECT_WAIT, stop)) as destination,
    ):
        sides = (
            Side("source", config.SOURCE_DATABASE_URL, source),
            Side("destination", config.DESTINATION_DATABASE_URL, destination),
        )
        found = Comparison(sides, asked.repair, asked.wait, asked.limit)
        found.check_capture()
        total = max(side.number(COUNT) for side in sides)
        for side in sides:
            side.rows(PLANS)
        with progress(total) as advance:
            found.run(advance, stop)
    if stop.requested:
        cli.fail("stopped before all was compared")
    seconds = time.monotonic() - started
    if asked.json:
        print(as_json(found, seconds))
    else:
        show(found, seconds, Console(highlight=False))
    sys.exit(cli.DONE if found.equal() else cli.FAILED)


if __name__ == "__main__":
    main()
