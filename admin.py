"""Create, delete and look at the topics and the whole pipeline.

python admin.py                               create the topic and the dead-letter topic
python admin.py create --partitions 6         the same with 6 partitions; adds those that an existing topic lacks
python admin.py delete                        delete both topics; asks first
python admin.py status                        one screen: source, log, topic, consumer group, destination
python admin.py status --json                 the same as JSON
python admin.py dead-letters                  list the dead letters; --json as JSON
python admin.py dead-letters --replay         send them again
python admin.py dead-letters --discard        delete them; asks first
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import psycopg2
from confluent_kafka import (
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic, OffsetSpec  # type: ignore[attr-defined]
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import cli
import config
import dead_letters
from connection import Kafka, WrongSetting, connect, explain, kafka_client

PARTITIONS = 3
MOST = 10_000  # partitions that a broker makes at once
DEAD_LETTERS = {
    "retention.ms": "-1",  # kept until somebody looks at them
    "max.message.bytes": "100000000",  # a message as large as the topic takes, and the headers it gets
}
WAIT = 60  # seconds for Kafka to come up, or for a deletion to be done
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
PRODUCERS = """
SELECT format('pid %s at %s', pid, coalesce(host(client_addr), 'local'))
FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND classid = 6513763 AND objid = 1
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


def wait_for_kafka(admin: AdminClient) -> dict[str, Any]:
    """Return the topics that are there; exits if no broker answers within WAIT seconds."""
    end = time.monotonic() + WAIT
    said = False
    while True:
        try:
            return dict(admin.list_topics(timeout=2).topics)
        except KafkaException as error:
            away = f"Kafka at {config.KAFKA['bootstrap.servers']} does not answer"
            if time.monotonic() > end:
                cli.fail(f"{away}: {error.args[0].str()}; gave up after {WAIT} s")
            if not said:
                print(f"{away}; waiting", flush=True)
                said = True


def create(admin: AdminClient, partitions: int | None, replication: int) -> None:
    """Create both topics; add partitions to a topic that has fewer than asked for."""
    there = wait_for_kafka(admin)
    durable = {"min.insync.replicas": "2"} if replication > 2 else {}
    wanted = [
        NewTopic(config.KAFKA_TOPIC, partitions or PARTITIONS, replication, config=durable),
        NewTopic(config.DEAD_LETTER_TOPIC, 1, replication, config={**durable, **DEAD_LETTERS}),
    ]
    for topic in wanted:
        if topic.topic in there:
            count = len(there[topic.topic].partitions)
            if topic.topic == config.KAFKA_TOPIC and partitions and partitions > count:
                done(admin.create_partitions([NewPartitions(topic.topic, partitions)]))
                print(f"topic {topic.topic}: {partitions} partitions, {count} before")
            else:
                print(f"topic {topic.topic} exists, {counted(count)}")
        elif done(admin.create_topics([topic])):
            print(f"topic {topic.topic} created, {counted(topic.num_partitions)}")
        else:
            print(f"topic {topic.topic} exists")


def counted(partitions: int) -> str:
    return f"{partitions} partition" + ("s" if partitions != 1 else "")


def done(futures: dict[str, Any]) -> bool:
    """Wait for what Kafka was asked to do; False if it had been done before. Exits with one line if Kafka refuses."""
    for name, future in futures.items():
        try:
            future.result(timeout=WAIT)
        except KafkaException as error:
            if error.args[0].code() in (KafkaError.TOPIC_ALREADY_EXISTS, KafkaError.UNKNOWN_TOPIC_OR_PART):
                return False
            cli.fail(f"topic {name}: {error.args[0].str()}")
    return True


def delete(admin: AdminClient, sure: bool) -> None:
    """Delete both topics, and return when they are gone."""
    there = wait_for_kafka(admin)
    names = [name for name in (config.KAFKA_TOPIC, config.DEAD_LETTER_TOPIC) if name in there]
    if not names:
        print(f"topic {config.KAFKA_TOPIC} does not exist")
        return
    if not sure:
        if not sys.stdin.isatty():
            cli.fail("delete asks first; without a terminal give --yes", cli.WRONG_USE)
        try:
            answer = input(f"Delete {' and '.join(names)} with all messages, read or not? [y/N] ")
        except (EOFError, KeyboardInterrupt):
            answer = ""
            print()
        if answer.strip().lower() not in ("y", "yes"):
            cli.fail("nothing deleted")
    done(admin.delete_topics(names))
    end = time.monotonic() + WAIT
    while any(name in wait_for_kafka(admin) for name in names):
        if time.monotonic() > end:
            cli.fail(f"Kafka has not deleted {' and '.join(names)} within {WAIT} s; are deletions allowed there?")
        time.sleep(0.1)
    print(f"deleted {' and '.join(names)}")


