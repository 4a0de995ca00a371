"""Kafka's ACLs that docs/operations.md lists: with exactly these each script works, without one it cannot.

The table is read out of the document. The Kafka here is the test's own: with passwords and an authorizer.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from employee import CDCRecord
from harness.acls import Acl, binding, documented
from harness.database import query
from harness.guarded_kafka import guarded_kafka, login_as
from harness.kafka import client_settings
from harness.pipeline import Pipeline, new_pipeline
from harness.waiting import wait_until
from stack.servers import Server

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, Producer
from confluent_kafka.admin import AclBinding, AclBindingFilter, AdminClient  # type: ignore[attr-defined]

pytestmark = pytest.mark.long

OFFSET = 5000 + 100 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])  # of the ports here
IN_VAIN = 4.0  # seconds after which a script that waits has not done its work; it takes about one
REFUSED = r"\w+ authorization (is )?failed|^topic \S+: Authorization failed"


ACLS = documented()
SCRIPTS = list(dict.fromkeys(acl.script for acl in ACLS))
USERS = {script: re.sub(r"\W+", "-", script) for script in SCRIPTS}


@dataclass
class Doors:
    """A pipeline, and a user of the guarded Kafka for each script."""

    pipeline: Pipeline
    broker: Server

    def __post_init__(self) -> None:
        self.admin = AdminClient(client_settings())

    def binding(self, acl: Acl) -> AclBinding:
        return binding(acl, USERS[acl.script], self.pipeline.topic, self.pipeline.name)

    def filter(self, acl: Acl) -> AclBindingFilter:
        one = self.binding(acl)
        return AclBindingFilter(
            one.restype,
            one.name,
            one.resource_pattern_type,
            one.principal,
            one.host,
            one.operation,
            one.permission_type,
        )

    def allow(self, *allowed: Acl) -> None:
        for future in self.admin.create_acls([self.binding(acl) for acl in allowed]).values():
            future.result(10)
        wait_until(lambda: all(self.found(acl) for acl in allowed))

    def forbid(self, acl: Acl) -> None:
        for future in self.admin.delete_acls([self.filter(acl)]).values():
            future.result(10)
        wait_until(lambda: not self.found(acl))

    def found(self, acl: Acl) -> list[Any]:
        return list(self.admin.describe_acls(self.filter(acl)).result(10))

    @contextmanager
    def without(self, acl: Acl) -> Iterator[None]:
        self.forbid(acl)
        try:
            yield
        finally:
            self.allow(acl)

    def login(self, script: str) -> dict[str, Any]:
        return {**login_as(self.broker, USERS[script])}

    def watch(self, script: str, done: Callable[[], bool], seconds: float) -> tuple[bool, str]:
        """Run a script that waits for ever, until its work is done or the time is over."""
        started = self.pipeline.start(script, **self.login(script))
        with suppress(AssertionError):
            wait_until(done, seconds)
        finished = done()
        started.stop()
        return finished, started.output()

    def run(self, script: str, *options: str, **environment: str) -> Any:
        name, *arguments = script.split()
        return self.pipeline.run(name, *arguments, *options, seconds=30.0, **self.login(script), **environment)

    def topics(self) -> dict[str, int]:
        """How many partitions each topic has."""
        found = self.admin.list_topics(timeout=10).topics
        return {name: len(topic.partitions) for name, topic in found.items()}

    def send_dead_letter(self, key: str | None = None) -> None:
        producer = Producer(client_settings())
        producer.produce(f"{self.pipeline.topic}_dlq", "a letter", key)
        assert producer.flush(10) == 0


@pytest.fixture(scope="module")
def doors(stack: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    """A pipeline that has carried an employee, and has the document's ACLs."""
    with guarded_kafka(OFFSET, USERS.values()) as broker, new_pipeline(tmp_path_factory.mktemp("acls")) as pipeline:
        pipeline.set_up()
        query(pipeline.source(), "INSERT INTO employees (emp_id) VALUES (1)")
        pipeline.drain()
        doors = Doors(pipeline, broker)
        doors.allow(*ACLS)
        yield doors


# What each script does. Returns whether that was done within so many seconds, and what the script said.

numbers = itertools.count(100)


def publish(doors: Doors, seconds: float) -> tuple[bool, str]:
    emp_id = next(numbers)
    query(doors.pipeline.source(), "INSERT INTO employees (emp_id) VALUES (%(id)s)", {"id": emp_id})

    def done() -> bool:
        return str(emp_id).encode() in {message.key() for message in doors.pipeline.messages()}

    return doors.watch("producer.py", done, seconds)


def consume(doors: Doors, seconds: float) -> tuple[bool, str]:
    emp_id, letters = next(numbers), len(doors.pipeline.dead_letters())
    doors.pipeline.send(CDCRecord(1000 * emp_id, emp_id, action="INSERT").to_json(), "no change")
    destination = doors.pipeline.destination()

    def done() -> bool:
        applied = query(destination, "SELECT emp_id FROM employees WHERE emp_id = %(id)s", {"id": emp_id})
        return bool(applied) and len(doors.pipeline.dead_letters()) > letters

    return doors.watch("consumer.py", done, seconds)


def look(doors: Doors, _seconds: float) -> tuple[bool, str]:
    doors.send_dead_letter()
    result = doors.run("admin.py status", "--json")
    found = json.loads(result.stdout)["kafka"]
    letters = len(doors.pipeline.dead_letters())
    return found.get("dead_letters") == letters, found.get("error", "") + result.stderr


