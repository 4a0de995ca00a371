"""docker-compose.cluster.yml: the move to it from one machine, and containers killed under load."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import config
from harness.database import query
from harness.waiting import wait_until
from tests.compose.compose import (
    CLUSTER,
    ONE_MACHINE,
    PATIENCE,
    destination,
    docker,
    run_script,
    source,
    start_script,
    wait_until_equal,
)
from tests.compose.load import load

import pytest
from confluent_kafka.admin import AdminClient

pytestmark = pytest.mark.compose

BROKERS = {"kafka1": 1, "kafka2": 2, "kafka3": 3}
PRODUCERS = ("producer1", "producer2")
CONSUMERS = ("consumer1", "consumer2", "consumer3")
BOOTSTRAP = "localhost:9092,localhost:9093,localhost:9094"

AWAY = 15  # seconds that a killed container stays away under load

WATCH = """
CREATE TABLE arrival (emp_id INT PRIMARY KEY, at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp());
CREATE FUNCTION arrived() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.arrival (emp_id) VALUES (NEW.emp_id) ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$$;
CREATE TRIGGER arrived AFTER INSERT ON employees FOR EACH ROW EXECUTE FUNCTION arrived();
"""


@pytest.fixture(scope="module", autouse=True)
def volumes(engine: None) -> Iterator[None]:
    ONE_MACHINE.down("-v", "--remove-orphans")
    yield
    CLUSTER.down("-v", "--remove-orphans")


@pytest.fixture(autouse=True)
def bootstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts on this machine know all brokers: the first one may be the killed one."""
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", BOOTSTRAP)


def status() -> dict[str, Any]:
    return dict(json.loads(run_script("admin.py", "status", "--json")))


def partitions() -> list[tuple[int, list[int], list[int]]]:
    """Leader, replicas and in-sync replicas of the topic's partitions."""
    settings: dict[str, Any] = {"bootstrap.servers": BOOTSTRAP, "broker.address.family": "v4", "log_level": 0}
    topic = AdminClient(settings).list_topics(timeout=10).topics[config.KAFKA_TOPIC]
    return [(part.leader, sorted(part.replicas), sorted(part.isrs)) for part in topic.partitions.values()]


def all_in_sync() -> bool:
    return all(replicas == in_sync == [1, 2, 3] for _, replicas, in_sync in partitions())


def wait_until_all_consumers_read() -> None:
    """Wait until each consumer has a partition of its own."""

    def why() -> str:
        return f"{json.dumps(status(), indent=1)}\n{CLUSTER.run('logs', '--tail', '40', *CONSUMERS)}"

    wait_until(lambda: len(status()["kafka"]["members"]) == len(CONSUMERS), PATIENCE, why)


def active_producer() -> str:
    """The service whose container holds the lock in the source."""
    active = str(status()["source"]["active_producer"])
    for service in PRODUCERS:
        networks = CLUSTER.containers()[service]["NetworkSettings"]["Networks"]
        if active.endswith(f"at {next(iter(networks.values()))['IPAddress']}"):
            return service
    raise AssertionError(f"the active producer, {active}, is none of ours")


def kill(service: str) -> Callable[[], str]:
    """Kill a service's container; returns what starts it again."""
    container = CLUSTER.container(service)
    docker("kill", container)
    return lambda: docker("start", container)


