"""admin.py dead-letters: what could not be applied is listed, sent again, or let go, and never lost by accident."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import subprocess
import sys
import termios
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)

import dead_letters
from employee import CDCRecord
from harness import ROOT
from harness.database import query
from harness.kafka import client_settings
from harness.pipeline import Pipeline

PEAK = (  # the peak of the script's memory in kB, for Pipeline.sabotaged()
    "import atexit",
    "atexit.register(lambda: print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0], file=sys.stderr))",
)


def bury(pipeline: Pipeline, *values: bytes | str | None, key: str | None = None, **options: Any) -> None:
    """Put letters into the dead-letter topic, as a stranger would: without headers."""
    producer = Producer({**client_settings(), "compression.type": "lz4"})
    for value in values:
        producer.produce(f"{pipeline.topic}_dlq", value, key, **options)
        producer.poll(0)
    assert producer.flush(30) == 0


def listed(pipeline: Pipeline) -> list[dict[str, Any]]:
    result = pipeline.run("admin.py", "dead-letters", "--json")
    assert result.returncode == 0, result.stderr
    letters: list[dict[str, Any]] = json.loads(result.stdout)
    return letters


def waiting(pipeline: Pipeline) -> int:
    """How many dead letters `status` counts."""
    return int(json.loads(pipeline.run("admin.py", "status", "--json").stdout)["kafka"]["dead_letters"])


def told(pipeline: Pipeline, *options: str) -> str:
    """What the command says when it succeeds."""
    result = pipeline.run("admin.py", "dead-letters", *options)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    return str(result.stdout).strip()


def apply(pipeline: Pipeline) -> None:
    result = pipeline.run("consumer.py", "--once")
    assert result.returncode == 0, result.stdout + result.stderr


def insert(cdc_id: int, emp_id: int, city: str = "Rome") -> str:
    return CDCRecord(cdc_id, emp_id, city=city, action="INSERT").to_json()


def test_a_bad_message_is_listed_with_its_employee_error_and_origin(pipeline: Pipeline) -> None:
    pipeline.send("not JSON", key="7", partition=1)
    apply(pipeline)
    (letter,) = listed(pipeline)
    assert letter["when"].startswith("20")
    assert (letter["employee"], letter["value"]) == ("7", "not JSON")
    assert letter["origin"] == {"topic": pipeline.topic, "partition": "1", "offset": "0"}
    assert letter["error"].startswith("not JSON: ")
    table = pipeline.run("admin.py", "dead-letters", COLUMNS="200").stdout
    for shown in ("7", f"{pipeline.topic}/1/0", letter["when"], letter["error"]):
        assert shown in table


def test_letters_of_strangers_are_listed_too(pipeline: Pipeline) -> None:
    bury(pipeline, None, b"\xff\x00[/red]\x1b[2J", timestamp=2**60)
    bury(pipeline, "x", key="[bold]", headers=[("error", None), ("partition", b"\xfe"), ("error", b"twice")])
    first, second, third = listed(pipeline)
    assert first["value"] is first["employee"] is first["error"] is first["when"] is None
    assert second["value"] == "\\xff\x00[/red]\x1b[2J"
    assert (third["employee"], third["error"], third["origin"]["partition"]) == ("[bold]", "twice", "\\xfe")
    table = told(pipeline)
    assert "[/red]" in table
    assert "[bold]" in table
    assert "\x1b" not in table


def test_where_there_are_none_it_says_so(pipeline: Pipeline) -> None:
    for options in ((), ("--discard",)):
        assert told(pipeline, *options) == "no dead letters"
    assert told(pipeline, "--replay") == "dead letters sent again: 0"
    assert listed(pipeline) == []


def test_the_table_cuts_long_values_and_long_lists_and_json_gives_all(pipeline: Pipeline) -> None:
    values = [f"{number:03}" + "x" * 500 for number in range(dead_letters.LISTED + 70)]
    bury(pipeline, *values)
    table = told(pipeline)
    assert "x…" in table
    assert "x" * 100 not in table
    assert "049x" in table
    assert "050x" not in table
    assert table.endswith("and 70 more")
    assert [letter["value"] for letter in listed(pipeline)] == values


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
    assert told(pipeline, "--replay") == "dead letters sent again: 1"
    assert waiting(pipeline) == 0
    assert listed(pipeline) == []
    apply(pipeline)
    assert pipeline.equal()
    assert told(pipeline, "--replay") == "dead letters sent again: 0"


def test_a_letter_that_is_still_bad_comes_back_once(pipeline: Pipeline) -> None:
    pipeline.send("nonsense", key="3")
    apply(pipeline)
    for _ in range(2):
        told(pipeline, "--replay")
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
        bury(pipeline, value, key=(key or b"").decode())
    bury(pipeline, None, b"\xff\x00")
    told(pipeline, "--replay")
    now = [(message.partition(), message.key(), message.value()) for message in pipeline.messages()]
    assert sorted(message for message in now if message[1]) == sorted(2 * published)
    assert {message[2] for message in now if not message[1]} == {None, b"\xff\x00"}
    assert len(now) == 2 * len(published) + 2


def test_an_old_change_that_is_replayed_does_not_replace_a_newer_one(pipeline: Pipeline) -> None:
    pipeline.send(insert(5, 1, "new"), key="1")
    apply(pipeline)
    bury(pipeline, insert(4, 1, "old"), key="1")
    told(pipeline, "--replay")
    apply(pipeline)
    assert query(pipeline.destination(), "SELECT city FROM employees") == [("new",)]
    assert waiting(pipeline) == 0


@pytest.mark.parametrize("moment", ["send", "forget"])
def test_a_replay_that_is_killed_loses_no_letter(pipeline: Pipeline, moment: str) -> None:
    """Killed when it is about to send, or to delete, its second page."""
    letters = [insert(number, number) for number in range(1, 2 * dead_letters.PAGE + 50)]
    bury(pipeline, *letters)
    killed = pipeline.sabotaged(
        "import admin",
        "import dead_letters",
        f"real, calls = dead_letters.{moment}, []",
        "def deadly(*arguments):",
        "    calls.append(1)",
        "    os.kill(os.getpid(), signal.SIGKILL) if len(calls) == 2 else real(*arguments)",
        f"dead_letters.{moment} = deadly",
    )
    assert pipeline.run(killed, "dead-letters", "--replay").returncode == -9
    assert waiting(pipeline) == len(letters) - dead_letters.PAGE
    told(pipeline, "--replay")
    sent = [(message.value() or b"").decode() for message in pipeline.messages()]
    assert set(sent) == set(letters)
    assert len(sent) == len(letters) + (dead_letters.PAGE if moment == "forget" else 0)
    apply(pipeline)
    assert query(pipeline.destination(), "SELECT count(*) FROM employees") == [(len(letters),)]


def test_letters_that_come_during_a_replay_stay_for_the_next_one(pipeline: Pipeline) -> None:
    bury(pipeline, *["early"] * (dead_letters.PAGE + 1))
    meanwhile = pipeline.sabotaged(
        "import admin",
        "import dead_letters",
        "real = dead_letters.send",
        "def send(producer, page):",
        "    real(producer, page)",
        f"    producer.produce('{pipeline.topic}_dlq', 'late')",
        "    producer.flush()",
        "dead_letters.send = send",
    )
    said = pipeline.run(meanwhile, "dead-letters", "--replay").stdout
    assert said == f"dead letters sent again: {dead_letters.PAGE + 1}\n"
    assert [letter["value"] for letter in listed(pipeline)] == ["late", "late"]


def test_letters_that_kafka_refuses_stay(pipeline: Pipeline) -> None:
    bury(pipeline, "x" * 5_000, "small")
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


def test_a_dead_letter_topic_of_several_partitions_is_handled_whole(bare_pipeline: Pipeline) -> None:
    admin = AdminClient(client_settings())
    for future in admin.create_topics([NewTopic(f"{bare_pipeline.topic}_dlq", 3, 1)]).values():
        future.result()
    bare_pipeline.set_up()
    for number in range(9):
        bury(bare_pipeline, str(number), partition=number % 3)
    assert sorted(letter["value"] for letter in listed(bare_pipeline)) == list("012345678")
    assert told(bare_pipeline, "--replay") == "dead letters sent again: 9"
    assert waiting(bare_pipeline) == 0
    assert len(bare_pipeline.messages()) == 9


def test_discard_deletes_without_asking_only_if_told_so(pipeline: Pipeline) -> None:
    bury(pipeline, "a", "b")
    result = pipeline.run("admin.py", "dead-letters", "--discard")
    assert result.returncode == 2
    assert "--yes" in result.stderr
    assert waiting(pipeline) == 2
    assert told(pipeline, "--discard", "--yes") == "dead letters deleted: 2"
    assert waiting(pipeline) == 0
    assert listed(pipeline) == []


@pytest.mark.parametrize(
    ("answer", "code", "left"), [("n\n", 1, 2), ("\n", 1, 2), ("\x04", 1, 2), ("\x03", 1, 2), ("y\n", 0, 1)]
)
def test_discard_asks_on_a_terminal_and_deletes_what_was_there_when_it_asked(
    pipeline: Pipeline, answer: str, code: int, left: int
) -> None:
    bury(pipeline, "first")
    terminal, inner = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "admin.py"), "dead-letters", "--discard"],
        env={**os.environ, **pipeline.environment},
        stdin=inner,
        stdout=inner,
        stderr=inner,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C is a signal
    )
    os.close(inner)
    said = b""
    while b"[y/N]" not in said:
        said += os.read(terminal, 1000)
    bury(pipeline, "second")
    os.write(terminal, answer.encode())
    with contextlib.suppress(OSError):  # the terminal's end
        while more := os.read(terminal, 1000):
            said += more
    os.close(terminal)
    assert process.wait(20) == code
    assert b"Delete 1 dead letters?" in said
    assert b"Traceback" not in said
    assert waiting(pipeline) == left


def test_wrong_use_is_refused(pipeline: Pipeline) -> None:
    for options in (("--replay", "--discard"), ("--json", "--replay"), ("--all",), ("7",)):
        assert pipeline.run("admin.py", "dead-letters", *options).returncode == 2, options


def test_where_kafka_or_a_topic_is_missing_it_says_so_and_exits_1(bare_pipeline: Pipeline) -> None:
    result = bare_pipeline.run("admin.py", "dead-letters")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"topic {bare_pipeline.topic} does not exist; run python admin.py\n"
    result = bare_pipeline.run("admin.py", "dead-letters", "--json", KAFKA_BOOTSTRAP_SERVERS="localhost:1")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("Kafka at localhost:1: ")
    assert result.stderr.count("\n") == 1


def test_memory_stays_bounded_with_many_large_letters(pipeline: Pipeline) -> None:
    bury(pipeline, *(["x" * 20_000] * 10_000))
    measured = pipeline.sabotaged("import admin", *PEAK)
    for options in (("--json",), ("--replay",)):
        result = pipeline.run(measured, "dead-letters", *options)
        assert result.returncode == 0, result.stderr
        assert int(result.stderr) < 130_000, options
    assert waiting(pipeline) == 0