def trace(doors: Doors, _seconds: float) -> tuple[bool, str]:
    """Of an employee that has a message and a dead letter."""
    doors.send_dead_letter("1")
    for partition in range(3):  # another test deletes the topic
        doors.pipeline.send(CDCRecord(1, 1, action="INSERT").to_json(), key="1", partition=partition)
    result = doors.run("admin.py trace", "1", "--json")
    found = json.loads(result.stdout)
    return bool(found["messages"] and found["letters"]), found["errors"].get("kafka", "") + result.stderr


def check(doors: Doors, _seconds: float) -> tuple[bool, str]:
    result = doors.run("admin.py check", "--json")
    wrong = [finding for finding in json.loads(result.stdout)["findings"] if finding["state"] == "wrong"]
    return not wrong, "".join(f"{finding['what']}: {finding['text']}" for finding in wrong) + result.stderr


def list_letters(doors: Doors, _seconds: float) -> tuple[bool, str]:
    doors.send_dead_letter()
    result = doors.run("admin.py dead-letters")
    return "a letter" in result.stdout, result.stderr


def replay(doors: Doors, _seconds: float) -> tuple[bool, str]:
    doors.send_dead_letter()
    sent = len(doors.pipeline.messages())
    result = doors.run("admin.py dead-letters --replay")
    return len(doors.pipeline.messages()) > sent and not doors.pipeline.dead_letters(), result.stderr


def discard(doors: Doors, _seconds: float) -> tuple[bool, str]:
    doors.send_dead_letter()
    result = doors.run("admin.py dead-letters --discard", "--yes")
    return not doors.pipeline.dead_letters(), result.stderr


def rewind(doors: Doors, _seconds: float) -> tuple[bool, str]:
    doors.pipeline.send("a message to read again")
    assert doors.pipeline.run("consumer.py", "--once").returncode == 0
    result = doors.run("admin.py rewind")
    group = ConsumerGroupTopicPartitions(doors.pipeline.name)
    (future,) = doors.admin.list_consumer_group_offsets([group]).values()
    return {part.offset for part in future.result(10).topic_partitions} == {0}, result.stderr


def create(doors: Doors, _seconds: float) -> tuple[bool, str]:
    remove_topics(doors)
    result = doors.run("admin.py create")
    done = set(topics(doors)) <= set(doors.topics())
    assert doors.pipeline.run("admin.py").returncode == 0
    return done, result.stderr


def grow(doors: Doors, _seconds: float) -> tuple[bool, str]:
    """A success only if the other topic is found in its place, too."""
    count = doors.topics()[doors.pipeline.topic]
    result = doors.run("admin.py create --partitions", str(count + 1))
    return doors.topics()[doors.pipeline.topic] > count and result.returncode == 0, result.stderr


def delete(doors: Doors, _seconds: float) -> tuple[bool, str]:
    result = doors.run("admin.py delete", "--yes")
    done = not set(topics(doors)) & set(doors.topics())
    assert doors.pipeline.run("admin.py").returncode == 0
    return done, result.stderr


def topics(doors: Doors) -> list[str]:
    return [doors.pipeline.topic, f"{doors.pipeline.topic}_dlq"]


def remove_topics(doors: Doors) -> None:
    result = doors.pipeline.run("admin.py", "delete", "--yes")
    assert result.returncode == 0, result.stderr


WORK = {
    "producer.py": publish,
    "consumer.py": consume,
    "admin.py create": create,
    "admin.py create --partitions": grow,
    "admin.py delete": delete,
    "admin.py status": look,
    "admin.py trace": trace,
    "admin.py check": check,
    "admin.py rewind": rewind,
    "admin.py dead-letters": list_letters,
    "admin.py dead-letters --replay": replay,
    "admin.py dead-letters --discard": discard,
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_with_exactly_the_documents_acls_a_script_does_its_work(doors: Doors, script: str) -> None:
    done, said = WORK[script](doors, 20.0)
    assert done, said


def refused_in_one_line(said: str) -> bool:
    return "\n" not in said.strip() and re.search(REFUSED, said) is not None


@pytest.mark.parametrize("acl", ACLS, ids=str)
def test_without_one_acl_a_script_does_not_do_its_work(doors: Doors, acl: Acl) -> None:
    with doors.without(acl):
        done, said = WORK[acl.script](doors, IN_VAIN)
    assert not done, said
    if acl.script.startswith("admin.py"):
        assert refused_in_one_line(said), said


@pytest.mark.parametrize(
    "acl", [acl for acl in ACLS if acl.script.startswith("admin.py") and acl.operation != "Describe"], ids=str
)
def test_to_see_a_topic_or_group_is_not_enough_where_more_is_listed(doors: Doors, acl: Acl) -> None:
    seeing = replace(acl, operation="Describe")
    with doors.without(acl):
        doors.allow(seeing)
        done, said = WORK[acl.script](doors, IN_VAIN)
        doors.forbid(seeing)
    assert not done, said
    assert refused_in_one_line(said), said


def test_status_without_the_right_to_read_the_topic_does_not_know_the_delay_and_does_not_wait_for_it(
    doors: Doors,
) -> None:
    doors.pipeline.send("unread", partition=0)
    started = time.monotonic()
    found = json.loads(doors.run("admin.py status", "--json").stdout)
    assert time.monotonic() - started < 5
    part = found["kafka"]["partitions"][0]
    assert part["lag"] > 0
    assert (part["oldest_unread_seconds"], found["oldest_change_seconds"], found["to_kafka"]) == (None, None, None)
