"""Create, delete and look at the topics and the whole pipeline.

python admin.py                               create the topic and the dead-letter topic
python admin.py create --partitions 6         the same with 6 partitions; adds those that an existing topic lacks
python admin.py delete                        delete both topics; asks first
python admin.py status                        one screen: source, log, topic, consumer group, destination
python admin.py status --json                 the same as JSON
python admin.py rewind                        read the topic again from its first message, as after a restore
python admin.py rewind --since 2026-11-22     or from the first message since a time
python admin.py dead-letters                  list the dead letters; --json as JSON
python admin.py dead-letters --replay         send them again
python admin.py dead-letters --discard        delete them; asks first
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import datetime
from typing import Any

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic, OffsetSpec  # type: ignore[attr-defined]
from rich.console import Console

import cli
import config
import dead_letters
from connection import Kafka, WrongSetting, kafka_client
from status import group_members, offsets, offsets_at, show, status

PARTITIONS = 3
MOST = 10_000  # partitions that a broker makes at once
DEAD_LETTERS = {
    "retention.ms": "-1",  # kept until somebody looks at them
    "max.message.bytes": "100000000",  # a message as large as the topic takes, and the headers it gets
}
WAIT = 60  # seconds for Kafka to come up, or for a deletion to be done


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


def rewind(admin: AdminClient, since: datetime | None) -> None:
    """Let the consumers read the topic again, from its first message or from the first one since a time. What has been
    applied stops at the gate."""
    there = wait_for_kafka(admin)
    if config.KAFKA_TOPIC not in there:
        cli.fail(f"topic {config.KAFKA_TOPIC} does not exist; run python admin.py")
    if group_members(admin):
        cli.fail(f"consumers of group {config.KAFKA_GROUP_ID} are running: stop them first")
    start = OffsetSpec.for_timestamp(int(since.timestamp() * 1000)) if since else OffsetSpec.earliest()  # type: ignore
    numbers = sorted(there[config.KAFKA_TOPIC].partitions)
    ends = offsets(admin, config.KAFKA_TOPIC, numbers)
    found = offsets_at(admin, config.KAFKA_TOPIC, numbers, start)
    starts = {number: found[number] if found[number] >= 0 else ends[number][1] for number in numbers}
    parts = [TopicPartition(config.KAFKA_TOPIC, number, start) for number, start in starts.items()]
    done(admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(config.KAFKA_GROUP_ID, parts)]))
    count = sum(ends[number][1] - start for number, start in starts.items())
    print(f"group {config.KAFKA_GROUP_ID} reads {count:,} messages of topic {config.KAFKA_TOPIC} again")


def arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    commands = parser.add_subparsers(dest="command", metavar="create | delete | status | rewind | dead-letters")
    creating = commands.add_parser("create", help="create the topics (also without a command)")
    creating.add_argument("--partitions", type=positive, help=f"default {PARTITIONS}")
    creating.add_argument("--replication-factor", type=positive, default=1, help="default 1")
    deleting = commands.add_parser("delete", help="delete both topics")
    deleting.add_argument("--yes", action="store_true", help="do not ask")
    showing = commands.add_parser("status", help="show where every change is")
    showing.add_argument("--json", action="store_true", help="as JSON")
    rewinding = commands.add_parser("rewind", help="let the stopped consumers read the topic again")
    rewinding.add_argument("--since", type=moment, metavar="TIME", help="such as 2026-11-22T18:30; default: all of it")
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


def moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 2026-11-22T18:30") from None


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
        elif asked.command == "rewind":
            rewind(admin, asked.since)
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
