"""admin.py status: its forms for people, cron and a terminal, at any width, and in time whatever does not answer."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import closing, suppress

from harness import ROOT
from harness.database import query
from harness.pipeline import Pipeline
from harness.showing import screen, status_of
from harness.waiting import wait_until

import pytest

STAGES = ("source", "log", "producer", "topic", "partition 0", "group", "dead letters", "destination", "comparison")


@pytest.mark.parametrize("width", [40, 80, 120])
def test_it_fits_the_terminal_and_begins_with_the_answer(shared: Pipeline, width: int) -> None:
    result = shared.run("admin.py", "status", COLUMNS=str(width))
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("in sync: ")
    assert max(map(len, lines)) <= width
    for stage in STAGES:
        assert any(line.strip().startswith(stage) for line in lines), stage
    text = " ".join(result.stdout.split())
    assert "! no producer is active: start python producer.py" in text


def test_a_topic_of_many_partitions_is_shown_by_the_worst_of_them(pipeline: Pipeline) -> None:
    assert pipeline.run("admin.py", "create", "--partitions", "30").returncode == 0
    pipeline.send("a message", partition=25)
    shown = screen(pipeline)
    assert len([stage for stage in shown if re.fullmatch(r"partition \d+", stage)]) == 12
    assert shown["partitions"] == "18 more"
    assert re.fullmatch(r"1 message; 1 oldest \d+\.\d s; no consumer", shown["partition 25"])


def test_what_takes_long_to_count_is_estimated(shared: Pipeline) -> None:
    slow = shared.sabotaged(
        "import admin",
        "from cdc.status import stages",
        "stages.COUNT_EMPLOYEES += ', pg_sleep(10)'; stages.COUNT_WAIT = '300ms'",
    )
    query(shared.source(), "INSERT INTO employees (city) VALUES ('Oslo'), ('Rome'), ('Wien'); ANALYZE employees")
    shared.drain()
    found = status_of(shared, slow)
    assert (found["source"]["rows"], found["source"]["rows_estimated"]) == (3, True)
    assert found["destination"]["rows_estimated"] is True
    assert found["in_sync"] is True  # as far as anybody knows: the numbers of rows are not compared
    assert shared.run(slow, "status", COLUMNS="200").stdout.count("rows, estimated") == 2


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that lets everybody in and says nothing."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield server.getsockname()[1]


@pytest.mark.timing
def test_whatever_does_not_answer_it_is_done_within_8_seconds(shared: Pipeline, silent_port: int) -> None:
    url = f"postgresql://postgres:x@localhost:{silent_port}/none"
    kafka, started = f"localhost:{silent_port}", time.monotonic()
    check = shared.run(
        *("admin.py", "status", "--check"),
        SOURCE_DATABASE_URL=url,
        DESTINATION_DATABASE_URL=url,
        KAFKA_BOOTSTRAP_SERVERS=kafka,
    )
    assert time.monotonic() - started < 8
    assert (check.returncode, check.stdout.count("\n"), check.stderr) == (1, 1, "")
    for server in ("source", "destination", "Kafka"):
        assert f"{server} at localhost:{silent_port} does not answer" in check.stdout


def test_check_is_one_line_and_exit_0_if_all_is_well(shared_running: Pipeline) -> None:
    query(shared_running.source(), "INSERT INTO employees (city) VALUES ('Bern')")
    shared_running.wait_until_equal()
    wait_until(lambda: status_of(shared_running)["in_sync"], what="in sync")
    check = shared_running.run("admin.py", "status", "--check", "--max-delay", "30")
    assert (check.returncode, check.stdout, check.stderr) == (0, "OK: in sync\n", "")


@pytest.mark.parametrize(
    "options",
    [("--max-delay", "5"), ("--check", "--json"), ("--check", "--max-delay", "nan")],
)
def test_wrong_use_is_refused(shared: Pipeline, options: tuple[str, ...]) -> None:
    result = shared.run("admin.py", "status", *options)
    assert (result.returncode, result.stdout) == (2, "")


def test_watch_without_a_terminal_is_refused_in_one_line(shared: Pipeline) -> None:
    result = shared.run("admin.py", "status", "--watch")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "--watch draws on a terminal; without one take --json or --check\n"


@pytest.mark.parametrize(
    ("width", "encoding", "shown", "bar"),
    [(40, "utf-8", "a second: ", "█"), (80, "ascii", "last minutes", "#"), (120, "utf-8", "who, or what to do", "█")],
)
def test_watch_redraws_rates_and_courses_until_ctrl_c(
    shared_running: Pipeline, width: int, encoding: str, shown: str, bar: str
) -> None:
    terminal, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    environment = {**os.environ, **shared_running.environment, "TERM": "xterm-256color", "PYTHONIOENCODING": encoding}
    environment.pop("COLUMNS", None)
    command = [sys.executable, str(ROOT / "admin.py"), "status", "--watch"]
    process = subprocess.Popen(command, env=environment, stdin=inner, stdout=inner, stderr=inner)
    os.close(inner)
    drawn, changes, end = "", shared_running.source(), time.monotonic() + 20
    while time.monotonic() < end and not (drawn.count("in sync") >= 2 and shown in drawn and bar in drawn):
        query(changes, "INSERT INTO employees (city) SELECT 'busy' FROM generate_series(1, 500)")
        if select.select([terminal], [], [], 0.1)[0]:
            drawn += os.read(terminal, 65536).decode(errors="replace")
    process.send_signal(signal.SIGINT)
    with suppress(OSError):  # the terminal's end
        while more := os.read(terminal, 65536):
            drawn += more.decode(errors="replace")
    os.close(terminal)
    assert process.wait(5) == 0
    assert shown in drawn
    assert bar in drawn, "changes that waited at one of the looks"
    assert "\\u" not in drawn
    assert drawn.count("in sync") >= 2
    assert "Traceback" not in drawn
    assert drawn.rstrip().endswith("\x1b[?1049l"), "the terminal is as it was"
