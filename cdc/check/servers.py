"""What `admin.py check` says of the databases and of Kafka."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import config
from cdc import capture
from cdc.check.finding import NOTE, OK, WRONG, Finding
from cdc.kafka import Brokers, advise, wait_for_login
from cdc.postgres import WrongSetting, connect, explain
from cdc.schema import check_version
from cdc.text import counted
from cdc.topic import (
    ANSWER_WAIT,
    committed_offsets,
    describe_topic,
    group_members,
    offset_bounds,
    partition_numbers,
    topic_id,
    trusted_offsets,
)
from config import SCHEMA

import psycopg2
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from psycopg2.extensions import connection as Connection

MAX_CLOCK_DIFFERENCE = 1.0  # seconds
MIN_VERSION = 130_000
NAME = SCHEMA.strip('"')
TABLES = {
    "source": ("employees", "emp_cdc", "cdc_position"),
    "destination": ("employees", "cdc_applied", "cdc_verified"),
}
# Whose rights a role should have, by side, and what it can do with less.
ROLES = {"source": ("cdc_producer", "producer.py"), "destination": ("cdc_consumer", "consumer.py")}
MONITOR = "cdc_monitor"

SERVER = f"""
SELECT current_setting('server_version'), current_setting('server_version_num')::int, current_user::text,
       to_regnamespace('{SCHEMA}') IS NOT NULL, extract(epoch FROM clock_timestamp())::float,
       system_identifier || '/' || (SELECT oid FROM pg_database WHERE datname = current_database())
