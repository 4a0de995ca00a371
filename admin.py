"""Create, delete and look at the topics and the whole pipeline.

python admin.py                               create the topic and the dead-letter topic
python admin.py create --partitions 6         the same with 6 partitions; adds those that an existing topic lacks
python admin.py delete                        delete both topics; asks first
python admin.py status                        one screen: source, log, topic, consumer group, destination
python admin.py status --json                 the same as JSON; --watch redraws it on a terminal
python admin.py status --check                one line for cron: exit 1 if there is something to do; --max-delay 30
python admin.py trace 7                       where the changes of employee 7 are; --json as JSON
python admin.py check                         is the set-up right? One line each; --json as JSON
python admin.py rewind                        read the topic again from its first message, as after a restore
python admin.py rewind --since 2026-11-22     or from the first message since a time
python admin.py dead-letters                  list the dead letters; --json as JSON
python admin.py dead-letters --replay         send them again
python admin.py dead-letters --discard        delete them; asks first
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from datetime import datetime
from typing import Any

import config
from cdc import cli, dead_letters
from cdc.check import report as check
from cdc.kafka import Brokers, make_client, wait_for_login
from cdc.postgres import WrongSetting
from cdc.status import forms as status
from cdc.text import counted
from cdc.topic import (
    committed_offsets,
    group_members,
    offset_bounds,
    offsets_at,
    partition_numbers,
    set_offsets,
    topic_id,
    trusted_offsets,
)
from cdc.trace import screen as trace
from employee import INT4

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic, OffsetSpec  # type: ignore[attr-defined]

PARTITIONS, REPLICATION_FACTOR = 3, 1
MAX_PARTITIONS = 10_000  # that a broker makes at once
DEAD_LETTER_SETTINGS = {
    "retention.ms": "-1",  # kept until somebody looks at them
    "max.message.bytes": "100000000",  # a message as large as the topic takes, and the headers it gets
}
WAIT = 60  # seconds for Kafka to come up, or for a deletion to be done


def wait_for_topics(admin: AdminClient) -> dict[str, Any]:
    """Return the existing topics by name; exits if no broker answers within WAIT seconds."""
    end = time.monotonic() + WAIT
    warned = False
    while True:
        try:
            return dict(admin.list_topics(timeout=2).topics)
        except KafkaException as error:
            down = f"Kafka at {config.KAFKA['bootstrap.servers']} does not answer"
            if time.monotonic() > end:
                cli.fail(f"{down}: {error.args[0].str()}; gave up after {WAIT} s")
            if not warned:
                print(f"{down}; waiting", flush=True)
                warned = True


def create(admin: AdminClient, partitions: int | None, replication: int | None) -> None:
    """Create both topics; add partitions to a topic that has fewer than asked for."""
    existing = wait_for_topics(admin)
    replicas = replication or REPLICATION_FACTOR
    durable = {"min.insync.replicas": "2"} if replicas > 2 else {}
    topics = [
        NewTopic(config.KAFKA_TOPIC, partitions or PARTITIONS, replicas, config=durable),
        NewTopic(config.DEAD_LETTER_TOPIC, 1, replicas, config={**durable, **DEAD_LETTER_SETTINGS}),
    ]
    for topic in topics:
        number = partitions if topic.topic == config.KAFKA_TOPIC else None
        if topic.topic in existing:
            keep_or_extend(admin, topic.topic, existing[topic.topic], number, replication)
        elif wait_until_done(admin.create_topics([topic])):
            print(f"topic {topic.topic} created, {counted(topic.num_partitions, 'partition')}")
        else:
            print(f"topic {topic.topic} exists")


def keep_or_extend(admin: AdminClient, name: str, topic: Any, partitions: int | None, replication: int | None) -> None:
    """Add the partitions that an existing topic lacks. Say what it keeps although something else was asked for."""
    count, replicas = len(topic.partitions), len(topic.partitions[0].replicas)
    if partitions and partitions > count:
        wait_until_done(admin.create_partitions([NewPartitions(name, partitions)]))
        print(f"topic {name}: {counted(partitions, 'partition')}, {count} before")
        return
    kept = ""
    if partitions and partitions < count:
        kept += f"; kept, not reduced to {partitions}: that would delete messages"
    if replication and replication != replicas:
        kept += f"; replication factor {replicas} kept: kafka-reassign-partitions changes it"
    print(f"topic {name} exists, {counted(count, 'partition')}{kept}")


def wait_until_done(futures: dict[str, Any]) -> bool:
    """Wait for Kafka to do something; False if it had been done before. Exits with one line if Kafka refuses."""
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
    wait_for_topics(admin)
    names = [name for name in (config.KAFKA_TOPIC, config.DEAD_LETTER_TOPIC) if partition_numbers(admin, name)]
    if not names:
        print(f"topic {config.KAFKA_TOPIC} does not exist")
        return
    if not sure and not cli.confirm(f"Delete {' and '.join(names)} with all messages, read or not?", "delete"):
        cli.fail("nothing deleted")
    wait_until_done(admin.delete_topics(names))
    end = time.monotonic() + WAIT
    while any(name in wait_for_topics(admin) for name in names):
        if time.monotonic() > end:
            cli.fail(f"Kafka has not deleted {' and '.join(names)} within {WAIT} s; are deletions allowed there?")
        time.sleep(0.1)
    print(f"deleted {' and '.join(names)}")


def rewind(admin: AdminClient, since: int | None) -> None:
    """Let the consumers read the topic again, from its first message or from the first one since a time (Unix, ms).

    What has been applied stops at the gate. The group never moves forward: what it has not read stays unread.
    """
    existing = wait_for_topics(admin)
    numbers = partition_numbers(admin, config.KAFKA_TOPIC)
    if not numbers:
        cli.fail(f"topic {config.KAFKA_TOPIC} does not exist; run python admin.py")
    if group_members(admin):
        cli.fail(f"consumers of group {config.KAFKA_GROUP_ID} are running: stop them first")
    spec = OffsetSpec.earliest() if since is None else OffsetSpec.for_timestamp(since)  # type: ignore[no-untyped-call]
    identity = topic_id(admin)
    bounds = offset_bounds(admin, config.KAFKA_TOPIC, numbers)
    found = offsets_at(admin, config.KAFKA_TOPIC, numbers, spec)  # -1: no message since then
    # Elsewhere the consumer reads from the first message in any case.
    ours = trusted_offsets(committed_offsets(numbers), bounds, identity)
    starts = {number: found[number] for number, offset in ours.items() if 0 <= found[number] < offset}
    if starts:
        set_offsets(admin, starts, identity)
    again = sum(ours[number] - start for number, start in starts.items())
    again += sum(end - first for number, (first, end) in bounds.items() if number not in ours)
    print(f"group {config.KAFKA_GROUP_ID} reads {counted(again, 'message')} of topic {config.KAFKA_TOPIC} again")
    if again and (letters := count_letters_ever(admin, existing)):
        print(f"a message that became a dead letter becomes one again, even if it was discarded: up to {letters:,}")


def count_letters_ever(admin: AdminClient, existing: dict[str, Any]) -> int:
    """Return how many dead letters there have been: those discarded or replayed have left their offsets."""
    if config.DEAD_LETTER_TOPIC not in existing:
        return 0
    bounds = offset_bounds(admin, config.DEAD_LETTER_TOPIC, sorted(existing[config.DEAD_LETTER_TOPIC].partitions))
    return sum(end for _, end in bounds.values())


def parse_arguments() -> argparse.Namespace:
    parser = cli.make_parser(__doc__, verbose="log what the Kafka client says")
    commands = parser.add_subparsers(
        dest="command", metavar="create | delete | status | trace | check | rewind | dead-letters"
    )
    creating = commands.add_parser("create", help="create the topics (also without a command)")
    creating.add_argument("--partitions", type=positive, help=f"default {PARTITIONS}")
    creating.add_argument("--replication-factor", type=positive, help=f"default {REPLICATION_FACTOR}")
    deleting = commands.add_parser("delete", help="delete both topics")
    deleting.add_argument("--yes", action="store_true", help="do not ask")
    showing = commands.add_parser("status", help="show where every change is")
    status.add_options(showing)
    tracing = commands.add_parser("trace", help="show where the changes of one employee are")
    tracing.add_argument("emp_id", type=employee_id, metavar="EMP_ID")
    tracing.add_argument("--json", action="store_true", help="as JSON")
    checking = commands.add_parser("check", help="is the set-up right?")
    checking.add_argument("--json", action="store_true", help="as JSON")
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
    digits = text.isascii() and text.isdigit() and len(text) <= len(str(MAX_PARTITIONS))
    if not (digits and 0 < int(text) <= MAX_PARTITIONS):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {MAX_PARTITIONS}")
    return int(text)


def employee_id(text: str) -> int:
    if not (re.fullmatch(r"-?[0-9]{1,10}", text) and INT4[0] <= int(text) <= INT4[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not an emp_id: give a whole number from {INT4[0]} to {INT4[1]}")
    return int(text)


def moment(text: str) -> int:
    """Return a time as Kafka has it, in milliseconds."""
    try:
        seconds = datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 2026-11-22T18:30") from None
    if not 0 <= seconds <= time.time():
        raise argparse.ArgumentTypeError(f"{text!r} is not between 1970 and now; leave it out to read the whole topic")
    return int(seconds * 1000)


@cli.script
def main() -> None:
    arguments = parse_arguments()
    cli.start_logging(arguments.verbose)
    try:
        brokers = Brokers()
        admin = make_client(AdminClient, {}, brokers)
        if arguments.command != "check":  # which reports itself what is wrong
            wait_for_login(admin, brokers)
        if arguments.command == "delete":
            delete(admin, arguments.yes)
        elif arguments.command == "dead-letters":
            dead_letters.run(admin, brokers, arguments.action, arguments.yes)
        elif arguments.command == "rewind":
            rewind(admin, arguments.since)
        elif arguments.command == "status":
            sys.exit(status.run(admin, arguments))
        elif arguments.command == "check":
            sys.exit(check.run(admin, brokers, arguments.json))
        elif arguments.command == "trace":
            sys.exit(trace.run(admin, arguments.emp_id, arguments.json))
        else:
            create(admin, getattr(arguments, "partitions", None), getattr(arguments, "replication_factor", None))
    except WrongSetting as error:
        cli.fail(str(error), cli.WRONG_USE)
    except KafkaException as error:
        cli.fail(f"Kafka at {config.KAFKA['bootstrap.servers']}: {error.args[0].str()}")
    except KeyboardInterrupt:
        cli.fail("stopped")


if __name__ == "__main__":
    main()
