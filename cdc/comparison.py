"""Find the employees that differ, wait for what is on its way, and send again what still differs.

Equal pages are passed by a checksum. An employee whose rows differ is a suspect: a change may be on its way. Suspects
are looked at again until their change has been applied, or until it is certain that none is coming.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from cdc import capture, cli
from cdc.history import MAX_SEQUENCE_JUMP, SEQUENCE
from cdc.postgres import explain
from cdc.text import counted
from config import SCHEMA
from employee import EMPLOYEE_COLUMNS, INT4

import psycopg2
from psycopg2.extensions import connection as Connection

log = logging.getLogger(__name__)

PAGE = 20_000  # rows that one checksum covers
PART = 500  # rows; a page that differs is compared again in parts of this size, and only parts that differ are read
MAX_SUSPECTS = 10_000  # employees that may wait for a second check before the next page is compared
SENT_AT_ONCE = 1_000  # rows that are sent again in one transaction
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0  # seconds between two checks of the suspects

# Walk along the keys, also where a table was loaded just now and has no statistics yet.
SESSION = "SET enable_seqscan = off; SET enable_bitmapscan = off; SET jit = off"

# A row as text, the same in all versions and settings: JSON has a date style of its own, and tells NULL from ''.
ROW = f"json_build_array({', '.join(EMPLOYEE_COLUMNS)})::text"
NO_ROW = "null"

RANGE = "emp_id > %(after)s AND emp_id <= %(upto)s"
ROWS = f"SELECT emp_id, {ROW} FROM {SCHEMA}.employees WHERE {RANGE}"
CHECKSUM = f"""
SELECT count(*), encode(sha256(convert_to(string_agg({ROW}, E'\\n' ORDER BY emp_id), 'UTF8')), 'hex')
FROM {SCHEMA}.employees WHERE {RANGE}
"""
BOUND = f"""
SELECT CASE WHEN count(*) < %(size)s THEN %(upto)s ELSE max(emp_id) END
FROM (SELECT emp_id FROM {SCHEMA}.employees WHERE {RANGE} ORDER BY emp_id LIMIT %(size)s) AS first
"""

AT_SOURCE = f"SELECT emp_id, {ROW} FROM {SCHEMA}.employees WHERE emp_id = ANY (%(ids)s::int[])"
AT_DESTINATION = f"""
SELECT emp_id, CASE WHEN employees.emp_id IS NULL THEN '{NO_ROW}' ELSE {ROW} END, coalesce(cdc_id, 0)
FROM unnest(%(ids)s::int[]) AS suspect (emp_id)
    LEFT JOIN {SCHEMA}.employees USING (emp_id) LEFT JOIN {SCHEMA}.cdc_applied USING (emp_id)
"""
# What the log says: the newest change that the destination has yet to apply, and the row as of the one applied last.
LOGGED_SINCE = f"""
SET LOCAL enable_nestloop = off;
SELECT emp_id, coalesce(max(cdc_id) FILTER (WHERE cdc_id > applied), 0),
       max(CASE action WHEN 'DELETE' THEN '{NO_ROW}' ELSE {ROW} END) FILTER (WHERE cdc_id = applied)
FROM unnest(%(ids)s::int[], %(applied)s::bigint[]) AS suspect (emp_id, applied)
    JOIN {SCHEMA}.emp_cdc USING (emp_id)
WHERE cdc_id >= %(lowest)s AND cdc_id >= applied
GROUP BY emp_id
"""
PUBLISHED = f"SELECT last_offset FROM {SCHEMA}.cdc_position"
COUNT = f"SELECT count(*) FROM {SCHEMA}.employees"
APPLIED = f"SELECT coalesce(max(cdc_id), 0) FROM {SCHEMA}.cdc_applied"

# Each of these is one transaction, and none makes writers wait for long: a row that somebody holds is skipped, a lock
# on a table is given up after a fifth of a second. Both are tried again at the next check.
LOG_AGAIN = f"""
SET LOCAL lock_timeout = '200ms';
WITH free AS MATERIALIZED (
    SELECT emp_id FROM {SCHEMA}.employees WHERE emp_id = ANY (%(ids)s::int[])
    ORDER BY emp_id FOR NO KEY UPDATE SKIP LOCKED)
