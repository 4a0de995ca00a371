"""Where one employee's changes are: its rows, the log, the topic, the gate, its dead letters.

The sides are read in the order in which a change passes them, each in one snapshot. So a change that moves meanwhile is
found twice, and never nowhere.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any

import config
from cdc import cli
from cdc.comparison import ROW
from cdc.dead_letters import ERROR, decode, timestamp
from cdc.kafka import Brokers
from cdc.message import read
from cdc.postgres import connect, explain
from cdc.text import escape
from cdc.topic import (
    committed_offsets,
    group_members,
    offset_bounds,
    partition_numbers,
    topic_id,
    trusted_offsets,
)
from cdc.trace.search import partition_of, search
from cdc.waiting import waiter
from cdc.wakeup import lock_holders, name_strangers
from config import SCHEMA
from employee import EMPLOYEE_COLUMNS

import psycopg2
from confluent_kafka import KafkaException, Message
from confluent_kafka.admin import AdminClient

LAST = 5  # changes, messages and dead letters that are shown
STATEMENT_WAIT = 3.0  # seconds for a statement that waits, as for a lock
SLOW = 2.0  # seconds after which an error is not kept for the end: the next server may be as slow
LOOK_AGAIN = 0.3  # seconds before rows that differ are looked at again

# One statement, so one snapshot: the position, the row, and the last changes, at least one line.
SOURCE = f"""
SELECT position.last_offset, (SELECT {ROW} FROM {SCHEMA}.employees WHERE emp_id = %(emp_id)s),
       change.cdc_id, change.action, change.changed_at, change.txid::text,
       change.cdc_id <= position.last_offset AND pg_visible_in_snapshot(change.txid, position.snapshot)
FROM (SELECT) AS one
    LEFT JOIN {SCHEMA}.cdc_position AS position ON true
    LEFT JOIN LATERAL (
        SELECT cdc_id, action, changed_at, txid FROM {SCHEMA}.emp_cdc WHERE emp_id = %(emp_id)s
        ORDER BY cdc_id DESC LIMIT %(last)s) AS change ON true
ORDER BY change.cdc_id DESC
"""
DESTINATION = f"""
SELECT (SELECT {ROW} FROM {SCHEMA}.employees WHERE emp_id = %(emp_id)s),
       (SELECT cdc_id FROM {SCHEMA}.cdc_applied WHERE emp_id = %(emp_id)s)
"""

Row = dict[str, Any]


@dataclass(frozen=True)
class Logged:
    """A change in the log."""

    log_offset: int
    action: str
    changed_at: str
    txid: str
    published: bool


@dataclass(frozen=True)
class Sent:
    """A message in the topic. Without a log offset it is no change, and its action says why."""

    partition: int
    offset: int
    time: str | None
    log_offset: int | None
    action: str
    read: bool  # the consumer group has committed an offset after it


@dataclass(frozen=True)
class Letter:
    """A dead letter."""

    partition: int
    offset: int
    time: str | None
    log_offset: int | None
    action: str
    error: str | None


@dataclass(frozen=True)
class Searched:
    """How much of a partition was searched."""

    partition: int
    first_offset: int
    searched_from: int
    end_offset: int


@dataclass
class Trace:
    """What was found of an employee. The side that does not answer is in errors."""

    emp_id: int
    source: Row | None = None
    log: list[Logged] = field(default_factory=list)  # the newest first
    producer: str = ""  # the active one, or who holds its lock
    partition: int | None = None  # that the employee's key hashes to
    messages: list[Sent] = field(default_factory=list)
    searched: list[Searched] = field(default_factory=list)
    readers: dict[int, str] = field(default_factory=dict)  # the member that has a partition
    read_up_to: dict[int, int] = field(default_factory=dict)  # by partition: where the group goes on
    letters: list[Letter] = field(default_factory=list)
    letters_searched: list[Searched] = field(default_factory=list)
    applied: int | None = None  # the newest change that has passed the gate
    destination: Row | None = None
    errors: dict[str, str] = field(default_factory=dict)

    @property
    def pending(self) -> Logged | Sent | None:
        """The newest change that has not passed the gate: of the log or, where that is pruned, of the topic."""
        changes: list[Logged | Sent] = [*self.log, *(message for message in self.messages if not message.read)]
        newest = max(changes, key=lambda change: change.log_offset or 0, default=None)
        return newest if newest and (newest.log_offset or 0) > (self.applied or 0) else None

    @property
    def differing(self) -> list[str]:
        """The columns in which the rows differ, all of them where one side has no row."""
        here, there = self.source or {}, self.destination or {}
        return [name for name in EMPLOYEE_COLUMNS if here.get(name) != there.get(name) or bool(here) != bool(there)]


def trace(admin: AdminClient, emp_id: int) -> Trace:
    """Look at all sides; again where rows differ and nothing pends, as a change may have come between two looks."""
    waiter.limit = STATEMENT_WAIT
    found = look(admin, emp_id)
    while not found.errors and found.pending is None and found.differing:
        time.sleep(LOOK_AGAIN)
        before, found = found, look(admin, emp_id)
        if (before.source, before.applied, before.destination) == (found.source, found.applied, found.destination):
            break
    return found


def look(admin: AdminClient, emp_id: int) -> Trace:
    found = Trace(emp_id)
    steps: list[tuple[str, Callable[[], None]]] = [
        ("source", lambda: look_at_source(found)),
        ("kafka", lambda: look_at_topics(found, admin)),
        ("destination", lambda: look_at_destination(found)),
        ("kafka", lambda: look_elsewhere(found, admin)),
    ]
    for side, step in steps:
        started = time.monotonic()
        try:
            step()
        except psycopg2.Error as error:
            url = config.SOURCE_DATABASE_URL if side == "source" else config.DESTINATION_DATABASE_URL
            found.errors[side] = explain(side, url, error)
        except KafkaException as error:
            found.errors[side] = f"Kafka at {config.KAFKA['bootstrap.servers']}: {error.args[0].str()}"
        except LookupError as error:
            found.errors[side] = str(error)
        if side in found.errors and time.monotonic() - started > SLOW:
            print(f"{escape(found.errors[side])}; looking at the other sides", file=sys.stderr)
    return found


def look_at_source(found: Trace) -> None:
    with closing(connect("source", config.SOURCE_DATABASE_URL)) as source, source.cursor() as cursor:
        cursor.execute(SOURCE, {"emp_id": found.emp_id, "last": LAST})
        rows = cursor.fetchall()
        holders = lock_holders(source)
    position, row = rows[0][:2]
    if position is None:
        raise LookupError("source: cdc_position is empty; run python db_setup.py")
    found.source = to_row(row)
    for cdc_id, action, changed_at, txid, published in (row[2:] for row in rows):
        if cdc_id is not None:
            when = changed_at.astimezone().isoformat(timespec="milliseconds")
            found.log.append(Logged(cdc_id, action, when, txid, published))
    pids = [holder.pid for holder in holders if holder.is_producer]
    strangers = name_strangers(holders)
    found.producer = f"pid {pids[0]}" if pids else strangers and f"none, its lock is held by {strangers}"


def look_at_destination(found: Trace) -> None:
    with (
        closing(connect("destination", config.DESTINATION_DATABASE_URL)) as destination,
        destination.cursor() as cursor,
    ):
        cursor.execute(DESTINATION, {"emp_id": found.emp_id})
        ((row, found.applied),) = cursor.fetchall()
    found.destination = to_row(row)


def to_row(text: str | None) -> Row | None:
    return None if text is None else dict(zip(EMPLOYEE_COLUMNS, json.loads(text), strict=True))


def look_at_topics(found: Trace, admin: AdminClient) -> None:
    """Find the employee's messages, then its dead letters: a message that was read and not applied is one by then."""
    numbers = partition_numbers(admin, config.KAFKA_TOPIC)
    if not numbers:
        raise LookupError(f"topic {config.KAFKA_TOPIC} does not exist; run python admin.py")
    bounds = offset_bounds(admin, config.KAFKA_TOPIC, numbers)
    found.readers = {number: member.name for member in group_members(admin) for number in member.partitions}
    trusted = trusted_offsets(committed_offsets(numbers), bounds, topic_id(admin))
    found.read_up_to = {number: max(trusted.get(number, first), first) for number, (first, _) in bounds.items()}
    found.partition = partition_of(found.emp_id, numbers)
    add_messages(found, {number: bounds[number] for number in numbers if found.partition in (number, None)})
    numbers = partition_numbers(admin, config.DEAD_LETTER_TOPIC)
    add_letters(found, offset_bounds(admin, config.DEAD_LETTER_TOPIC, numbers) if numbers else {})


