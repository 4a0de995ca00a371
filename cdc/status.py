"""The figures of `admin.py status`: where every change is, stage by stage."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from typing import Any

import config
from cdc import capture, cli, verified
from cdc.kafka import Brokers
from cdc.postgres import connect, explain
from cdc.topic import (
    Member,
    committed_offsets,
    group_members,
    offset_bounds,
    partition_numbers,
    topic_id,
    trusted_offsets,
    without_messages,
)
from cdc.waiting import waiter
from cdc.wakeup import Holder, lock_holders, name_strangers
from config import SCHEMA

import psycopg2
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from rich.console import Console
from rich.markup import escape
from rich.table import Table

STATEMENT_WAIT = 3.0  # seconds for a statement that waits, as for a lock; those that work may take longer

COUNT_EMPLOYEES = f"SELECT count(*) FROM {SCHEMA}.employees"
LOG_HEAD = f"SELECT coalesce(max(cdc_id), 0) FROM {SCHEMA}.emp_cdc"
UNPUBLISHED = f"""
SELECT last_offset, count(cdc_id), coalesce(extract(epoch FROM clock_timestamp() - min(changed_at)), 0)::float
FROM {SCHEMA}.cdc_position LEFT JOIN LATERAL (
    SELECT cdc_id, changed_at FROM {SCHEMA}.emp_cdc WHERE cdc_id > last_offset
    UNION ALL
    SELECT cdc_id, changed_at FROM {SCHEMA}.emp_cdc
    WHERE (txid >= pg_snapshot_xmax(snapshot) OR txid = ANY (ARRAY (SELECT pg_snapshot_xip(snapshot))))
      AND cdc_id + 0 <= last_offset
) AS unpublished ON true
GROUP BY last_offset
"""


def run(admin: AdminClient, as_json: bool) -> int:
    """Print the status; returns the exit code."""
    status = collect(admin)
    if as_json:
        print(json.dumps(status, indent=2))
    else:
        print_table(status, Console())
    failed = any("error" in status[stage] for stage in ("source", "kafka", "destination"))
    return cli.FAILED if failed else cli.DONE


def collect(admin: AdminClient) -> dict[str, Any]:
    """Follow a change through all stages. A stage that does not answer has an "error" instead of its figures."""
    stages: dict[str, Callable[[], dict[str, Any]]] = {
        "source": source_status,
        "kafka": lambda: topic_status(admin),
        "destination": destination_status,
    }
    status: dict[str, Any] = {}
    waiter.limit = STATEMENT_WAIT
    for stage, figures in stages.items():
        try:
            status[stage] = figures()
        except psycopg2.Error as error:
            url = config.SOURCE_DATABASE_URL if stage == "source" else config.DESTINATION_DATABASE_URL
            status[stage] = {"error": explain(stage, url, error)}
        except KafkaException as error:
            status[stage] = {"error": f"Kafka at {config.KAFKA['bootstrap.servers']}: {error.args[0].str()}"}
        except LookupError as error:
            status[stage] = {"error": str(error)}
    status["in_sync"] = (
        not any("error" in status[stage] for stage in stages)
        and not status["source"]["capture_gaps"]
        and status["source"]["unpublished"] == 0
        and sum(partition["lag"] for partition in status["kafka"]["partitions"]) == 0
        and not status["kafka"]["strangers"]
        and status["kafka"]["dead_letters"] == 0
        and status["source"]["rows"] == status["destination"]["rows"]
    )
    return status


def source_status() -> dict[str, Any]:
    with closing(connect("source", config.SOURCE_DATABASE_URL)) as source, source.cursor() as cursor:
        gaps, not_captured = capture.gaps(source), capture.not_captured(source)
        try:
            cursor.execute(COUNT_EMPLOYEES)
        except psycopg2.errors.UndefinedTable:
            raise LookupError(f"source: {gaps[0]}") from None
        ((rows,),) = cursor.fetchall()
        cursor.execute(LOG_HEAD)
        ((log_head,),) = cursor.fetchall()
        cursor.execute(UNPUBLISHED)
        position = cursor.fetchone()
        if position is None:
            raise LookupError("source: cdc_position is empty; run python db_setup.py")
        published, unpublished, age = position
        holders = lock_holders(source)
    return {
        "rows": rows,
        "log_head": log_head,
        "published_offset": published,
        "unpublished": unpublished,
        "oldest_unpublished_seconds": round(age, 1),
        **producer_status(holders),
        "capture_gaps": gaps,
        "columns_not_captured": not_captured,
    }


def producer_status(holders: list[Holder]) -> dict[str, Any]:
    """Return the active producer, or the strangers who hold its lock: any role that may connect can."""
    active = None
    for holder in holders:
        if holder.is_producer:  # its address is for roles with pg_read_all_stats to see
            active = f"pid {holder.pid} at {holder.address}" if holder.address else f"pid {holder.pid}"
    return {"active_producer": active, "producer_lock_held_by": name_strangers(holders) or None}


def topic_status(admin: AdminClient) -> dict[str, Any]:
    """Return the partitions of the topic with the lag of each, the group's members, and the number of dead letters."""
    numbers = partition_numbers(admin, config.KAFKA_TOPIC)
    if not numbers:
        raise LookupError(f"topic {config.KAFKA_TOPIC} does not exist; run python admin.py")
    bounds = offset_bounds(admin, config.KAFKA_TOPIC, numbers)
    members = group_members(admin)  # first: without the right to see the group, the next call only waits
    committed, identity = committed_offsets(numbers), topic_id(admin)
    foreign = [number for number, part in committed.items() if part.metadata != identity]
    trusted = trusted_offsets(committed, bounds, identity)
    reads_on = {number: max(trusted.get(number, first), first) for number, (first, _) in bounds.items()}
    lags = {number: bounds[number][1] - start for number, start in reads_on.items()}
    if unread := {number: reads_on[number] for number, lag in lags.items() if lag}:
        lags |= dict.fromkeys(without_messages(Brokers(), unread), 0)
    readers = {number: member.name for member in members for number in member.partitions}
    partitions = [
        {
            "partition": number,
            "first_offset": first,
            "end_offset": end,
            "committed_offset": committed[number].offset if number in committed else None,
            "lag": lags[number],
            "member": readers.get(number),
        }
        for number, (first, end) in bounds.items()
    ]
    return {
        "partitions": partitions,
        "members": sorted({member.name for member in members}),
        "strangers": name_foreign(members, foreign),
        "dead_letters": count_dead_letters(admin),
    }


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


