"""What Kafka withholds: a right, named in one line and waited for; or the login, which is a wrong setting."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cdc.kafka import Brokers
from harness.consuming import change, wait_until_read
from harness.database import query
from harness.guarded_kafka import guarded_kafka, login_as
from harness.kafka import client_settings
from harness.pipeline import Pipeline, new_pipeline
from harness.script import Script
from harness.waiting import wait_until
from stack.servers import Server

import pytest
from confluent_kafka import KafkaError
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

pytestmark = pytest.mark.long

OFFSET = 5700 + 100 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])  # of the ports here
USERS = ("producer", "standby", "consumer", "admin")
TOPIC, LETTERS, GROUP = "the topic", "the dead-letter topic", "the group"


@dataclass
class Guarded:
    """A pipeline whose scripts log in to Kafka, and have the rights that the test gives them."""

    pipeline: Pipeline
    broker: Server

    def __post_init__(self) -> None:
        self.admin = AdminClient(client_settings())
        self.names = {
            TOPIC: self.pipeline.topic,
            LETTERS: f"{self.pipeline.topic}_dlq",
            GROUP: self.pipeline.name,
            "group": "employee-cdc-dead-letters",
        }

    def allow(self, user: str, operation: str, *resources: str) -> None:
        bindings = [
            AclBinding(
                ResourceType.GROUP if "group" in resource else ResourceType.TOPIC,
                self.names[resource],
                ResourcePatternType.LITERAL,
                f"User:{user}",
                "*",
                AclOperation[operation],
                AclPermissionType.ALLOW,
            )
            for resource in resources
        ]
        for future in self.admin.create_acls(bindings).values():
            future.result(10)

    def forbid_all(self) -> None:
        anyone: Any = None
        every = AclBindingFilter(
            ResourceType.ANY, anyone, ResourcePatternType.ANY, anyone, anyone, AclOperation.ANY, AclPermissionType.ANY
        )
        for future in self.admin.delete_acls([every]).values():
            future.result(10)

    def login(self, user: str) -> dict[str, str]:
        return login_as(self.broker, user)

    def start(self, script: str, user: str) -> Script:
        return self.pipeline.start(script, **self.login(user))


@pytest.fixture(scope="module")
def guarded_pipeline(stack: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarded_kafka(OFFSET, USERS) as broker, new_pipeline(tmp_path_factory.mktemp("guarded")) as pipeline:
        pipeline.set_up()
        yield Guarded(pipeline, broker)


@pytest.fixture
def doors(guarded_pipeline: Guarded) -> Guarded:
    """With no rights and no scripts."""
    guarded_pipeline.forbid_all()
    return guarded_pipeline


def end(*scripts: Script) -> None:
    for script in scripts:
        assert script.stop() == 0, script.output()
        assert "Traceback" not in script.output()


def the_line(script: Script, user: str, right: str) -> None:
    script.wait_for(f"User:{user} needs the right {right}", 10)
    assert script.output().count("needs the right") == 1, script.output()


def test_a_producer_that_may_not_read_the_topic_says_so_and_leaves_the_lock_to_one_that_may(doors: Guarded) -> None:
    doors.allow("producer", "WRITE", TOPIC)
    for partition in range(3):
        doors.pipeline.send(change(1, 2, "DELETE"), partition=partition)
    query(doors.pipeline.source(), "INSERT INTO employees DEFAULT VALUES")
    first = doors.start("producer.py", "producer")
    the_line(first, "producer", f"READ and WRITE on topic {doors.pipeline.topic}")
    doors.allow("standby", "READ", TOPIC)
    doors.allow("standby", "WRITE", TOPIC)
    standby = doors.start("producer.py", "standby")
    standby.wait_for("published, log offset")
    end(first, standby)


def test_a_producer_that_may_not_write_says_so(doors: Guarded) -> None:
    doors.allow("producer", "READ", TOPIC)
    query(doors.pipeline.source(), "INSERT INTO employees DEFAULT VALUES")
    script = doors.start("producer.py", "producer")
    the_line(script, "producer", f"READ and WRITE on topic {doors.pipeline.topic}")
    doors.allow("producer", "WRITE", TOPIC)
    script.wait_for("published, log offset")
    end(script)


@pytest.mark.parametrize("missing", [TOPIC, GROUP])
def test_a_consumer_that_may_not_read_says_so_and_goes_on_once_it_may(doors: Guarded, missing: str) -> None:
    doors.allow("consumer", "DESCRIBE", TOPIC)
    doors.allow("consumer", "READ", *{TOPIC, GROUP} - {missing})
    doors.allow("consumer", "WRITE", LETTERS)
    query(doors.pipeline.destination(), "TRUNCATE employees, cdc_applied")
    doors.pipeline.send(change(1, 1), change(2, 2, "DELETE"), partition=0)
    script = doors.start("consumer.py", "consumer")
    kind = "topic" if missing == TOPIC else "group"
    the_line(script, "consumer", f"READ on {kind} {doors.names[missing]}")
    doors.allow("consumer", "READ", missing)
    wait_until(lambda: query(doors.pipeline.destination(), "SELECT 1 FROM cdc_applied WHERE emp_id = 2"))
    end(script)


def test_a_dead_letter_that_may_not_be_written_waits_for_the_right(doors: Guarded) -> None:
    doors.allow("consumer", "READ", TOPIC, GROUP)
    doors.pipeline.send("no change", "no change either", partition=0)
    script = doors.start("consumer.py", "consumer")
    the_line(script, "consumer", f"WRITE on topic {doors.names[LETTERS]}")
    doors.allow("consumer", "WRITE", LETTERS)
    wait_until_read(doors.pipeline)
    end(script)
    values = [letter.value() for letter in doors.pipeline.dead_letters()]
    assert values == [b"no change", b"no change either"]


def test_a_replay_that_may_not_write_ends_with_one_line(doors: Guarded) -> None:
    doors.allow("admin", "READ", LETTERS, "group")
    doors.allow("admin", "DELETE", LETTERS)
    doors.allow("admin", "DESCRIBE", TOPIC)
    login: dict[str, Any] = doors.login("admin")
    result = doors.pipeline.run("admin.py", "dead-letters", "--replay", **login)
    assert result.returncode == 1
    assert f"User:admin needs the right WRITE on topic {doors.pipeline.topic}" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert len(doors.pipeline.dead_letters()) == 2


WRONG_LOGINS = {
    "a wrong password": ({"KAFKA_SASL_PASSWORD": "wrong"}, "KAFKA_SASL_PASSWORD"),
    "a mechanism that the broker does not have": ({"KAFKA_SASL_MECHANISM": "SCRAM-SHA-256"}, "KAFKA_SASL_MECHANISM"),
    "TLS where there is none": ({"KAFKA_SECURITY_PROTOCOL": "SASL_SSL"}, "KAFKA_SECURITY_PROTOCOL"),
}


@pytest.mark.parametrize("script", ["producer.py", "consumer.py"])
@pytest.mark.parametrize("what", WRONG_LOGINS)
def test_a_login_that_kafka_refuses_ends_with_a_line_that_names_the_setting(
    doors: Guarded, script: str, what: str
) -> None:
    wrong, named = WRONG_LOGINS[what]
    environment: dict[str, Any] = {**doors.login("admin"), **wrong}
    result = doors.pipeline.run(script, seconds=40, **environment)
    assert result.returncode == 2, result.stdout + result.stderr
    assert f"check {named}" in result.stderr or f", {named}" in result.stderr or f"and {named}" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert len(result.stdout.splitlines()) <= 2, result.stdout


def test_a_login_that_kafka_refuses_later_is_waited_for() -> None:
    """As while passwords are changed, or a broker starts."""
    brokers = Brokers()
    refused = KafkaError(KafkaError._AUTHENTICATION, "Authentication failed (after 301ms in state AUTH_REQ)")
    brokers.on_error(refused)
    brokers.mark_up()
    for _ in range(20):
        brokers.complained = float("-inf")
        brokers.on_error(refused)
    assert not brokers.wrong_setting
    assert len(brokers.logged) == 1
