"""admin.py dead-letters --replay: what could not be applied is sent again."""

from __future__ import annotations

from cdc import dead_letters
from harness.database import query
from harness.dead_letters import apply, insert, listed, output_of, send_dead_letters, waiting
from harness.kafka import client_settings
from harness.pipeline import Pipeline

import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType  # type: ignore[attr-defined]


def test_a_change_that_the_destination_refused_is_applied_by_replay_once_it_would_take_it(pipeline: Pipeline) -> None:
    destination = pipeline.destination()
    query(destination, "ALTER TABLE employees ADD CONSTRAINT known CHECK (city <> 'Atlantis')")
    query(pipeline.source(), "INSERT INTO employees (emp_id, city) VALUES (1, 'Rome'), (2, 'Atlantis')")
    pipeline.drain()
    assert query(destination, "SELECT emp_id FROM employees") == [(1,)]
    (letter,) = listed(pipeline)
    assert letter["employee"] == "2"
    assert "known" in letter["error"]
    assert waiting(pipeline) == 1

    query(destination, "ALTER TABLE employees DROP CONSTRAINT known")
    assert output_of(pipeline, "--replay") == "dead letters sent again: 1"
    assert waiting(pipeline) == 0
    assert listed(pipeline) == []
    apply(pipeline)
    assert pipeline.equal()
    assert output_of(pipeline, "--replay") == "dead letters sent again: 0"


def test_a_letter_that_is_still_bad_comes_back_once(pipeline: Pipeline) -> None:
    pipeline.send("nonsense", key="3")
    apply(pipeline)
    for _ in range(2):
        output_of(pipeline, "--replay")
        assert waiting(pipeline) == 0
        apply(pipeline)
        (letter,) = listed(pipeline)
        assert (letter["value"], letter["employee"]) == ("nonsense", "3")
    assert letter["origin"]["topic"] == pipeline.topic


def test_replay_keeps_keys_values_and_the_partition_of_the_employee(pipeline: Pipeline) -> None:
    query(pipeline.source(), "INSERT INTO employees (emp_id) SELECT generate_series(1, 30)")
    pipeline.drain()
    published = [(message.partition(), message.key(), message.value()) for message in pipeline.messages()]
    for _, key, value in published:
        send_dead_letters(pipeline, value, key=(key or b"").decode())
    send_dead_letters(pipeline, None, b"\xff\x00")
    output_of(pipeline, "--replay")
    now = [(message.partition(), message.key(), message.value()) for message in pipeline.messages()]
    assert sorted(message for message in now if message[1]) == sorted(2 * published)
    assert {message[2] for message in now if not message[1]} == {None, b"\xff\x00"}
    assert len(now) == 2 * len(published) + 2


def test_an_old_change_that_is_replayed_does_not_replace_a_newer_one(pipeline: Pipeline) -> None:
    pipeline.send(insert(5, 1, "new"), key="1")
    apply(pipeline)
    send_dead_letters(pipeline, insert(4, 1, "old"), key="1")
    output_of(pipeline, "--replay")
    apply(pipeline)
    assert query(pipeline.destination(), "SELECT city FROM employees") == [("new",)]
    assert waiting(pipeline) == 0


@pytest.mark.parametrize("moment", ["produce_all", "delete_before"])
def test_a_replay_that_is_killed_loses_no_letter(pipeline: Pipeline, moment: str) -> None:
    """Killed when it is about to send, or to delete, its second page."""
    letters = [insert(number, number) for number in range(1, 2 * dead_letters.PAGE + 50)]
    send_dead_letters(pipeline, *letters)
    killed = pipeline.sabotaged(
        "import admin",
        "from cdc import dead_letters",
        f"real, calls = dead_letters.{moment}, []",
        "def deadly(*arguments):",
        "    calls.append(1)",
        "    return os.kill(os.getpid(), signal.SIGKILL) if len(calls) == 2 else real(*arguments)",
        f"dead_letters.{moment} = deadly",
    )
    assert pipeline.run(killed, "dead-letters", "--replay").returncode == -9
    assert waiting(pipeline) == len(letters) - dead_letters.PAGE
    output_of(pipeline, "--replay")
    sent = [(message.value() or b"").decode() for message in pipeline.messages()]
    assert set(sent) == set(letters)
    assert len(sent) == len(letters) + (dead_letters.PAGE if moment == "delete_before" else 0)
    apply(pipeline)
    assert query(pipeline.destination(), "SELECT count(*) FROM employees") == [(len(letters),)]


def test_letters_that_come_during_a_replay_stay_for_the_next_one(pipeline: Pipeline) -> None:
    send_dead_letters(pipeline, *["early"] * (dead_letters.PAGE + 1))
    meanwhile = pipeline.sabotaged(
        "import admin",
        "from cdc import dead_letters",
        "real = dead_letters.produce_all",
        "def produce_all(producer, *arguments):",
        "    failures = real(producer, *arguments)",
        f"    producer.produce('{pipeline.topic}_dlq', 'late')",
        "    producer.flush()",
        "    return failures",
        "dead_letters.produce_all = produce_all",
    )
    said = pipeline.run(meanwhile, "dead-letters", "--replay").stdout
    assert said == f"dead letters sent again: {dead_letters.PAGE + 1}\n"
    assert [letter["value"] for letter in listed(pipeline)] == ["late", "late"]


def test_letters_that_kafka_refuses_stay(pipeline: Pipeline) -> None:
    send_dead_letters(pipeline, "x" * 5_000, "small")
    admin = AdminClient(client_settings())
    smaller = ConfigResource(
        ResourceType.TOPIC,
        pipeline.topic,
        incremental_configs=[ConfigEntry("max.message.bytes", "1000", incremental_operation=AlterConfigOpType.SET)],
    )
    for future in admin.incremental_alter_configs([smaller]).values():
        future.result()
    result = pipeline.run("admin.py", "dead-letters", "--replay")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    assert "too large" in result.stderr
    assert waiting(pipeline) == 2