def destination_status() -> dict[str, Any]:
    with (
        closing(connect("destination", config.DESTINATION_DATABASE_URL)) as destination,
        destination.cursor() as cursor,
    ):
        cursor.execute(COUNT_EMPLOYEES)
        ((rows,),) = cursor.fetchall()
        equal, reason = verified.load(destination)
    found = {"rows": equal[0], "seconds_ago": round(equal[1])} if equal else None
    return {"rows": rows, "last_found_equal": found, "comparison_unknown": reason or None}


def print_table(status: dict[str, Any], console: Console) -> None:
    table = Table(title="Employee CDC", title_justify="left", show_header=False)
    source, kafka, destination = status["source"], status["kafka"], status["destination"]
    for stage in (source, kafka, destination):
        if "error" in stage:
            table.add_row("error", f"[red]{escape(stage['error'])}[/red]")
    if "error" not in source:
        add_source(table, source)
    if "error" not in kafka:
        add_kafka(table, kafka)
    if "error" not in destination:
        table.add_row("destination rows", f"{destination['rows']:,}{rows_differ(status)}")
        table.add_row("last comparison", last_comparison(destination))
    table.add_row("in sync", "[green]yes[/green]" if status["in_sync"] else "[red]no[/red]")
    console.print(table)


def add_source(table: Table, source: dict[str, Any]) -> None:
    age = f", the oldest for {source['oldest_unpublished_seconds']} s" if source["unpublished"] else ""
    stranger = source["producer_lock_held_by"]
    reason = f"the producer lock is held by {escape(stranger)}" if stranger else "start python producer.py"
    table.add_row("source rows", f"{source['rows']:,}")
    for line in source["capture_gaps"]:
        table.add_row("capture", f"[red]{escape(line)}[/red]")
    for line in source["columns_not_captured"]:
        table.add_row("capture", f"[yellow]{escape(line)}[/yellow]")
    table.add_row("log head", f"log offset {source['log_head']:,}")
    table.add_row("published", f"log offset {source['published_offset']:,}")
    table.add_row("unpublished", f"{source['unpublished']:,}{age}")
    table.add_row("active producer", source["active_producer"] or f"[yellow]none; {reason}[/yellow]")


def add_kafka(table: Table, kafka: dict[str, Any]) -> None:
    for partition in kafka["partitions"]:
        count = partition["end_offset"] - partition["first_offset"]
        member = partition["member"] or "[yellow]no consumer[/yellow]"
        table.add_row(f"partition {partition['partition']}", f"{count:,} messages, lag {partition['lag']:,}, {member}")
    members = len(kafka["members"])
    table.add_row(
        "consumer group",
        f"{config.KAFKA_GROUP_ID}, {members} member{'' if members == 1 else 's'}"
        + ("" if members else "[yellow]; start python consumer.py[/yellow]"),
    )
    for line in kafka["strangers"]:
        table.add_row("consumer group", f"[red]{escape(line)}[/red]")
    letters = kafka["dead_letters"]
    table.add_row("dead letters", f"[red]{letters:,}; python admin.py dead-letters[/red]" if letters else "0")


def rows_differ(status: dict[str, Any]) -> str:
    """Return what to do if the numbers of rows differ and nothing is on its way."""
    source, kafka, destination = status["source"], status["kafka"], status["destination"]
    if "error" in source or "error" in kafka or source["unpublished"]:
        return ""
    lag = sum(partition["lag"] for partition in kafka["partitions"])
    return "" if lag or source["rows"] == destination["rows"] else "[red]; run python verify.py --repair[/red]"


def last_comparison(destination: dict[str, Any]) -> str:
    found = destination["last_found_equal"]
    if destination["comparison_unknown"]:
        return f"[yellow]not known: {destination['comparison_unknown']}[/yellow]"
    if found is None:
        return "[yellow]none was equal; run python verify.py[/yellow]"
    return f"{found['rows']:,} rows equal, {in_words(found['seconds_ago'])} ago"


def in_words(seconds: int) -> str:
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size:,} {unit}"
    return f"{seconds} s"
