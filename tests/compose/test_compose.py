"""docker-compose.yml: what a user does with it, in this order, and what may happen to it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import config
from harness.database import query
from harness.script import Script
from harness.waiting import wait_until
from tests.compose.compose import ONE_MACHINE, destination, docker, run_script, source, start_script, wait_until_equal

import pytest

pytestmark = pytest.mark.compose

INSERT = "INSERT INTO employees (city, salary) SELECT %(city)s, n FROM generate_series(1, %(rows)s) AS n"
SERVERS = {"zookeeper", "kafka", "source", "destination"}


@pytest.fixture(scope="module", autouse=True)
def volumes(engine: None) -> Iterator[None]:
    """No data at first, and none left at the end."""
    ONE_MACHINE.down("-v", "--remove-orphans")
    yield
    ONE_MACHINE.down("-v")


@pytest.fixture
def scripts(tmp_path: Path) -> Iterator[dict[str, Script]]:
    """Producer and consumer on this machine."""
    running = {name: start_script(name, tmp_path) for name in ("producer.py", "consumer.py")}
    yield running
    for script in running.values():
        script.stop()


def insert(city: str, rows: int) -> None:
    with closing(source()) as connection:
        query(connection, INSERT, {"city": city, "rows": rows})


def stopped(script: Script) -> int:
    """Stop a script; returns the number of changes that it says it has moved."""
    assert script.stop() == 0, script.output()
    (count,) = re.findall(r"([\d,]+) changes in all", script.output())
    return int(count.replace(",", ""))


def test_all_is_healthy_at_the_first_try_and_the_scripts_may_be_started_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    started = time.monotonic()
    ONE_MACHINE.up()
    up = time.monotonic() - started
    run_script("db_setup.py")
    run_script("admin.py")
    ready = time.monotonic() - started
    ONE_MACHINE.wait_until_healthy()
    with capsys.disabled():
        print(
            f"\nup -d took {up:.0f} s, db_setup.py and admin.py started at once had ended after {ready:.0f} s, "
            f"all was healthy after {time.monotonic() - started:.0f} s"
        )
    containers = ONE_MACHINE.containers()
    assert containers.keys() == SERVERS
    assert {name: container["RestartCount"] for name, container in containers.items()} == dict.fromkeys(SERVERS, 0)


def test_the_steps_of_readme_end_with_pass(scripts: dict[str, Script]) -> None:
    assert "PASS" in run_script("test_cdc.py")
    assert '"in_sync": true' in run_script("admin.py", "status", "--json")


def test_a_change_soon_after_another_arrives_as_soon(
    scripts: dict[str, Script], capsys: pytest.CaptureFixture[str]
) -> None:
    """Unlike the servers of stack/, these have JIT: without NO_JIT a change waited 40 ms for the one before."""

    def arrival(number: int) -> float:
        started = time.monotonic()
        query(one, "INSERT INTO employees (salary) VALUES (%(number)s)", {"number": number})
        while query(other, "SELECT 1 FROM employees WHERE salary = %(number)s", {"number": number}) == []:
            time.sleep(0.002)
        return (time.monotonic() - started) * 1000

    wait_until_equal()
    with closing(source()) as one, closing(destination()) as other:
        arrival(0)
        assert query(one, "SELECT pg_jit_available()") == [(True,)]
        milliseconds = sorted(arrival(number) for number in range(1, 51))
        query(one, "TRUNCATE employees")
    with capsys.disabled():
        print(
            f"\none change after the other: half arrived within {milliseconds[25]:.1f} ms, all {milliseconds[-1]:.1f}"
        )
    assert milliseconds[25] < 20


def test_only_this_machine_reaches_the_ports_and_no_server_may_take_all_its_memory() -> None:
    for name, container in ONE_MACHINE.containers().items():
        bindings = [binding for port in container["HostConfig"]["PortBindings"].values() for binding in port]
        assert {binding["HostIp"] for binding in bindings} == {"127.0.0.1"}, name
        assert container["HostConfig"]["Memory"] > 0, name


def test_other_containers_reach_kafka_by_its_name() -> None:
    listed = ONE_MACHINE.run("exec", "-T", "kafka", "kafka-topics", "--bootstrap-server", "kafka:29092", "--list")
    assert config.KAFKA_TOPIC in listed.split()


def test_a_misspelt_topic_is_not_created_by_reading_it() -> None:
    ONE_MACHINE.run(
        *("exec", "-T", "kafka", "bash", "-c"),
        "kafka-console-consumer --bootstrap-server localhost:9092 --topic misspelt --timeout-ms 3000 || true",
    )
    assert "misspelt" not in ONE_MACHINE.run(
        "exec", "-T", "kafka", "kafka-topics", "--bootstrap-server", "localhost:9092", "--list"
    )


def test_down_and_up_keeps_the_data_and_the_pipeline_goes_on_where_it_stopped(tmp_path: Path) -> None:
    producer = start_script("producer.py", tmp_path)
    consumer = start_script("consumer.py", tmp_path)
    insert("arrived before", 1000)
    wait_until_equal()
    stopped(consumer)
    insert("published before, not applied", 2000)
    wait_until(lambda: '"unpublished": 0,' in run_script("admin.py", "status", "--json"))
    stopped(producer)
    insert("not published before", 3000)

    ONE_MACHINE.down()
    assert ONE_MACHINE.containers() == {}
    ONE_MACHINE.up()
    producer = start_script("producer.py", tmp_path)
    consumer = start_script("consumer.py", tmp_path)
    wait_until_equal()
    with closing(destination()) as connection:
        assert query(connection, "SELECT city, count(*) FROM employees GROUP BY city ORDER BY count") == [
            ("arrived before", 1000),
            ("published before, not applied", 2000),
            ("not published before", 3000),
        ]
    assert (stopped(producer), stopped(consumer)) == (3000, 5000)


def kill(*services: str) -> None:
    docker("kill", *(ONE_MACHINE.container(service) for service in services))


def test_kafka_restarted_or_killed_comes_back_by_itself_and_so_does_the_pipeline(
    scripts: dict[str, Script], capsys: pytest.CaptureFixture[str]
) -> None:
    def restart() -> None:
        ONE_MACHINE.run("restart", "kafka")

    def kill_and_start_at_once() -> None:  # before ZooKeeper has missed the killed one: its place is still taken
        kill("kafka")
        docker("start", ONE_MACHINE.container("kafka"))

    wait_until_equal()
    for mishap in (restart, kill_and_start_at_once):
        mishap()
        insert(mishap.__name__, 10)
        started = time.monotonic()
        wait_until_equal()
        with capsys.disabled():
            print(f"\n{mishap.__name__}: what was written then arrived after {time.monotonic() - started:.0f} s")
        ONE_MACHINE.wait_until_healthy()
    assert all(script.process.poll() is None for script in scripts.values())


def test_all_servers_killed_at_once_come_back_with_up_and_nothing_is_lost(scripts: dict[str, Script]) -> None:
    insert("just before", 5000)
    kill(*SERVERS)
    ONE_MACHINE.up()
    ONE_MACHINE.wait_until_healthy()
    insert("just after", 1)
    wait_until_equal()
    assert [stopped(script) >= 5001 for script in scripts.values()] == [True, True]
