"""admin.py dead-letters: what could not be applied is listed, or let go, and never lost by accident."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import subprocess
import sys
import termios

from cdc import dead_letters
from harness import ROOT
from harness.dead_letters import apply, listed, output_of, send_dead_letters, waiting
from harness.kafka import client_settings
from harness.pipeline import Pipeline
from harness.script import PEAK

import pytest
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]


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


@pytest.mark.parametrize("width", [40, 80, 120])
def test_letters_fit_the_terminal_as_blocks_below_100_columns(shared: Pipeline, width: int) -> None:
    if not shared.dead_letters():
        send_dead_letters(
            shared, "a value of " + "x" * 100, key="7", headers=[("error", "no change at all"), ("topic", "somewhere")]
        )
    lines = output_of(shared, width=width).splitlines()
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    for shown in ("7", "no change at all", "somewhere", "a value of", "xxx…"):
        assert shown in text
    blocks = [line for line in lines if line.startswith("  employee 7")]
    assert len(blocks) == (0 if width == 120 else 1)
    assert any(line.startswith("┃ when") for line in lines) == (width == 120)


def test_letters_of_strangers_are_listed_too(pipeline: Pipeline) -> None:
    send_dead_letters(pipeline, None, b"\xff\x00[/red]\x1b[2J", timestamp=2**60)
    send_dead_letters(
        pipeline, "x", key="[bold]", headers=[("error", None), ("partition", b"\xfe"), ("error", b"twice")]
    )
    first, second, third = listed(pipeline)
    assert first["value"] is first["employee"] is first["error"] is first["when"] is None
    assert second["value"] == "\\xff\x00[/red]\x1b[2J"
    assert (third["employee"], third["error"], third["origin"]["partition"]) == ("[bold]", "twice", "\\xfe")
    table = output_of(pipeline)
    assert "[/red]" in table
    assert "[bold]" in table
    assert "\x1b" not in table


def test_where_there_are_none_it_says_so(pipeline: Pipeline) -> None:
    for options in ((), ("--discard",)):
        assert output_of(pipeline, *options) == "no dead letters"
    assert output_of(pipeline, "--replay") == "dead letters sent again: 0"
    assert listed(pipeline) == []


def test_the_table_cuts_long_values_and_long_lists_and_json_gives_all(pipeline: Pipeline) -> None:
    values = [f"{number:03}" + "x" * 500 for number in range(dead_letters.MAX_LISTED + 70)]
    send_dead_letters(pipeline, *values)
    table = output_of(pipeline)
    assert "x…" in table
    assert "x" * 100 not in table
    assert "049x" in table
    assert "050x" not in table
    assert table.endswith("and 70 more")
    assert [letter["value"] for letter in listed(pipeline)] == values


def test_a_dead_letter_topic_of_several_partitions_is_handled_whole(bare_pipeline: Pipeline) -> None:
    admin = AdminClient(client_settings())
    for future in admin.create_topics([NewTopic(f"{bare_pipeline.topic}_dlq", 3, 1)]).values():
        future.result()
    bare_pipeline.set_up()
    for number in range(9):
        send_dead_letters(bare_pipeline, str(number), partition=number % 3)
    assert sorted(letter["value"] for letter in listed(bare_pipeline)) == list("012345678")
    assert output_of(bare_pipeline, "--replay") == "dead letters sent again: 9"
    assert waiting(bare_pipeline) == 0
    assert len(bare_pipeline.messages()) == 9


def test_discard_deletes_without_asking_only_if_told_so(pipeline: Pipeline) -> None:
    send_dead_letters(pipeline, "a", "b")
    result = pipeline.run("admin.py", "dead-letters", "--discard")
    assert result.returncode == 2
    assert "--yes" in result.stderr
    assert waiting(pipeline) == 2
    assert output_of(pipeline, "--discard", "--yes") == "dead letters deleted: 2"
    assert waiting(pipeline) == 0
    assert listed(pipeline) == []


@pytest.mark.parametrize(
    ("answer", "code", "left"), [("n\n", 1, 2), ("\n", 1, 2), ("\x04", 1, 2), ("\x03", 1, 2), ("y\n", 0, 1)]
)
def test_discard_asks_on_a_terminal_and_deletes_what_was_there_when_it_asked(
    pipeline: Pipeline, answer: str, code: int, left: int
) -> None:
    send_dead_letters(pipeline, "first")
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
    send_dead_letters(pipeline, "second")
    os.write(terminal, answer.encode())
    with contextlib.suppress(OSError):  # the terminal's end
        while more := os.read(terminal, 1000):
            said += more
    os.close(terminal)
    assert process.wait(20) == code
    assert b"Delete 1 dead letter?" in said
    assert b"Traceback" not in said
    assert waiting(pipeline) == left


def test_wrong_use_is_refused(pipeline: Pipeline) -> None:
    for options in (("--replay", "--discard"), ("--json", "--replay"), ("--all",), ("7",)):
        assert pipeline.run("admin.py", "dead-letters", *options).returncode == 2, options


def test_where_kafka_or_a_topic_is_missing_it_says_so_and_exits_1(bare_pipeline: Pipeline) -> None:
    result = bare_pipeline.run("admin.py", "dead-letters")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"topic {bare_pipeline.topic} does not exist; run python admin.py\n"
    impatient = bare_pipeline.sabotaged("import admin", "from cdc import dead_letters", "dead_letters.ANSWER_WAIT = 1")
    result = bare_pipeline.run(impatient, "dead-letters", "--json", KAFKA_BOOTSTRAP_SERVERS="localhost:1")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("Kafka at localhost:1: ")
    assert result.stderr.count("\n") == 1


def test_memory_stays_bounded_with_many_large_letters(pipeline: Pipeline) -> None:
    send_dead_letters(pipeline, *(["x" * 20_000] * 10_000))
    measured = pipeline.sabotaged("import admin", *PEAK)
    for options in (("--json",), ("--replay",)):
        result = pipeline.run(measured, "dead-letters", *options)
        assert result.returncode == 0, result.stderr
        assert int(result.stderr.splitlines()[-1]) < 130_000, options
    assert waiting(pipeline) == 0
