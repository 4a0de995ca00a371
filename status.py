"""Where every change is: the figures of `python admin.py status`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import psycopg2
from confluent_kafka import ConsumerGroupTopicPartitions, IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import capture
import config
from connection import connect, explain
from producer_lock import Holder, lock_holders, strangers

STATUS_WAIT = 5  # seconds for each answer of a status

UNPUBLISHED = """
SELECT last_offset, count(cdc_id), coalesce(extract(epoch FROM clock_timestamp() - min(changed_at)), 0)::float
FROM cdc_position LEFT JOIN LATERAL (
    SELECT cdc_id, changed_at FROM emp_cdc WHERE cdc_id > last_offset
    UNION ALL
    SELECT cdc_id, changed_at FROM emp_cdc
    WHERE (txid >= pg_snapshot_xmax(snapshot) OR txid = ANY (ARRAY (SELECT pg_snapshot_xip(snapshot))))
      AND cdc_id + 0 <= last_offset
) AS unpublished ON true
GROUP BY last_offset
"""


def source_status() -> dict[str, Any]:
    with closing(connect("source", config.SOURCE_DATABASE_URL)) as source, source.cursor() as cursor:
        cursor.execute("SELECT (SELECT count(*) FROM employees), (SELECT coalesce(max(cdc_id), 0) FROM emp_cdc)")
        ((rows, head),) = cursor.fetchall()
        cursor.execute(UNPUBLISHED)
        position = cursor.fetchone()
        if position is None:
            raise LookupError("source: cdc_position is empty; run python db_setup.py")
        published, unpublished, age = position
        holders = lock_holders(source)
        gaps, not_captured = capture.gaps(source), capture.not_captured(source)
    return {
        "rows": rows,
        "log_head": head,
        "published_offset": published,
        "unpublished": unpublished,
        "oldest_unpublished_seconds": round(age, 1),
        **producer_status(holders),
        "capture_gaps": gaps,
        "columns_not_captured": not_captured,
    }


def producer_status(holders: list[Holder]) -> dict[str, Any]:
    """The active producer, or the strangers who hold its lock: any role that may connect can."""
    active = None
    for holder in holders:
        if holder.is_producer:  # its address is for roles with pg_read_all_stats to see
            active = f"pid {holder.pid} at {holder.address}" if holder.address else f"pid {holder.pid}"
    return {"active_producer": active, "producer_lock_held_by": strangers(holders) or None}


def destination_status() -> dict[str, Any]:
    with (
        closing(connect("destination", config.DESTINATION_DATABASE_URL)) as destination,
        destination.cursor() as cursor,
    ):
        cursor.execute("SELECT count(*) FROM employees")
        return {"rows": cursor.fetchall()[0][0]}


def topic_status(admin: AdminClient) -> dict[str, Any]:
    """The partitions of the topic with the lag of each, the group's members, and the number of dead letters."""
    topics = admin.list_topics(timeout=STATUS_WAIT).topics
    if config.KAFKA_TOPIC not in topics:
        raise LookupError(f"topic {config.KAFKA_TOPIC} does not exist; run python admin.py")
    numbers = sorted(topics[config.KAFKA_TOPIC].partitions)
    ends = offsets(admin, config.KAFKA_TOPIC, numbers)
    committed = committed_offsets(admin, numbers)
    members = group_members(admin)
    partitions = [
        {
            "partition": number,
            "first_offset": first,
            "end_offset": end,
            "committed_offset": committed.get(number),
            "lag": end - max(committed.get(number, first), first),
            "member": members.get(number),
        }
        for number, (first, end) in ends.items()
    ]
    letters = 0
    if config.DEAD_LETTER_TOPIC in topics:
        dead = offsets(admin, config.DEAD_LETTER_TOPIC, sorted(topics[config.DEAD_LETTER_TOPIC].partitions))
        letters = sum(end - first for first, end in dead.values())
    return {"partitions": partitions, "members": sorted(set(members.values())), "dead_letters": letters}


def offsets(admin: AdminClient, topic: str, numbers: list[int]) -> dict[int, tuple[int, int]]:
    """Return the first offset and the one behind the last, by partition."""
    first, last = (
        offsets_at(admin, topic, numbers, spec)
        for spec in (OffsetSpec.earliest(), OffsetSpec.latest())  # type: ignore[no-untyped-call]
    )
    return {number: (first[number], last[number]) for number in numbers}


def offsets_at(admin: AdminClient, topic: str, numbers: list[int], spec: OffsetSpec) -> dict[int, int]:
    """Return the offset that spec asks for, by partition; -1 where there is none."""
    asked = admin.list_offsets(
        {TopicPartition(topic, number): spec for number in numbers},
        isolation_level=IsolationLevel.READ_UNCOMMITTED,
        request_timeout=STATUS_WAIT,
    )
    return {part.partition: future.result().offset for part, future in asked.items()}


