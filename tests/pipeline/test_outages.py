"""A server that is down for a while, a topic that is re-created: reported once, no dead letter, and on it goes."""

from __future__ import annotations

import itertools
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from harness.database import query
from harness.own_servers import bring_back, own_servers
from harness.pipeline import Pipeline
from harness.script import Script
from harness.waiting import wait_until
from stack import servers
from stack.servers import Server

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection

pytestmark = [pytest.mark.alone, pytest.mark.own_servers]

OFFSET = 2200  # of the ports of the servers here
GROWTH = 64 * 1024  # kB of memory that an outage may cost a script
ADDRESS = {"kafka": "Kafka at ", "source": "source at ", "destination": "destination at "}
SUFFERS = {"kafka": ["producer.py", "consumer.py"], "source": ["producer.py"], "destination": ["consumer.py"]}
OUTAGES = [  # what is down, for how many seconds, and how many seconds after its answer all must be in sync
    ("kafka", 20, 6.0),
    ("source", 3, 6.0),
    ("destination", 7, 6.0),
    *(
        pytest.param(down, seconds, 2.0, marks=[pytest.mark.long, pytest.mark.timing])
        for down, seconds in [("kafka", 60), ("source", 30), ("destination", 30)]
    ),
]

MARKERS = 40  # employees: enough of them for every partition
MARK = "UPDATE employees SET salary = %(mark)s WHERE emp_id <= 40"
MARKED = "SELECT count(*) FROM employees WHERE emp_id <= 40 AND salary = %(mark)s"

RECREATED = "THE TOPIC WAS RE-CREATED.*run python verify.py --repair"

numbers = itertools.count()


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    with own_servers(OFFSET, tmp_path_factory.mktemp("servers")) as found:
        yield found


@pytest.fixture
def unstarted(own: dict[str, Server], tmp_path: Path) -> Iterator[Pipeline]:
    servers.up(list(own.values()))  # whatever the test before left undone
    pipeline = Pipeline(f"cdc_outage_{next(numbers)}", tmp_path)
    pipeline.create()
    pipeline.set_up()
    yield pipeline
    pipeline.drop()


@pytest.fixture
def started(unstarted: Pipeline) -> Pipeline:
    """A pipeline that has carried its first changes; the consumer is one that a supervisor knows by its name."""
    unstarted.start("producer.py")
    unstarted.start("consumer.py", KAFKA_GROUP_INSTANCE_ID="one")
    with closing(psycopg2.connect(unstarted.source_url)) as source, source:
        query(source, "INSERT INTO employees (emp_id) SELECT generate_series(1, 1000)")
    unstarted.wait_until_equal()
    return unstarted


def seconds_until_in_sync(pipeline: Pipeline, patience: float = 60) -> float:
    """Change some employees now, and return how long it takes until they are seen at the destination."""
    began, mark = time.monotonic(), {"mark": next(numbers)}
    source, destination = pipeline.source(), pipeline.destination()
    query(source, MARK, mark)
    wait_until(lambda: query(destination, MARKED, mark) == [(MARKERS,)], patience, "in sync")
    return time.monotonic() - began


def write(pipeline: Pipeline, over: threading.Event) -> None:
    """Some 300 changes a second, whatever becomes of the connection."""
    connection: Connection | None = None
    for number in itertools.count():
        try:
            if connection is None:
                connection = psycopg2.connect(pipeline.source_url)
                connection.autocommit = True
            query(connection, f"UPDATE employees SET city = '{number}' WHERE emp_id % 300 = {number % 300}")
        except psycopg2.Error:
            connection = None
        if over.wait(0.01):
            break
    if connection:
        connection.close()


def memory(script: Script) -> int:
    """Resident memory in kB."""
    found = subprocess.run(["ps", "-o", "rss=", "-p", str(script.process.pid)], capture_output=True, text=True)
    return int(found.stdout)


def lines(script: Script, pattern: str, start: int = 0) -> list[str]:
    return [line for line in script.output()[start:].splitlines() if re.search(pattern, line)]