def look_elsewhere(found: Trace, admin: AdminClient) -> None:
    """Search the other partitions for a change that hangs: it may be from before the topic had its last partitions."""
    change = found.pending
    if found.errors or change is None or change.log_offset in {sent.log_offset for sent in found.messages}:
        return
    if isinstance(change, Logged) and change.published:
        searched = {part.partition for part in found.searched}
        numbers = [number for number in found.read_up_to if number not in searched]
        add_messages(found, offset_bounds(admin, config.KAFKA_TOPIC, numbers) if numbers else {})


def add_messages(found: Trace, bounds: dict[int, tuple[int, int]]) -> None:
    key = str(found.emp_id).encode()
    for part in search(Brokers(), config.KAFKA_TOPIC, bounds, LAST, lambda message: message.key() == key):
        found.searched.append(Searched(part.partition, part.first, part.searched_from, part.end))
        for message in part.messages[-LAST:]:
            was_read = (message.offset() or 0) < found.read_up_to[part.partition]
            found.messages.append(Sent(*place(message), *describe(message), was_read))


def add_letters(found: Trace, bounds: dict[int, tuple[int, int]]) -> None:
    key = str(found.emp_id).encode()
    for part in search(Brokers(), config.DEAD_LETTER_TOPIC, bounds, LAST, lambda letter: is_of(letter, key)):
        found.letters_searched.append(Searched(part.partition, part.first, part.searched_from, part.end))
        for message in part.messages[-LAST:]:
            headers: Any = dict(message.headers() or ())
            found.letters.append(Letter(*place(message), *describe(message), decode(headers.get(ERROR))))


def is_of(letter: Message, key: bytes) -> bool:
    """Whether a dead letter is of an employee: a stranger may have sent it without a key."""
    if letter.key() is not None:
        return letter.key() == key
    try:
        return str(read(letter.value()).emp_id).encode() == key
    except ValueError:
        return False


def place(message: Message) -> tuple[int, int, str | None]:
    return message.partition() or 0, message.offset() or 0, timestamp(message, "milliseconds")


def describe(message: Message) -> tuple[int | None, str]:
    """Return the log offset and the action of a change, or none and why it is no change."""
    try:
        record = read(message.value())
    except ValueError as error:
        return None, f"no change: {error}"
    return record.cdc_id, record.action


def to_json(found: Trace, state: str, verdict: str) -> str:
    figures = {**asdict(found), "state": state, "in_sync": state == "in sync", "verdict": verdict}
    return json.dumps(figures, indent=2)


def exit_code(found: Trace) -> int:
    return cli.FAILED if found.errors else cli.DONE