def committed_offsets(admin: AdminClient, numbers: list[int]) -> dict[int, int]:
    parts = [TopicPartition(config.KAFKA_TOPIC, number) for number in numbers]
    asked = admin.list_consumer_group_offsets(
        [ConsumerGroupTopicPartitions(config.KAFKA_GROUP_ID, parts)], request_timeout=STATUS_WAIT
    )
    found = asked[config.KAFKA_GROUP_ID].result().topic_partitions
    return {part.partition: part.offset for part in found if part.offset >= 0}


def group_members(admin: AdminClient) -> dict[int, str]:
    """Return the member of the consumer group that reads each partition."""
    asked = admin.describe_consumer_groups([config.KAFKA_GROUP_ID], request_timeout=STATUS_WAIT)
    try:
        members = asked[config.KAFKA_GROUP_ID].result().members
    except KafkaException as error:
        if error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
            return {}
        raise
    return {
        part.partition: f"{member.member_id[-12:]} at {member.host.lstrip('/')}"
        for member in members
        if member.assignment is not None
        for part in member.assignment.topic_partitions
        if part.topic == config.KAFKA_TOPIC
    }


def status(admin: AdminClient) -> dict[str, Any]:
    """Follow a change through all stages. A stage that does not answer has an "error" instead of its figures."""
    stages: dict[str, Callable[[], dict[str, Any]]] = {
        "source": source_status,
        "kafka": lambda: topic_status(admin),
        "destination": destination_status,
    }
    found: dict[str, Any] = {}
    for stage, look in stages.items():
        try:
            found[stage] = look()
        except psycopg2.Error as error:
            url = config.SOURCE_DATABASE_URL if stage == "source" else config.DESTINATION_DATABASE_URL
            found[stage] = {"error": explain(stage, url, error)}
        except KafkaException as error:
            found[stage] = {"error": f"Kafka at {config.KAFKA['bootstrap.servers']}: {error.args[0].str()}"}
        except LookupError as error:
            found[stage] = {"error": str(error)}
    found["in_sync"] = (
        not any("error" in found[stage] for stage in stages)
        and not found["source"]["capture_gaps"]
        and found["source"]["unpublished"] == 0
        and sum(partition["lag"] for partition in found["kafka"]["partitions"]) == 0
        and found["source"]["rows"] == found["destination"]["rows"]
    )
    return found


def show(found: dict[str, Any], console: Console) -> None:
    table = Table(title="Employee CDC", title_justify="left", show_header=False)
    source, kafka, destination = found["source"], found["kafka"], found["destination"]
    for stage in (source, kafka, destination):
        if "error" in stage:
            table.add_row("error", f"[red]{escape(stage['error'])}[/red]")
    if "error" not in source:
        table.add_row("source rows", f"{source['rows']:,}")
        for line in source["capture_gaps"]:
            table.add_row("capture", f"[red]{escape(line)}[/red]")
        for line in source["columns_not_captured"]:
            table.add_row("capture", f"[yellow]{escape(line)}[/yellow]")
        table.add_row("log head", f"offset {source['log_head']:,}")
        table.add_row("published", f"offset {source['published_offset']:,}")
        table.add_row(
            "unpublished",
            f"{source['unpublished']:,}"
            + (f", the oldest for {source['oldest_unpublished_seconds']} s" if source["unpublished"] else ""),
        )
        stranger = source["producer_lock_held_by"]
        reason = f"the producer lock is held by {escape(stranger)}" if stranger else "start python producer.py"
        table.add_row("active producer", source["active_producer"] or f"[yellow]none; {reason}[/yellow]")
    if "error" not in kafka:
        for partition in kafka["partitions"]:
            table.add_row(
                f"partition {partition['partition']}",
                f"{partition['end_offset'] - partition['first_offset']:,} messages, lag {partition['lag']:,}, "
                + (partition["member"] or "[yellow]no consumer[/yellow]"),
            )
        table.add_row(
            "consumer group",
            f"{config.KAFKA_GROUP_ID}, {len(kafka['members'])} members"
            + ("" if kafka["members"] else "[yellow]; start python consumer.py[/yellow]"),
        )
        table.add_row("dead letters", f"{kafka['dead_letters']:,}")
    if "error" not in destination:
        table.add_row("destination rows", f"{destination['rows']:,}")
    table.add_row("in sync", "[green]yes[/green]" if found["in_sync"] else "[red]no[/red]")
    console.print(table)