FROM pg_control_system()
"""
MISSING = f"SELECT name FROM unnest(%(names)s) AS name WHERE to_regclass('{SCHEMA}.' || name) IS NULL"
GRANT = re.compile(r"^GRANT (.+) ON (?:(SEQUENCE|DATABASE|SCHEMA) )?(.+) TO (.+);", re.MULTILINE)
HAS_RIGHT = "SELECT has_{kind}_privilege(%(name)s, %(right)s)"


@dataclass(frozen=True)
class Server:
    """What a database says of itself."""

    version: str
    version_number: int
    role: str
    has_schema: bool
    clock: float  # seconds that it is ahead of this machine's
    identity: str


# The databases


def check_databases() -> Iterator[Finding]:
    """Each by itself, then what takes both."""
    with ExitStack() as stack:
        connections: dict[str, Connection] = {}
        identities = set()
        for side in TABLES:
            url = config.SOURCE_DATABASE_URL if side == "source" else config.DESTINATION_DATABASE_URL
            try:
                connection = stack.enter_context(closing(connect(side, url)))
                server = ask(connection)
                yield from check_database(side, connection, server)
            except psycopg2.Error as error:
                yield Finding(WRONG, side, explain(side, url, error))
            except WrongSetting as error:
                yield Finding(WRONG, side, str(error))
            else:
                connections[side] = connection
                identities.add(server.identity)
        if len(connections) == 2:
            yield from check_both(connections["source"], connections["destination"], len(identities) == 1)


def ask(connection: Connection) -> Server:
    with connection.cursor() as cursor:
        before = time.time()
        cursor.execute(SERVER)
        version, number, role, has_schema, clock, identity = cursor.fetchall()[0]
        middle = (before + time.time()) / 2
    return Server(version, number, role, has_schema, clock - middle, identity)


def check_database(side: str, connection: Connection, server: Server) -> Iterator[Finding]:
    right = server.version_number >= MIN_VERSION
    yield Finding(
        OK if right else WRONG, side, f"PostgreSQL {server.version}" + ("" if right else "; 13 or later is needed")
    )
    yield check_clock(side, server.clock)
    if not server.has_schema:
        yield Finding(WRONG, side, f"there is no schema {NAME}; create it, or correct CDC_SCHEMA")
        return
    with connection.cursor() as cursor:
        cursor.execute(MISSING, {"names": list(TABLES[side])})
        missing = [name for (name,) in cursor.fetchall()]
    if missing:
        yield Finding(WRONG, side, f"no {', '.join(missing)} in schema {NAME}; run python db_setup.py")
    else:
        yield Finding(OK, side, f"schema {NAME} with {', '.join(TABLES[side])}")
        yield check_rights(side, connection, server.role)
    yield from check_schema_version(side, connection)
    if side == "source" and "employees" not in missing:
        gaps = capture.gaps(connection)
        yield from (Finding(WRONG, side, line) for line in gaps)
        if not gaps:
            yield Finding(OK, side, "the triggers capture every change")


def check_schema_version(side: str, connection: Connection) -> Iterator[Finding]:
    try:
        check_version(connection, side)
    except psycopg2.OperationalError as error:
        yield Finding(WRONG, side, str(error))
    except WrongSetting as error:
        yield Finding(WRONG, *str(error).split(": ", 1))


def check_clock(side: str, ahead: float) -> Finding:
    if abs(ahead) <= MAX_CLOCK_DIFFERENCE:
        return Finding(OK, side, f"its clock is {abs(ahead):.2f} s from this machine's")
    how = f"{abs(ahead):,.1f} s {'fast' if ahead > 0 else 'slow'}"
    text = f"its clock is {how} beside this machine's: set both by NTP; delays and rewind --since are off by as much"
    return Finding(WRONG, side, text)


def check_rights(side: str, connection: Connection, role: str) -> Finding:
    """Whether the role of the URL may do what the script of this side does, or only look."""
    model, script = ROLES[side]
    lacking = missing_rights(side, connection, model)
    if not lacking:
        return Finding(OK, side, f"role {role} has the rights of {script}")
    if not missing_rights(side, connection, MONITOR):
        what = "has the rights of status, trace and verify.py"
        return Finding(NOTE, side, f"role {role} {what}, and not of {script}, which needs {', '.join(lacking)}")
    return Finding(WRONG, side, f"role {role} lacks {', '.join(lacking)} for {script}: Rights in docs/operations.md")


def missing_rights(side: str, connection: Connection, model: str) -> list[str]:
    """Return the rights that sql/<side>_roles.sql grants to a role and that ours has not."""
    text = (Path(__file__).parents[2] / "sql" / f"{side}_roles.sql").read_text(encoding="utf-8")
    found = []
    with connection.cursor() as cursor:
        for rights, kind, names, roles in GRANT.findall(text):
            if model not in roles.split(", ") or kind in ("DATABASE", "SCHEMA"):  # those we have: we are in
                continue
            for name in names.split(", "):
                for right in rights.split(", "):
                    question = HAS_RIGHT.format(kind=(kind or "TABLE").lower())
                    cursor.execute(question, {"name": name.replace("public.", f"{SCHEMA}."), "right": right})
                    if cursor.fetchall() != [(True,)]:
                        found.append(f"{right} on {name.removeprefix('public.')}")
    return found


def check_both(source: Connection, destination: Connection, same: bool) -> Iterator[Finding]:
    if same:
        yield Finding(
            WRONG, "databases", "source and destination are the same database; a change would go round for ever"
        )
    refusals = capture.refusals(source, destination)
    yield from (Finding(WRONG, *line.split(": ", 1)) for line in refusals)
    if not refusals:
        yield Finding(OK, "databases", "the tables that are there have the columns that we need")
    yield from (Finding(NOTE, *line.split(": ", 1)) for line in capture.warnings(source, destination))


# Kafka


def check_kafka(admin: AdminClient, brokers: Brokers) -> Iterator[Finding]:
    server = f"Kafka at {config.KAFKA['bootstrap.servers']}"
    try:
        wait_for_login(admin, brokers)
        found = admin.list_topics(timeout=ANSWER_WAIT).brokers
        yield Finding(
            OK,
            "Kafka",
            f"{counted(len(found), 'broker')} at {config.KAFKA['bootstrap.servers']}",
        )
    except KafkaException as error:
        yield Finding(WRONG, "Kafka", f"{server} does not answer: {error.args[0].str()}")
        return
    except WrongSetting as error:
        yield Finding(WRONG, "Kafka", str(error).removeprefix("Kafka: "))
        return
    checks: dict[str, Callable[[], Finding]] = {
        f"topic {config.KAFKA_TOPIC}": partial(check_topic, admin, config.KAFKA_TOPIC),
        f"topic {config.DEAD_LETTER_TOPIC}": partial(check_topic, admin, config.DEAD_LETTER_TOPIC),
        f"group {config.KAFKA_GROUP_ID}": partial(check_group, admin),
    }
    for what, check in checks.items():
        try:
            yield check()
        except KafkaException as error:
            refusal = error.args[0]
            yield Finding(WRONG, what, f"{refusal.str()}{advise(refusal, f'DESCRIBE on {what}')}")


def check_topic(admin: AdminClient, name: str) -> Finding:
    what = f"topic {name}"
    found = describe_topic(admin, name)
    if found is None:
        return Finding(WRONG, what, "does not exist; run python admin.py")
    partitions = found.partitions
    weak = [str(part.id) for part in partitions if len(part.isr) < len(part.replicas) or part.leader is None]
    if weak:
        return Finding(
            WRONG, what, f"partitions {', '.join(weak)} have fewer replicas in sync than they should: start all brokers"
        )
    replicas = len(partitions[0].replicas)
    return Finding(OK, what, f"partitions {len(partitions)}, replicas {replicas}, all in sync")


def check_group(admin: AdminClient) -> Finding:
    """Whether only consumer.py is, and was, in the group."""
    what = f"group {config.KAFKA_GROUP_ID}"
    members = group_members(admin)
    if strangers := [member.name for member in members if not member.is_ours]:
        return Finding(
            WRONG, what, f"{', '.join(strangers)} is no consumer.py: give it another group, or set KAFKA_GROUP_ID"
        )
    numbers = partition_numbers(admin, config.KAFKA_TOPIC)
    committed = committed_offsets(numbers) if numbers else {}
    bounds = offset_bounds(admin, config.KAFKA_TOPIC, numbers) if numbers else {}
    if committed and len(trusted_offsets(committed, bounds, topic_id(admin))) < len(committed):
        return Finding(
            NOTE, what, "another program has committed offsets there; consumer.py reads from the first message"
        )
    return Finding(OK, what, f"members {len(members)}" if members else "no member; python consumer.py is one")
