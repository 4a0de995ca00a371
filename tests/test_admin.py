"""admin.py: the topics made, changed and deleted, and a status that follows a change through all stages."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg2
import pytest
from confluent_kafka.admin import AdminClient, ConfigResource  # type: ignore[attr-defined]

from harness import ROOT
from harness.database import BACKWARDS, WATCH, query
from harness.kafka import client_settings
from harness.pipeline import Pipeline, new_pipeline
from harness.waiting import wait_until


@pytest.fixture(scope="module")
def databases(stack: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """Two databases that are set up; the topics are made and deleted by each test."""
    with new_pipeline(tmp_path_factory.mktemp("admin")) as pipeline:
        result = pipeline.run("db_setup.py")
        assert result.returncode == 0, result.stdout + result.stderr
        yield pipeline


@pytest.fixture
def topics(databases: Pipeline) -> Iterator[Pipeline]:
    """No topics before, none after."""
    yield databases
    assert databases.run("admin.py", "delete", "--yes").returncode == 0


def partitions(name: str) -> int:
    """How many partitions the topic has, 0 if there is none."""
    topic = AdminClient(client_settings()).list_topics(timeout=10).topics.get(name)
    return len(topic.partitions) if topic else 0


# The topics


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
    for asked, said, there in (
        ("2", "created, 2 partitions", 2),
        ("5", "5 partitions, 2 before", 5),
        ("4", "exists", 5),
    ):
        result = topics.run("admin.py", "create", "--partitions", asked)
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


def test_a_setting_that_kafka_does_not_know_is_exit_2(databases: Pipeline) -> None:
    result = databases.run("admin.py", KAFKA_NO_SUCH_THING="1")
    assert result.returncode == 2
    assert "no.such.thing" in result.stderr
    assert "Traceback" not in result.stderr


def test_help_shows_what_there_is(databases: Pipeline) -> None:
    result = databases.run("admin.py", "--help")
    assert result.returncode == 0
    for example in ("python admin.py create --partitions 6", "python admin.py delete", "python admin.py status --json"):
        assert example in result.stdout


# Deleting


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
            asked = b""
            while not asked.endswith(b"[y/N] "):
                character = process.stdout.read(1)
                assert character, asked
                asked += character
            assert topics.topic.encode() in asked
            if isinstance(answer, bytes):
                os.write(terminal, answer)
            else:
                while process.poll() is None:  # Python's input() may miss one that comes just as it begins to wait
                    process.send_signal(answer)
                    time.sleep(0.2)
            said = process.stdout.read().decode()
        os.close(terminal)
        yes = answer == b"yes\n"
        assert process.returncode == (0 if yes else 1), said
        assert said.strip() == (f"deleted {topics.topic} and {topics.topic}_dlq" if yes else "nothing deleted")
        assert partitions(topics.topic) == (0 if yes else 3)


# Partitions added under traffic


def test_the_pipeline_stays_right_while_partitions_are_added(pipeline: Pipeline) -> None:
    """Changes of one employee are then on two partitions, in no order among each other."""
    # a producer finds new partitions within 5 minutes, unless it is told to look more often
    pipeline.start("producer.py", KAFKA_TOPIC_METADATA_REFRESH_INTERVAL_MS="500")
    pipeline.start("consumer.py")
    query(pipeline.destination(), WATCH)
    query(pipeline.source(), "CREATE SEQUENCE clock; INSERT INTO employees (emp_id) SELECT generate_series(1, 30)")
    end = time.monotonic() + 60

    def write() -> int:
        chance, count = random.Random(), 0
        with psycopg2.connect(pipeline.source_url) as source, source.cursor() as cursor:
            while time.monotonic() < end:
                touch = "UPDATE employees SET salary = nextval('clock') WHERE emp_id = %s"
                cursor.execute(touch, (chance.randint(1, 30),))
                source.commit()
                count += 1
        return count

    with ThreadPoolExecutor() as pool:
        writers = [pool.submit(write) for _ in range(2)]
        try:
            result = pipeline.run("admin.py", "create", "--partitions", "6")
            assert "6 partitions, 3 before" in result.stdout

            def used() -> int:
                return sum(part["end_offset"] > 0 for part in status(pipeline)["kafka"]["partitions"])

            wait_until(lambda: used() == 6, what="messages on all partitions")
        finally:
            end = time.monotonic()
        assert sum(writer.result(20) for writer in writers) > 60
    pipeline.wait_until_equal()
    destination = pipeline.destination()
    assert query(destination, BACKWARDS) == [(0,)]
    assert query(destination, "SELECT count(*) > 30 FROM seen") == [(True,)]


# Status


def status(pipeline: Pipeline) -> Any:
    result = pipeline.run("admin.py", "status", "--json")
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(result.stdout)


def screen(pipeline: Pipeline) -> dict[str, str]:
    """What the human status shows, by its left column."""
    result = pipeline.run("admin.py", "status", COLUMNS="200")
    assert result.returncode == 0, result.stdout + result.stderr
    rows = (re.findall(r"[^│]+", line) for line in result.stdout.splitlines() if line.startswith("│"))
    return {left.strip(): right.strip() for left, right in rows}


def lag(found: Any) -> int:
    return sum(partition["lag"] for partition in found["kafka"]["partitions"])


def test_status_follows_a_change_through_all_stages(pipeline: Pipeline) -> None:
    source = pipeline.source()

    # nothing yet, and nothing runs
    found, shown = status(pipeline), screen(pipeline)
    assert found["source"]["rows"] == found["source"]["log_head"] == found["source"]["unpublished"] == 0
    assert found["source"]["active_producer"] is None
    assert [part["partition"] for part in found["kafka"]["partitions"]] == [0, 1, 2]
    assert found["kafka"]["members"] == []
    assert found["in_sync"] is True
    assert shown["active producer"] == "none; start python producer.py"
    assert shown["partition 1"] == "0 messages, lag 0, no consumer"
    assert shown["consumer group"] == f"{pipeline.name}, 0 members; start python consumer.py"
    assert shown["in sync"] == "yes"

    # made, not published
    query(source, "INSERT INTO employees (emp_id) VALUES (1)")
    time.sleep(0.2)  # the age shows tenths of a second
    found, shown = status(pipeline), screen(pipeline)
    assert (found["source"]["rows"], found["destination"]["rows"]) == (1, 0)
    assert (found["source"]["log_head"], found["source"]["published_offset"]) == (1, 0)
    assert found["source"]["unpublished"] == 1
    assert found["source"]["oldest_unpublished_seconds"] >= 0.2
    assert (lag(found), found["in_sync"]) == (0, False)
    assert re.fullmatch(r"1, the oldest for \d+\.\d s", shown["unpublished"])
    assert shown["in sync"] == "no"

    # published, not applied
    assert pipeline.run("producer.py", "--once").returncode == 0
    found, shown = status(pipeline), screen(pipeline)
    assert (found["source"]["unpublished"], found["source"]["published_offset"]) == (0, 1)
    assert (lag(found), found["in_sync"]) == (1, False)
    assert "1 messages, lag 1, no consumer" in shown.values()
    assert shown["unpublished"] == "0"

    # committed late, behind the published offset
    late = pipeline.source()
    query(late, "BEGIN; INSERT INTO employees (emp_id) VALUES (2)")
    query(source, "INSERT INTO employees (emp_id) VALUES (3)")
    assert pipeline.run("producer.py", "--once").returncode == 0
    query(late, "COMMIT")
    found = status(pipeline)
    assert (found["source"]["log_head"], found["source"]["published_offset"]) == (3, 3)
    assert found["source"]["unpublished"] == 1

    # applied; both scripts run
    with pipeline.running("producer.py"), pipeline.running("consumer.py"):
        pipeline.wait_until_equal()
        found = wait_until(lambda: (now := status(pipeline))["in_sync"] and now, what="in sync")
        shown = screen(pipeline)
        assert (found["source"]["rows"], found["destination"]["rows"]) == (3, 3)
        assert (found["source"]["unpublished"], lag(found), found["kafka"]["dead_letters"]) == (0, 0, 0)
        assert re.fullmatch(r"pid \d+ at \S+", found["source"]["active_producer"])
        (member,) = found["kafka"]["members"]
        assert [part["member"] for part in found["kafka"]["partitions"]] == [member] * 3
        assert sum(part["end_offset"] for part in found["kafka"]["partitions"]) == 3
        assert shown["consumer group"] == f"{pipeline.name}, 1 members"
        assert shown["active producer"] == found["source"]["active_producer"]
        assert shown["in sync"] == "yes"

        # and one that cannot be applied
        pipeline.send("no change")
        wait_until(lambda: status(pipeline)["kafka"]["dead_letters"] == 1, what="a dead letter")
        assert screen(pipeline)["dead letters"].startswith("1")


NOT_ANSWERING = {
    "source": ({"SOURCE_DATABASE_URL": "postgresql://postgres@localhost:1/none"}, "source at localhost:1: "),
    "kafka": ({"KAFKA_BOOTSTRAP_SERVERS": "localhost:1"}, "Kafka at localhost:1: "),
    "destination": (
        {"DESTINATION_DATABASE_URL": "postgresql://postgres@localhost:1/none"},
        "destination at localhost:1: ",
    ),
}


@pytest.mark.parametrize("stage", NOT_ANSWERING)
def test_status_of_a_stage_that_does_not_answer_is_an_error_beside_the_others(pipeline: Pipeline, stage: str) -> None:
    settings, said = NOT_ANSWERING[stage]
    pipeline.environment.update(settings)
    impatient = pipeline.sabotaged("import status, admin", "status.STATUS_WAIT = 1")
    result = pipeline.run(impatient, "status", "--json")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    found = json.loads(result.stdout)
    assert found[stage]["error"].startswith(said)
    assert "\n" not in found[stage]["error"]
    assert [other for other in NOT_ANSWERING if "error" in found[other]] == [stage]
    assert found["in_sync"] is False
    human = pipeline.run(impatient, "status", COLUMNS="200")
    assert human.returncode == 1
    assert said in human.stdout


def test_status_names_the_script_that_makes_what_is_missing(bare_pipeline: Pipeline) -> None:
    result = bare_pipeline.run("admin.py", "status", "--json")
    assert result.returncode == 1
    found = json.loads(result.stdout)
    assert found["source"]["error"].endswith("run python db_setup.py")
    assert found["kafka"]["error"] == f"topic {bare_pipeline.topic} does not exist; run python admin.py"
    assert found["destination"]["error"].endswith("run python db_setup.py")
    assert bare_pipeline.run("db_setup.py").returncode == 0
    query(bare_pipeline.source(), "DELETE FROM cdc_position")
    found = json.loads(bare_pipeline.run("admin.py", "status", "--json").stdout)
    assert found["source"]["error"].endswith("run python db_setup.py")


def test_status_shows_an_error_with_brackets_as_it_is(databases: Pipeline) -> None:
    url = databases.destination_url + "_[/b]"
    result = databases.run("admin.py", "status", COLUMNS="200", DESTINATION_DATABASE_URL=url)
    assert result.returncode == 1
    assert '_[/b]" does not exist' in result.stdout


# Kafka not answering


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