@pytest.mark.parametrize(("down", "seconds", "at_once"), OUTAGES)
def test_an_outage_is_reported_once_and_over_at_once(
    own: dict[str, Server], started: Pipeline, down: str, seconds: float, at_once: float
) -> None:
    scripts = dict(zip(("producer.py", "consumer.py"), started.scripts, strict=True))
    before = {name: len(script.output()) for name, script in scripts.items()}
    used = {name: memory(script) for name, script in scripts.items()}
    over = threading.Event()
    writer = threading.Thread(target=write, args=(started, over))
    writer.start()
    try:
        servers.kill(own[down])
        time.sleep(seconds)
        bring_back(own[down], started.topic)
        took = seconds_until_in_sync(started, patience=30)
    finally:
        over.set()
        writer.join()
    started.wait_until_equal()
    print(f"{down} down for {seconds} s: in sync after {took:.1f} s")
    for name, script in scripts.items():
        grown = memory(script) - used[name]
        assert grown < GROWTH, f"{name} grew by {grown} kB"
        assert "Traceback" not in script.output()
    if down == "destination":
        assert not lines(scripts["consumer.py"], "partitions revoked"), "the group must keep the consumer"
    assert started.dead_letters() == []
    assert took < at_once
    for name, script in scripts.items():
        said, back = (lines(script, what, before[name]) for what in ("; waiting$", "answers again$"))
        once = 1 if name in SUFFERS[down] else 0
        assert (len(said), len(back)) == (once, once), said + back
        assert all(ADDRESS[down] in line for line in said + back)


@pytest.mark.parametrize("down", [["kafka"], ["source", "destination"]], ids="-".join)
def test_while_servers_are_down_sigterm_ends_the_scripts_and_new_ones_wait(
    own: dict[str, Server], started: Pipeline, down: list[str]
) -> None:
    over = threading.Event()
    writer = threading.Thread(target=write, args=(started, over))
    writer.start()
    started.start("producer.py")
    started.scripts[-1].wait_for("standing by")
    try:
        for name in down:
            servers.kill(own[name])
        time.sleep(0.5)  # the scripts are in the middle of trying
        for script in started.scripts:
            assert script.stop(seconds=8) == 0, script.output()
        new = [started.start("producer.py"), started.start("consumer.py", KAFKA_GROUP_INSTANCE_ID="one")]
        time.sleep(1)
    finally:
        over.set()
        writer.join()
        for name in down:
            bring_back(own[name], started.topic)
    seconds_until_in_sync(started)
    assert started.equal()
    assert [script.process.poll() for script in new] == [None, None]
    assert not any("Traceback" in script.output() for script in started.scripts)


def recreate_topic(pipeline: Pipeline) -> None:
    for arguments in (("delete", "--yes"), ("create",)):
        result = pipeline.run("admin.py", *arguments)
        assert result.returncode == 0, result.stdout + result.stderr


def test_a_topic_re_created_under_a_running_pipeline_is_reported_and_carries_what_follows(started: Pipeline) -> None:
    over = threading.Event()
    writer = threading.Thread(target=write, args=(started, over))
    writer.start()
    try:
        for times in (1, 2):
            recreate_topic(started)
            wait_until(lambda: len(lines(started.scripts[1], RECREATED)) == times, 5, RECREATED)  # noqa: B023
            assert seconds_until_in_sync(started) < 10
    finally:
        over.set()
        writer.join()
    time.sleep(1)
    result = started.run("verify.py", "--repair", "--wait", "3")  # what was in the old topic unread is gone with it
    assert result.returncode == 0, result.stdout + result.stderr
    assert started.equal()
    assert started.dead_letters() == []
    for script in started.scripts:
        assert script.process.poll() is None
        assert "Traceback" not in script.output()


def test_a_topic_re_created_while_the_consumer_was_busy_is_read_from_its_first_message(started: Pipeline) -> None:
    source, consumer = started.source(), started.scripts[1]
    for number in range(5):
        query(source, f"UPDATE employees SET city = '{number}'")
    started.wait_until_equal()
    consumer.process.send_signal(signal.SIGSTOP)
    try:
        recreate_topic(started)
        query(source, "UPDATE employees SET city = 'published at once' WHERE emp_id <= 100")
        for number in range(10):
            query(source, f"UPDATE employees SET city = 'more {number}' WHERE emp_id > 100")
        wait_until(lambda: len(started.messages()) == 9100)
    finally:
        consumer.process.send_signal(signal.SIGCONT)
    started.wait_until_equal(6)


def test_messages_that_are_lost_with_their_topic_are_sent_again_by_verify_repair(started: Pipeline) -> None:
    source, consumer = started.source(), started.scripts[1]
    consumer.stop()
    query(source, "UPDATE employees SET city = 'lost with the topic' WHERE emp_id <= 500")
    wait_until(lambda: len(started.messages()) == 1500)
    recreate_topic(started)
    started.start("consumer.py", KAFKA_GROUP_INSTANCE_ID="one")
    seconds_until_in_sync(started)
    assert not started.equal()
    result = started.run("verify.py", "--repair", "--wait", "3")
    assert result.returncode == 0, result.stdout + result.stderr
    assert started.equal()