UPDATE {SCHEMA}.employees SET city = employees.city FROM free WHERE employees.emp_id = free.emp_id
RETURNING free.emp_id
"""
# The lock waits for all who write: an INSERT that has yet to commit would be followed, and undone, by our DELETE.
LOG_DELETES = f"""
SET LOCAL lock_timeout = '200ms';
LOCK TABLE {SCHEMA}.employees IN SHARE MODE;
INSERT INTO {SCHEMA}.emp_cdc (emp_id, action)
SELECT emp_id, 'DELETE' FROM unnest(%(ids)s::int[]) AS extra (emp_id)
WHERE NOT EXISTS (SELECT FROM {SCHEMA}.employees WHERE employees.emp_id = extra.emp_id)
RETURNING emp_id
"""
# The lock keeps everybody from drawing an offset between the reading of the sequence and its move.
ADVANCE_SEQUENCE = f"""
SET LOCAL lock_timeout = '200ms';
LOCK TABLE {SCHEMA}.emp_cdc IN SHARE MODE;
SELECT setval('{SCHEMA}.emp_cdc_cdc_id_seq', greatest(last_value, %(applied)s)) FROM {SCHEMA}.emp_cdc_cdc_id_seq
"""


@dataclass(frozen=True)
class Side:
    """One of the two databases."""

    name: str
    url: str
    connection: Connection

    def rows(self, sql: str, **values: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a statement.

        Exits with one line if the server does not answer or refuses. Raises LockNotAvailable when a lock was not to be
        had in time.
        """
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