def test_moves_from_one_machine_with_its_data(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092")
    ONE_MACHINE.up()
    run_script("db_setup.py")
    run_script("admin.py")
    with closing(source()) as connection:
        query(connection, "INSERT INTO employees (city) SELECT 'from one machine' FROM generate_series(1, 1000)")
    scripts = [start_script(name, tmp_path) for name in ("producer.py", "consumer.py")]
    wait_until(lambda: status()["in_sync"], PATIENCE)
    assert [script.stop() for script in scripts] == [0, 0]
    ONE_MACHINE.down()

    started = time.monotonic()
    CLUSTER.run("up", "-d", "--build")
    up = time.monotonic() - started
    CLUSTER.wait_until_healthy()
    with capsys.disabled():
        print(f"\nup -d took {up:.0f} s, all was healthy after {time.monotonic() - started:.0f} s")
    containers = CLUSTER.containers()
    assert containers.keys() == {"source", "destination", "setup", *BROKERS, *PRODUCERS, *CONSUMERS}
    assert [name for name, container in containers.items() if container["RestartCount"]] == []
    with closing(destination()) as connection:
        query(connection, WATCH)
        assert query(connection, "SELECT count(*) FROM employees WHERE city = 'from one machine'") == [(1000,)]


def test_test_cdc_passes_and_every_message_is_on_three_brokers() -> None:
    assert "PASS" in run_script("test_cdc.py")
    wait_until(all_in_sync, PATIENCE)
    settings = CLUSTER.run(
        *("exec", "-T", "kafka1", "/opt/kafka/bin/kafka-topics.sh", "--bootstrap-server", "kafka1:29092"),
        *("--describe", "--topic", config.KAFKA_TOPIC),
    )
    assert "min.insync.replicas=2" in settings
    wait_until_all_consumers_read()


def test_no_script_runs_as_root() -> None:
    for service in (*PRODUCERS, *CONSUMERS):
        assert docker("exec", CLUSTER.container(service), "id", "-u").strip() != "0"


def test_a_script_that_hangs_is_unhealthy_until_it_goes_on() -> None:
    def health() -> str:
        return str(CLUSTER.containers()["consumer3"]["State"]["Health"]["Status"])

    docker("kill", "--signal=STOP", CLUSTER.container("consumer3"))
    wait_until(lambda: health() == "unhealthy", PATIENCE)
    docker("kill", "--signal=CONT", CLUSTER.container("consumer3"))
    wait_until(lambda: health() == "healthy", PATIENCE)
    wait_until_all_consumers_read()


def test_under_load_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with load("no mishap", capsys):
        time.sleep(AWAY)


@pytest.mark.parametrize("broker", BROKERS)
def test_a_broker_is_killed(broker: str, capsys: pytest.CaptureFixture[str]) -> None:
    wait_until(all_in_sync, PATIENCE)
    leads = sum(leader == BROKERS[broker] for leader, _, _ in partitions())
    with load(f"{broker} killed, leader of {leads} of the topic's partitions", capsys):
        start_again = kill(broker)
        time.sleep(AWAY)
        assert BROKERS[broker] not in [leader for leader, _, _ in partitions()]
        start_again()
    wait_until(all_in_sync, PATIENCE)


def test_the_active_producer_is_killed(capsys: pytest.CaptureFixture[str]) -> None:
    active = active_producer()
    with load(f"{active} killed, the active one", capsys):
        start_again = kill(active)
        time.sleep(AWAY)
        assert active_producer() != active
        start_again()


@pytest.mark.parametrize("back", ["after a while", "at once"])
def test_a_consumer_is_killed(back: str, capsys: pytest.CaptureFixture[str]) -> None:
    wait_until_all_consumers_read()
    with load(f"consumer2 killed, back {back}", capsys):
        start_again = kill("consumer2")
        if back == "at once":
            start_again()
        time.sleep(AWAY)
        start_again()
    wait_until_all_consumers_read()


@pytest.mark.parametrize("service", ["the active producer", "consumer1"])
def test_docker_stop_lets_the_batch_in_hand_finish_and_ends_with_0(
    service: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = active_producer() if service == "the active producer" else service
    container = CLUSTER.container(name)
    with load(f"{service} stopped and started", capsys):
        started = time.monotonic()
        docker("stop", container)
        took = time.monotonic() - started
        logs = docker("logs", "--tail", "5", container)
        assert CLUSTER.containers()[name]["State"]["ExitCode"] == 0, logs
        assert "changes in all" in logs, logs
        docker("start", container)
        time.sleep(AWAY / 3)
    assert took < 5, f"{took:.1f} s"
    with capsys.disabled():
        print(f"docker stop of {service} took {took:.1f} s")


def test_partitions_are_added_under_load(capsys: pytest.CaptureFixture[str]) -> None:
    def used(key: str) -> list[int]:
        return [part["partition"] for part in status()["kafka"]["partitions"] if part[key]]

    with load("three partitions more", capsys):
        run_script("admin.py", "create", "--partitions", "6", "--replication-factor", "3")
        wait_until(lambda: used("member") == list(range(6)), PATIENCE)
        # A producer looks for new partitions every few minutes; one that starts now uses them at once, and employees
        # move from one partition to another.
        docker("restart", CLUSTER.container(active_producer()))
        time.sleep(AWAY)
    assert used("end_offset") == list(range(6))


def test_down_and_up_keeps_the_data_and_the_pipeline_goes_on() -> None:
    with closing(source()) as connection:
        ((before,),) = query(connection, "SELECT count(*) FROM employees")
        CLUSTER.down()
        CLUSTER.up()
        CLUSTER.wait_until_healthy()
    with closing(source()) as connection:
        query(connection, "INSERT INTO employees (city) VALUES ('after')")
        assert query(connection, "SELECT count(*) FROM employees") == [(before + 1,)]
    wait_until_equal()
    assert "PASS" in run_script("test_cdc.py")
