"""Servers that are there and do not answer: said in time, no hindrance for a signal, and over by themselves."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from harness.database import query
from harness.own_servers import led, own_servers
from harness.pipeline import Pipeline, new_pipeline
from harness.script import Script
from harness.waiting import wait_until
from stack import servers
from stack.servers import Server

import pytest

pytestmark = [pytest.mark.alone, pytest.mark.long]

OFFSET = 4300  # of the ports of the servers here
SAID_WITHIN = 11.0
ENDED_WITHIN = 5.0


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    with own_servers(OFFSET, tmp_path_factory.mktemp("servers")) as found:
        yield found


@pytest.fixture
def carrying(own: dict[str, Server], tmp_path: Path) -> Iterator[Pipeline]:
    """A pipeline that has carried its first change: scripts 0 and 1 are the producer and the consumer."""
    with new_pipeline(tmp_path) as pipeline:
        pipeline.set_up()
        pipeline.start("producer.py")
        pipeline.start("consumer.py", KAFKA_GROUP_INSTANCE_ID="one")
        query(pipeline.source(), "INSERT INTO employees (emp_id, salary) VALUES (1, 0)")
        pipeline.wait_until_equal()
        yield pipeline


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text("ascii").split()]


@contextmanager
def frozen(server: Server, topic: str) -> Iterator[None]:
    """The server's process and those that it has started stand still.

    The server's own first: from then on none of the others comes, and none that ends is gone before it is stopped.
    """
    first = servers.pid(server)
    assert first
    os.kill(first, signal.SIGSTOP)
    try:
        for child in children(first):
            os.kill(child, signal.SIGSTOP)
        yield
    finally:
        for process in [first, *children(first)]:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)
        if server.kind == "kafka":
            time.sleep(5)  # it registers at ZooKeeper again
        wait_until(lambda: led(topic), 60, "Kafka is back")


def end(script: Script) -> int:
    started = time.monotonic()
    code = script.stop()
    assert time.monotonic() - started < ENDED_WITHIN, script.output()
    assert "Traceback" not in script.output()
    return code


@pytest.mark.parametrize("name", ["source", "kafka", "destination"])
def test_scripts_beside_a_frozen_server_end_in_time_at_a_signal(
    own: dict[str, Server], carrying: Pipeline, name: str
) -> None:
    with frozen(own[name], carrying.topic):
        others = [carrying.start(script) for script in ("verify.py", "test_cdc.py", "db_setup.py")]
        status = carrying.start("admin.py", "status")
        time.sleep(4)
        for script in [*others, status]:
            end(script)
        codes = [end(script) for script in carrying.scripts[:2]]
    if name == "kafka":  # they have nothing in hand
        assert codes == [0, 0], carrying.scripts[1].output()
    servers.wait(own[name])


@pytest.mark.parametrize("name", ["source", "destination"])
def test_a_frozen_database_is_reported_in_time_and_nothing_is_lost(
    own: dict[str, Server], carrying: Pipeline, name: str
) -> None:
    source = carrying.source()
    script = carrying.scripts[0 if name == "source" else 1]
    with frozen(own[name], carrying.topic):
        if name == "destination":
            query(source, "UPDATE employees SET salary = 2")
        script.wait_for(f"{name} at", SAID_WITHIN)
        time.sleep(3)
        assert script.output().count("waiting") == 1, script.output()
    query(source, "UPDATE employees SET salary = 3")
    carrying.wait_until_equal(60)
    assert [end(script) for script in carrying.scripts] == [0, 0]


def test_a_frozen_kafka_is_reported_in_time_while_a_page_waits_and_no_standby_takes_over(
    own: dict[str, Server], carrying: Pipeline
) -> None:
    source, standby = carrying.source(), carrying.start("producer.py")
    standby.wait_for("standing by")
    with frozen(own["kafka"], carrying.topic):
        query(source, "UPDATE employees SET salary = 2")
        for script in carrying.scripts[:2]:
            script.wait_for("Kafka at", SAID_WITHIN)
        time.sleep(25)  # longer than a producer may do nothing
        for script in carrying.scripts[:2]:
            assert script.output().count("waiting") == 1, script.output()
    query(source, "UPDATE employees SET salary = 3")
    carrying.wait_until_equal(60)
    assert "ended" not in standby.output()
    for script in carrying.scripts[:2]:
        script.wait_for("answers again")
        assert script.output().count("waiting") == 1, script.output()
    assert [end(script) for script in carrying.scripts] == [0, 0, 0]
