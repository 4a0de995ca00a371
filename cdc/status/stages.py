"""The figures of `admin.py status`, stage by stage: the source with its log, Kafka, the destination."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import config
from cdc import capture, verified
from cdc.postgres import address
from cdc.schema import find_version
from cdc.status.holders import advisory_locks, open_transactions
from cdc.status.lateness import Sample, take_sample
from cdc.topic import (
    Member,
    committed_offsets,
    count_brokers,
    describe_topic,
    group_members,
    offset_bounds,
    partition_numbers,
    trusted_offsets,
)
from cdc.wakeup import Holder, lock_holders, name_strangers
from config import SCHEMA

import psycopg2
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from psycopg2.extensions import connection as Connection

COUNT_WAIT = "1500ms"  # for counting employees; more of them are estimated
COUNT_SHARE = 20  # a count is used again for so many times as long as it took
COUNTED = 1_000_000  # unpublished rows; of more there is an estimate

WAIT_FOR_EMPLOYEES = f"SELECT FROM {SCHEMA}.employees LIMIT 0"  # waits for a lock, and then costs nothing
COUNT_EMPLOYEES = f"SELECT count(*) FROM {SCHEMA}.employees"
ESTIMATE_EMPLOYEES = (
    f"SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = to_regclass('{SCHEMA}.employees')"
)
LOG_HEAD = f"""
SELECT cdc_id, extract(epoch FROM clock_timestamp() - changed_at)::float
FROM {SCHEMA}.emp_cdc ORDER BY cdc_id DESC LIMIT 1
"""
UNPUBLISHED = f"""
SELECT last_offset, extract(epoch FROM clock_timestamp() - saved_at)::float,
       count(cdc_id), coalesce(extract(epoch FROM clock_timestamp() - min(changed_at)), 0)::float
FROM {SCHEMA}.cdc_position LEFT JOIN LATERAL (
    (SELECT cdc_id, changed_at FROM {SCHEMA}.emp_cdc WHERE cdc_id > last_offset ORDER BY cdc_id LIMIT {COUNTED})
    UNION ALL
    SELECT cdc_id, changed_at FROM {SCHEMA}.emp_cdc
    WHERE (txid >= pg_snapshot_xmax(snapshot) OR txid = ANY (ARRAY (SELECT pg_snapshot_xip(snapshot))))
      AND cdc_id + 0 <= last_offset
) AS unpublished ON true
GROUP BY last_offset, saved_at
"""
QUIET = "SELECT extract(epoch FROM clock_timestamp() - state_change)::float FROM pg_stat_activity WHERE pid = %(pid)s"


@dataclass
class Counter:
    """Counts employees, or asks PostgreSQL for its estimate where that takes too long."""

    rows: int = 0
    estimated: bool = False
    until: float = 0.0  # the count is used again until then (time.monotonic)

    def count(self, connection: Connection) -> dict[str, Any]:
        with connection.cursor() as cursor:
            cursor.execute(WAIT_FOR_EMPLOYEES)
            started = time.monotonic()
            if started >= self.until:
                self.count_now(cursor)
                self.until = time.monotonic() + COUNT_SHARE * (time.monotonic() - started)
        return {"rows": self.rows, "rows_estimated": self.estimated}

    def count_now(self, cursor: Any) -> None:
        cursor.execute("SELECT set_config('statement_timeout', %(wait)s, false)", {"wait": COUNT_WAIT})
        try:
            cursor.execute(COUNT_EMPLOYEES)
            self.estimated = False
        except psycopg2.errors.QueryCanceled:
            cursor.execute(ESTIMATE_EMPLOYEES)
            self.estimated = True
        ((self.rows,),) = cursor.fetchall()
        cursor.execute("SET statement_timeout = 0")


def source_figures(source: Connection, counter: Counter) -> dict[str, Any]:
    gaps = capture.gaps(source)
    try:
        rows = counter.count(source)
    except psycopg2.errors.UndefinedTable:
        raise LookupError(f"source: {gaps[0]}") from None
    with source.cursor() as cursor:
        cursor.execute(LOG_HEAD)
        head, changed = cursor.fetchone() or (0, None)
        cursor.execute(UNPUBLISHED)
        position = cursor.fetchone()
        if position is None:
            raise LookupError("source: cdc_position is empty; run python db_setup.py")
    published, saved, unpublished, age = position
    return {
        "address": address(config.SOURCE_DATABASE_URL),
        "schema_version": find_version(source, "source"),
        **rows,
        "log_head": head,
        "last_change_seconds": tenths(changed),
        "published_offset": published,
        "saved_seconds": tenths(saved),
        "unpublished": max(unpublished, head - published) if unpublished >= COUNTED else unpublished,
        "oldest_unpublished_seconds": tenths(age),
        **producer_figures(source),
        "advisory_locks": advisory_locks(source),
        "open_transactions": open_transactions(source),
        "capture_gaps": gaps,
        "columns_not_captured": capture.not_captured(source),
    }


def producer_figures(source: Connection) -> dict[str, Any]:
    """Return the active producer, or the strangers who hold its lock: any role that may connect can."""
    holders = lock_holders(source)
    active = next((holder for holder in holders if holder.is_producer), None)
    quiet = None
    if active:
        with source.cursor() as cursor:
            cursor.execute(QUIET, {"pid": active.pid})
            quiet = next((row[0] for row in cursor.fetchall()), None)
    return {
        "active_producer": name_session(active) if active else None,
        "active_producer_script": active.script or None if active else None,
        "producer_quiet_seconds": tenths(quiet),
        "producer_lock_held_by": name_strangers(holders) or None,
    }


def name_session(producer: Holder) -> str:
    """Name the producer's session; its address is for roles with pg_read_all_stats to see."""
    return f"pid {producer.pid} at {producer.address}" if producer.address else f"pid {producer.pid}"