def source_status() -> dict[str, Any]:
    with closing(connect("source", config.SOURCE_DATABASE_URL)) as source, source.cursor() as cursor:
        cursor.execute("SELECT (SELECT count(*) FROM employees), (SELECT coalesce(max(cdc_id), 0) FROM emp_cdc)")
        ((rows, head),) = cursor.fetchall()
        cursor.execute(UNPUBLISHED)
        position = cursor.fetchone()
        if position is None:
            raise LookupError("source: cdc_position is empty; run python db_setup.py")
        published, unpublished, age = position
        cursor.execute(PRODUCERS)
        producers = [producer for (producer,) in cursor.fetchall()]
    return {
        "rows": rows,
        "log_head": head,
        "published_offset": published,
        "unpublished": unpublished,
        "oldest_unpublished_seconds": round(age, 1),
        "active_producer": producers[0] if producers else None,
    }


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
    bounds = []
    for spec in (OffsetSpec.earliest(), OffsetSpec.latest()):  # type: ignore[no-untyped-call]
        asked = admin.list_offsets(
            {TopicPartition(topic, number): spec for number in numbers},
            isolation_level=IsolationLevel.READ_UNCOMMITTED,
            request_timeout=STATUS_WAIT,
        )
        bounds.append({part.partition: future.result().offset for part, future in asked.items()})
    first, last = bounds
    return {number: (first[number], last[number]) for number in numbers}


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
            table.add_row("not answering", f"[red]{escape(stage['error'])}[/red]")
    if "error" not in source:
        table.add_row("source rows", f"{source['rows']:,}")
        table.add_row("log head", f"offset {source['log_head']:,}")
        table.add_row("published", f"offset {source['published_offset']:,}")
        table.add_row(
            "unpublished",
            f"{source['unpublished']:,}"
            + (f", the oldest for {source['oldest_unpublished_seconds']} s" if source["unpublished"] else ""),
        )
        table.add_row("active producer", source["active_producer"] or "[yellow]none; start python producer.py[/yellow]")
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


def arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    commands = parser.add_subparsers(dest="command", metavar="create | delete | status | dead-letters")
    creating = commands.add_parser("create", help="create the topics (also without a command)")
    creating.add_argument("--partitions", type=positive, help=f"default {PARTITIONS}")
    creating.add_argument("--replication-factor", type=positive, default=1, help="default 1")
    deleting = commands.add_parser("delete", help="delete both topics")
    deleting.add_argument("--yes", action="store_true", help="do not ask")
    showing = commands.add_parser("status", help="show where every change is")
    showing.add_argument("--json", action="store_true", help="as JSON")
    letters = commands.add_parser("dead-letters", help="list what could not be applied, send it again, or delete it")
    action = letters.add_mutually_exclusive_group()
    for name, meaning in (
        ("json", "list as JSON"),
        ("replay", "send all of them to the topic again; what still cannot be applied comes back"),
        ("discard", "delete all of them; asks first"),
    ):
        action.add_argument(f"--{name}", action="store_const", dest="action", const=name, help=meaning)
    letters.add_argument("--yes", action="store_true", help="do not ask")
    return parser.parse_args()


def positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MOST)) and 0 < int(text) <= MOST):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {MOST}")
    return int(text)


def main() -> None:
    asked = arguments()
    cli.start_logging(asked.verbose)
    try:
        kafka = Kafka()
        admin = kafka_client(AdminClient, {}, kafka)
        if asked.command == "delete":
            delete(admin, asked.yes)
        elif asked.command == "dead-letters":
            dead_letters.run(admin, kafka, asked.action, asked.yes)
        elif asked.command == "status":
            found = status(admin)
            if asked.json:
                print(json.dumps(found, indent=2))
            else:
                show(found, Console())
            sys.exit(cli.FAILED if any("error" in found[stage] for stage in ("source", "kafka", "destination")) else 0)
        else:
            create(admin, getattr(asked, "partitions", None), getattr(asked, "replication_factor", 1))
    except WrongSetting as error:
        cli.fail(str(error), cli.WRONG_USE)
    except KeyboardInterrupt:
        cli.fail("stopped")


if __name__ == "__main__":
    main()