def find_ranges(sides: tuple[Side, Side], after: int, last: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut the keys from after (exclusive) to last into ranges with at most size rows on either side."""
    while after < last:
        upto = min(side.number(BOUND, after=after, upto=last, size=size) for side in sides)
        yield after, upto
        after = upto


def find_differing(sides: tuple[Side, Side], after: int, upto: int) -> tuple[int, list[int]]:
    """Return how many rows a range of keys has, on the side that has more, and the keys whose rows differ."""
    (ours,), (theirs,) = (side.rows(CHECKSUM, after=after, upto=upto) for side in sides)
    keys: list[int] = []
    if ours != theirs:
        for start, end in find_ranges(sides, after, upto, PART):
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
    sent: bool = False  # again, by a repair


@dataclass
class Comparison:
    """What one run has found so far."""

    sides: tuple[Side, Side]
    repair: bool
    wait: float  # seconds without any progress until the pipeline counts as standing still
    limit: int  # how many differences to keep
    rows: int = 0
    suspects: dict[int, Suspect] = field(default_factory=dict)  # by emp_id
    different: int = 0
    on_their_way: int = 0
    unpublished: int = 0  # of those on their way
    repaired: int = 0
    differences: list[Suspect] = field(default_factory=list)  # at most limit
    back_in_time: bool = False
    not_captured: list[str] = field(default_factory=list)

    def equal(self) -> bool:
        return not (self.different or self.on_their_way or self.back_in_time)

    def count_rows(self) -> int:
        return max(side.number(COUNT) for side in self.sides)

    def run(self, advance: Callable[[int], None], stop: cli.Stop) -> None:
        """Compare all rows; advance(rows) is called for each page.

        Holds no transaction open, and in memory no more than what differs in a few pages.
        """
        for side in self.sides:
            side.rows(SESSION)
        self.check_sequence()
        for after, upto in find_ranges(self.sides, INT4[0] - 1, INT4[1], PAGE):
            rows, keys = find_differing(self.sides, after, upto)
            self.rows += rows
            self.suspects.update((key, Suspect(key)) for key in keys)
            advance(rows)
            self.wait_for_suspects(MAX_SUSPECTS, stop)
            if stop.requested:
                return
        self.wait_for_suspects(0, stop)

    def check_capture(self) -> None:
        """Warn of what the source does not capture: rows that are equal now may not stay so."""
        source = self.sides[0]
        try:
            self.not_captured = capture.gaps(source.connection) + capture.not_captured(source.connection)
        except psycopg2.Error as error:
            cli.fail(explain(source.name, source.url, error))
        if not capture.columns(source.connection, "employees"):
            cli.fail(f"source: {self.not_captured[0]}")
        for line in self.not_captured:
            print(f"source: {line}", file=sys.stderr)

    def check_sequence(self) -> None:
        """See whether the destination has applied log offsets that the source has yet to reach.

        As after a restore of the source: the destination would take new changes for old ones. A repair advances the
        log's sequence past them.
        """
        source, destination = self.sides
        applied = destination.number(APPLIED)  # before the other: what was applied had been drawn
        drawn = source.number(SEQUENCE)
        if applied <= drawn:
            return
        if applied - drawn > MAX_SEQUENCE_JUMP:
            cli.fail(
                f"destination: cdc_applied holds log offset {applied}, which no log reaches; a stray message? Run "
                f"there DELETE FROM {SCHEMA}.cdc_applied WHERE cdc_id > {drawn}; then python verify.py --repair"
            )
        reason = f"the source went back in time: it is at log offset {drawn:,}, the destination at {applied:,}"
        self.back_in_time = True
        if self.repair:
            try:
                source.rows(ADVANCE_SEQUENCE, applied=applied)
                self.back_in_time = False
            except psycopg2.errors.LockNotAvailable:
                reason += "; a long transaction holds emp_cdc"
        advice = "run python verify.py --repair" if self.back_in_time else "new changes go on from there"
        print(f"{reason}; {advice}", file=sys.stderr)

    def wait_for_suspects(self, most: int, stop: cli.Stop) -> None:
        """Look again until at most so many suspects are left.

        When none of them became equal for self.wait seconds, the pipeline stands still. Then they are counted, or in a
        repair first sent again and waited for once more.
        """
        deadline, pause = time.monotonic() + self.wait, FIRST_PAUSE
        while len(self.suspects) > most and not stop.requested:
            before, started = len(self.suspects), time.monotonic()
            last = started > deadline
            self.recheck(last)
            if self.on_their_way:
                self.wait = 0  # no use to wait for others
            if last or len(self.suspects) < before:
                deadline, pause = time.monotonic() + self.wait, FIRST_PAUSE
            if len(self.suspects) > most:
                stop.sleep(max(pause, time.monotonic() - started))
                if pause < LONGEST_PAUSE <= 1.5 * pause:
                    print(f"waiting for changes of {counted(len(self.suspects), 'employee')}", file=sys.stderr)
                pause = min(1.5 * pause, LONGEST_PAUSE)  # also the time between two tries for a lock

    def recheck(self, last: bool) -> None:
        """Look again at all suspects, and clear those that are equal.

        Those for whom nothing is on its way, with last all of them, are counted; in a repair they are sent first.
        """
        self.read_rows()
        self.read_log()
        certain = [suspect for suspect in self.suspects.values() if last or not suspect.awaited]
        published = self.sides[0].number(PUBLISHED)
        sent = set()
        if self.repair:
            sent = self.send([suspect for suspect in certain if not suspect.sent and suspect.awaited <= published])
        for suspect in certain:
            # sent now: wait for it; sent neither now nor before: somebody holds the row, try again
            if suspect.emp_id not in sent and (last or suspect.sent or not self.repair):
                self.count(suspect, published)

    def read_rows(self) -> None:
        """Read the suspects' rows, and clear those that are equal."""
        source, destination = self.sides
        ids = list(self.suspects)
        # The destination first: what it has applied by then, the source shows and has logged when we read it.
        there = destination.rows(AT_DESTINATION, ids=ids)
        here = dict(source.rows(AT_SOURCE, ids=ids))
        for key, row, applied in there:
            suspect = self.suspects[key]
            suspect.source, suspect.destination, suspect.applied = here.get(key, NO_ROW), row, applied
            if suspect.source == suspect.destination:
                self.clear(suspect)

    def read_log(self) -> None:
        """See for whom something is on its way.

        The log is read only for those whose awaited change has come: it has no index by employee, and what came is
        near its end.
        """
        ready = [suspect for suspect in self.suspects.values() if suspect.applied >= suspect.awaited]
        applied = [suspect.applied for suspect in ready]
        ids = [suspect.emp_id for suspect in ready]
        logged = self.sides[0].rows(LOGGED_SINCE, ids=ids, applied=applied, lowest=min(applied)) if ready else []
        changes = {key: (newest, row) for key, newest, row in logged}
        for suspect in ready:
            newest, row = changes.get(suspect.emp_id, (0, None))
            if newest and suspect.awaited and row == suspect.destination:
                self.clear(suspect)  # it changes all the time; what we awaited has come, and left the row as it should
            suspect.awaited = newest

    def clear(self, suspect: Suspect) -> None:
        del self.suspects[suspect.emp_id]
        self.repaired += suspect.sent

    def count(self, suspect: Suspect, published: int) -> None:
        del self.suspects[suspect.emp_id]
        self.different += 1
        self.on_their_way += suspect.awaited > 0
        self.unpublished += suspect.awaited > published
        if len(self.differences) < self.limit:
            self.differences.append(suspect)

    def send(self, suspects: list[Suspect]) -> set[int]:
        """Have the source log the suspects' rows again, as a DELETE those that it lacks. Returns whose it did."""
        sent: set[int] = set()
        for start in range(0, len(suspects), SENT_AT_ONCE):
            some = suspects[start : start + SENT_AT_ONCE]
            for statement, missing in ((LOG_AGAIN, False), (LOG_DELETES, True)):
                if ids := [suspect.emp_id for suspect in some if (suspect.source == NO_ROW) == missing]:
                    with suppress(psycopg2.errors.LockNotAvailable):
                        sent |= {key for (key,) in self.sides[0].rows(statement, ids=ids)}
        for suspect in suspects:
            suspect.sent = suspect.emp_id in sent
            log.debug("%s employee %d again", "sent" if suspect.sent else "could not send", suspect.emp_id)
        return sent
