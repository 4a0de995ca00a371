"""admin.py create and delete: the topics are made, changed and deleted."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator

from harness import ROOT
from harness.kafka import client_settings
from harness.pipeline import Pipeline
from harness.waiting import wait_until

import pytest
from confluent_kafka.admin import AdminClient, ConfigResource  # type: ignore[attr-defined]


@pytest.fixture
def topics(databases: Pipeline) -> Iterator[Pipeline]:
    """No topics before, none after."""
    yield databases
    assert databases.run("admin.py", "delete", "--yes").returncode == 0


def partitions(name: str) -> int:
    """How many partitions the topic has, 0 if there is none."""
    topic = AdminClient(client_settings()).list_topics(timeout=10).topics.get(name)
    return len(topic.partitions) if topic else 0


def test_without_arguments_it_creates_both_topics_and_says_so_when_they_exist(topics: Pipeline) -> None:
    created = topics.run("admin.py")
    assert created.returncode == 0, created.stderr
    assert created.stdout.splitlines() == [
        f"topic {topics.topic} created, 3 partitions",
        f"topic {topics.topic}_dlq created, 1 partition",
    ]
    assert partitions(topics.topic) == 3
    assert partitions(f"{topics.topic}_dlq") == 1
    again = topics.run("admin.py", "create")
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines() == [
        f"topic {topics.topic} exists, 3 partitions",
        f"topic {topics.topic}_dlq exists, 1 partition",
    ]


def test_dead_letters_are_kept_and_may_be_larger_than_what_a_topic_takes(topics: Pipeline) -> None:
    assert topics.run("admin.py").returncode == 0
    admin = AdminClient(client_settings())
    resources = [ConfigResource(ConfigResource.Type.TOPIC, f"{topics.topic}{end}") for end in ("", "_dlq")]
    found = admin.describe_configs(resources)
    ordinary, letters = (found[resource].result(10) for resource in resources)
    assert letters["retention.ms"].value == "-1"
    assert int(ordinary["retention.ms"].value) > 0
    assert int(letters["max.message.bytes"].value) > int(ordinary["max.message.bytes"].value) + 10_000


def test_partitions_can_be_added_but_not_taken_away(topics: Pipeline) -> None:
    for wanted, said, there in (
        ("2", "created, 2 partitions", 2),
        ("5", "5 partitions, 2 before", 5),
        ("4", "exists", 5),
    ):
        result = topics.run("admin.py", "create", "--partitions", wanted)
        assert result.returncode == 0, result.stderr
        assert said in result.stdout.splitlines()[0]
        wait_until(lambda there=there: partitions(topics.topic) == there)  # type: ignore[misc]
    assert partitions(f"{topics.topic}_dlq") == 1


def test_a_refusal_of_kafka_is_one_line_and_exit_1(topics: Pipeline) -> None:
    for arguments, name in ((["--replication-factor", "7"], topics.topic), ([], "no name for a topic")):
        result = topics.run("admin.py", "create", *arguments, KAFKA_TOPIC=name)
        assert result.returncode == 1
        assert len(result.stderr.splitlines()) == 1
        assert result.stderr.startswith(f"topic {name}: ")


@pytest.mark.parametrize(
    "arguments",
    [
        *(["create", "--partitions", number] for number in ("0", "-1", "x", "1.5", "²", "10001", "9" * 30)),
        *(["create", "--replication-factor", number] for number in ("0", "99999")),
        ["destroy"],
        ["status", "--yes"],
        ["--force"],
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_wrong_use_is_exit_2_and_does_nothing(databases: Pipeline, arguments: list[str]) -> None:
    result = databases.run("admin.py", *arguments)
    assert result.returncode == 2
    assert "error: " in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert partitions(databases.topic) == 0


def test_a_setting_that_kafka_refuses_is_exit_2(databases: Pipeline) -> None:
    result = databases.run("admin.py", KAFKA_SOCKET_TIMEOUT_MS="1")
    assert result.returncode == 2
    assert "socket.timeout.ms" in result.stderr
    assert "Traceback" not in result.stderr


def test_help_shows_what_there_is(databases: Pipeline) -> None:
    result = databases.run("admin.py", "--help")
    assert result.returncode == 0
    for example in ("python admin.py create --partitions 6", "python admin.py delete", "python admin.py status --json"):
        assert example in result.stdout


def test_delete_with_yes_deletes_both_topics_and_says_when_there_are_none(topics: Pipeline) -> None:
    assert topics.run("admin.py").returncode == 0
    result = topics.run("admin.py", "delete", "--yes")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"deleted {topics.topic} and {topics.topic}_dlq\n"
    assert partitions(topics.topic) == partitions(f"{topics.topic}_dlq") == 0
    assert topics.run("admin.py", "delete", "--yes").stdout == f"topic {topics.topic} does not exist\n"
    assert topics.run("admin.py").stdout.count(" created, ") == 2, "at once"


def test_delete_without_a_terminal_to_ask_at_needs_yes(topics: Pipeline) -> None:
    assert topics.run("admin.py").returncode == 0
    result = topics.run("admin.py", "delete")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "--yes" in result.stderr
    assert partitions(topics.topic) == 3


def test_delete_at_a_terminal_asks_first(topics: Pipeline) -> None:
    assert topics.run("admin.py").returncode == 0
    for answer in (b"\n", b"nonsense\n", b"\x04", signal.SIGINT, b"yes\n"):
        terminal, script_side = pty.openpty()
        with subprocess.Popen(
            [sys.executable, str(ROOT / "admin.py"), "delete"],
            env={**os.environ, **topics.environment},
            stdin=script_side,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            os.close(script_side)
            assert process.stdout is not None
            question = b""
            while not question.endswith(b"[y/N] "):
                character = process.stdout.read(1)
                assert character, question
                question += character
            assert topics.topic.encode() in question
            if isinstance(answer, bytes):
                os.write(terminal, answer)
            else:
                while process.poll() is None:  # Python's input() may miss one that comes just as it begins to wait
                    process.send_signal(answer)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(3)
            said = process.stdout.read().decode()
        os.close(terminal)
        yes = answer == b"yes\n"
        # a second Ctrl-C may meet a script that is about to end
        codes = {0} if yes else {1, -signal.SIGINT} if answer == signal.SIGINT else {1}
        assert process.returncode in codes, said
        assert said.strip() == (f"deleted {topics.topic} and {topics.topic}_dlq" if yes else "nothing deleted")
        assert partitions(topics.topic) == (0 if yes else 3)


# Kafka does not answer


@pytest.mark.parametrize("arguments", [[], ["delete", "--yes"]], ids=["create", "delete"])
def test_without_kafka_it_gives_up_with_one_line(databases: Pipeline, arguments: list[str]) -> None:
    """After 60 s; here after 1."""
    impatient = databases.sabotaged("import admin", "admin.WAIT = 1")
    result = databases.run(impatient, *arguments, KAFKA_BOOTSTRAP_SERVERS="localhost:1")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("Kafka at localhost:1 does not answer: ")
    assert line.endswith("gave up after 1 s")


def test_without_kafka_it_says_that_it_waits_and_ctrl_c_is_no_traceback(databases: Pipeline) -> None:
    script = databases.start("admin.py", KAFKA_BOOTSTRAP_SERVERS="localhost:1")
    script.wait_for("Kafka at localhost:1 does not answer; waiting")
    assert script.stop(signal.SIGINT) == 1
    assert script.output().splitlines()[1:] == ["stopped"]
