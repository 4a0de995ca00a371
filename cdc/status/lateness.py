"""How old the changes are that have yet to arrive, and how long the last ones took to Kafka and the destination."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from cdc.kafka import Brokers
from cdc.message import Record, read
from cdc.topic import read_messages
from config import SCHEMA

from confluent_kafka import Message
from psycopg2.extensions import connection as Connection

LAST = 20  # messages of each partition that tell the delay

CHANGED = f"""
SELECT cdc_id, extract(epoch FROM changed_at)::float, extract(epoch FROM clock_timestamp() - changed_at)::float
FROM {SCHEMA}.emp_cdc WHERE cdc_id = ANY (%(cdc_ids)s)
"""
# The last change of each employee that the gate has let through. Where the server does not keep the times of commits it
# has no row to ask about: pg_xact_commit_timestamp would raise an error.
APPLIED = f"""
SELECT cdc_id, extract(epoch FROM pg_xact_commit_timestamp(xmin))::float FROM {SCHEMA}.cdc_applied
WHERE emp_id = ANY (%(emp_ids)s) AND cdc_id = ANY (%(cdc_ids)s) AND current_setting('track_commit_timestamp')::bool
"""

Times = dict[int, tuple[float, float]]  # by log offset: when a change was made, in seconds, and how long ago


@dataclass
class Sample:
    """Messages of the topic: the first unread one of each partition, and the last ones."""

    unread: dict[int, Message] = field(default_factory=dict)  # by partition
    last: list[Message] = field(default_factory=list)
    refused: bool = False  # we have no right to read them


def take_sample(bounds: dict[int, tuple[int, int]], unread: dict[int, int], lags: dict[int, int]) -> Sample:
    """Read a sample of the topic; unread: the offsets to read on from, by partition.

    Sets the lag of a partition to 0 where nothing that is unread is a message.
    """
    sample = Sample()
    if unread:
        first = read_messages(Brokers(), unread, 1)
        sample.refused = first is None
        for number, messages in (first or {}).items():
            if messages:
                sample.unread[number] = messages[0]
            else:
                lags[number] = 0
    last = {number: max(first, end - LAST) for number, (first, end) in bounds.items() if end > first}
    if last and not sample.refused:
        found = read_messages(Brokers(), last, LAST)
        sample.refused = found is None
        sample.last = [message for messages in (found or {}).values() for message in messages]
    return sample


def log_times(source: Connection, sample: Sample) -> Times:
    """Return when the changes of a sample were made; not of those pruned."""
    cdc_ids = [log_offset(message) for message in [*sample.unread.values(), *sample.last]]
    with source.cursor() as cursor:
        cursor.execute(CHANGED, {"cdc_ids": cdc_ids})
        return {cdc_id: (made, ago) for cdc_id, made, ago in cursor.fetchall()}


def commit_times(destination: Connection, sample: Sample) -> dict[int, float]:
    """Return when the last changes were committed at the destination, by log offset, as far as it has kept that."""
    records = [record for record in map(parse, sample.last) if record]
    values = {"emp_ids": [record.emp_id for record in records], "cdc_ids": [record.cdc_id for record in records]}
    with destination.cursor() as cursor:
        cursor.execute(APPLIED, values)
        return {cdc_id: at for cdc_id, at in cursor.fetchall() if at is not None}


def add_delays(status: dict[str, Any], sample: Sample, made: Times, committed: dict[int, float]) -> None:
    """Add to the status how old the first unread change of each partition is, and how late the last changes were.

    A change that the log does not have, or no longer, is as old as its message.
    """
    for partition in status["kafka"]["partitions"]:
        age = 0.0 if partition["lag"] == 0 else None
        if first := sample.unread.get(partition["partition"]):
            _, age = made.get(log_offset(first), (0.0, time.time() - sent(first)))
        partition["oldest_unread_seconds"] = None if age is None else round(max(age, 0.0), 1)
    status["to_kafka"] = delays({log_offset(message): sent(message) for message in sample.last}, made)
    status["to_destination"] = delays(committed, made)


def delays(reached: dict[int, float], made: Times) -> dict[str, float] | None:
    """Return how long after they were made changes reached a stage; None where nobody knows of any."""
    took = sorted(max(at - made[offset][0], 0.0) for offset, at in reached.items() if offset in made)
    if not took:
        return None
    middle, slowest = (round(1000 * seconds, 1) for seconds in (median(took), took[-1]))
    return {"changes": len(took), "median_ms": middle, "slowest_ms": slowest}


def oldest_change(status: dict[str, Any]) -> float | None:
    """Return the age of the oldest change that is not at the destination, 0 if there is none, None if nobody knows."""
    if "error" in status["source"] or "error" in status["kafka"]:
        return None
    ages = [partition["oldest_unread_seconds"] for partition in status["kafka"]["partitions"]]
    known = [age for age in ages if age is not None]
    if len(known) < len(ages):
        return None
    return float(max([*known, status["source"]["oldest_unpublished_seconds"]]))


def parse(message: Message) -> Record | None:
    """Return the record in a message, None if it is no change."""
    with suppress(ValueError):
        value = message.value()
        return read(value.encode() if isinstance(value, str) else value)
    return None


def log_offset(message: Message) -> int:
    """Return the log offset of the change in a message; 0 if it is no change."""
    record = parse(message)
    return record.cdc_id if record else 0


def sent(message: Message) -> float:
    """Return when a message was sent, in seconds."""
    return float(message.timestamp()[1]) / 1000