def tenths(seconds: float | None) -> float | None:
    return None if seconds is None else round(max(seconds, 0.0), 1)


def kafka_figures(admin: AdminClient) -> tuple[dict[str, Any], Sample]:
    """Return the partitions of the topic with the lag of each, the group's members, and the number of dead letters."""
    topic = describe_led_topic(admin)
    identity, numbers = str(topic.topic_id), sorted(partition.id for partition in topic.partitions)
    members = group_members(admin)  # first: without the right to see the group, the next call only waits
    committed = committed_offsets(numbers)
    # After the committed offsets, which move on meanwhile: what is beyond the end looks like a stranger's.
    bounds = offset_bounds(admin, config.KAFKA_TOPIC, numbers)
    foreign = [number for number, part in committed.items() if part.metadata != identity]
    trusted = trusted_offsets(committed, bounds, identity)
    reads_on = {number: max(trusted.get(number, first), first) for number, (first, _) in bounds.items()}
    lags = {number: bounds[number][1] - start for number, start in reads_on.items()}
    sample = take_sample(bounds, {number: reads_on[number] for number, lag in lags.items() if lag}, lags)
    figures = {
        "address": config.KAFKA["bootstrap.servers"],
        "brokers": count_brokers(admin),
        "topic": config.KAFKA_TOPIC,
        "group": config.KAFKA_GROUP_ID,
        "partitions": partition_figures(topic, bounds, committed, lags, members),
        "members": sorted({member.name for member in members}),
        "strangers": name_foreign(members, foreign),
        "dead_letters": count_dead_letters(admin),
    }
    return figures, sample


def describe_led_topic(admin: AdminClient) -> Any:
    """Return the topic. Raises LookupError, with what to do, where there is none, or no broker leads a partition."""
    topic = describe_topic(admin, config.KAFKA_TOPIC)
    if topic is None:
        raise LookupError(f"topic {config.KAFKA_TOPIC} does not exist; run python admin.py")
    if unled := sorted(part.id for part in topic.partitions if not part.leader or part.leader.id < 0):
        numbers = f"partition{'s' if len(unled) > 1 else ''} {', '.join(map(str, unled))}"
        raise LookupError(f"topic {config.KAFKA_TOPIC}: no broker leads {numbers}; start the brokers that are down")
    return topic


def partition_figures(
    topic: Any,
    bounds: dict[int, tuple[int, int]],
    committed: dict[int, TopicPartition],
    lags: dict[int, int],
    members: list[Member],
) -> list[dict[str, Any]]:
    """Return for each partition where it begins and ends, how far the group is, who reads it and who keeps it."""
    described = {partition.id: partition for partition in topic.partitions}
    readers = {number: member.name for member in members for number in member.partitions}
    return [
        {
            "partition": number,
            "first_offset": first,
            "end_offset": end,
            "committed_offset": committed[number].offset if number in committed else None,
            "lag": lags[number],
            "member": readers.get(number),
            "leader": described[number].leader.id,
            "replicas": sorted(node.id for node in described[number].replicas),
            "in_sync_replicas": sorted(node.id for node in described[number].isr),
        }
        for number, (first, end) in bounds.items()
    ]


def name_foreign(members: list[Member], partitions: list[int]) -> list[str]:
    """Return a line for each other program that is, or was, in the consumer group."""
    lines = [f"{member.name} is a member, and not consumer.py" for member in members if not member.is_ours]
    if partitions:
        lines.append(f"another program has committed offsets, partitions {', '.join(map(str, partitions))}")
    return lines


def count_dead_letters(admin: AdminClient) -> int:
    numbers = partition_numbers(admin, config.DEAD_LETTER_TOPIC)
    bounds = offset_bounds(admin, config.DEAD_LETTER_TOPIC, numbers) if numbers else {}
    return sum(end - first for first, end in bounds.values())


def destination_figures(destination: Connection, counter: Counter) -> dict[str, Any]:
    rows = counter.count(destination)
    equal, reason = verified.load(destination)
    found = {"rows": equal[0], "seconds_ago": round(equal[1])} if equal else None
    return {
        "address": address(config.DESTINATION_DATABASE_URL),
        "schema_version": find_version(destination, "destination"),
        **rows,
        "last_found_equal": found,
        "comparison_unknown": reason or None,
    }
