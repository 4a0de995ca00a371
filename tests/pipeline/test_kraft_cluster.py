"""Three brokers of Kafka 4: one is killed, under load or where its replicas are needed, and nothing is lost."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.database import query
from harness.kafka import client_settings, configure
from harness.own_servers import own_servers
from harness.pipeline import Pipeline, new_pipeline
from harness.showing import alarms
from harness.waiting import wait_until
from stack import servers
from stack.servers import Server

import pytest
from confluent_kafka.admin import AdminClient
from psycopg2.extensions import connection as Connection

pytestmark = [pytest.mark.alone, pytest.mark.own_servers]

OFFSET = 2400  # of the ports of the servers here
PULSES = 40  # employees that change all the time: enough of them for every partition


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    with own_servers(OFFSET, tmp_path_factory.mktemp("servers"), cluster=True) as found:
        yield found


@pytest.fixture
def replicated(cluster: dict[str, Server], tmp_path: Path) -> Iterator[Pipeline]:
    """A pipeline that has carried its first changes, its topic on all three brokers."""
    with new_pipeline(tmp_path) as pipeline:
        for script, arguments in (("admin.py", ("create", "--replication-factor", "3")), ("db_setup.py", ())):
            result = pipeline.run(script, *arguments)
            assert result.returncode == 0, result.stdout + result.stderr
        pipeline.start("producer.py")
        pipeline.start("consumer.py", KAFKA_GROUP_INSTANCE_ID="one")  # as in docker-compose.cluster.yml
        insert = f"INSERT INTO employees (emp_id, salary) SELECT n, 0 FROM generate_series(1, {PULSES}) n"
        query(pipeline.source(), insert)
        pipeline.wait_until_equal()
        time.sleep(1)  # the replicas learn what is acknowledged: a new leader that does not know it lets nobody read
        try:
            yield pipeline
        finally:
            for server in cluster.values():  # a test that failed left some of them killed
                servers.start(server)
                servers.wait(server)


def leaders(topic: str) -> dict[int, int]:
    """The broker that leads each partition."""
    admin = AdminClient({**client_settings(), "log_level": 0})
    partitions = admin.list_topics(topic, timeout=10).topics[topic].partitions
    return {number: partition.leader for number, partition in partitions.items()}


@dataclass
class Load:
    """What changes all the time, and how late it is at the destination."""

    sent: list[float] = field(default_factory=list)  # when each change was made (time.monotonic)
    delay: float = 0.0  # seconds at most: the age of the oldest change not seen there yet

    def write(self, source: Connection, over: threading.Event) -> None:
        """Change all employees, the number of the change as their salary, every few milliseconds; note when."""
        while not over.wait(0.05):
            self.sent.append(time.monotonic())
            query(source, "UPDATE employees SET salary = %(number)s", {"number": len(self.sent)})

    def watch(self, destination: Connection, over: threading.Event) -> None:
        while not over.is_set():
            ((seen,),) = query(destination, "SELECT min(salary) FROM employees")
            if seen < len(self.sent):
                self.delay = max(self.delay, time.monotonic() - self.sent[seen])
            time.sleep(0.005)


@contextmanager
def under_load(pipeline: Pipeline) -> Iterator[Load]:
    """Write as long as the block runs, and watch until all of it is at the destination."""
    load, over, stop_watching = Load(), threading.Event(), threading.Event()
    writer = threading.Thread(target=load.write, args=(pipeline.source(), over))
    watcher = threading.Thread(target=load.watch, args=(pipeline.destination(), stop_watching))
    writer.start()
    watcher.start()
    try:
        yield load
    finally:
        over.set()
        writer.join()
        try:
            pipeline.wait_until_equal()
        finally:
            stop_watching.set()
            watcher.join()


def missing_replicas(pipeline: Pipeline, **environment: str) -> str:
    """What status says of a topic that has fewer replicas than it should have."""
    found = [alarm for alarm in alarms(pipeline, **environment) if "fewer replicas" in alarm[2]]
    assert all(alarm[:2] == ("topic", "warning") for alarm in found)
    return found[0][2] if found else ""


def test_a_topic_of_one_replica_on_three_brokers_is_an_alarm(replicated: Pipeline) -> None:
    assert missing_replicas(replicated) == ""
    assert replicated.run("admin.py", "create", KAFKA_TOPIC="of_one_replica").returncode == 0
    what = "partitions 0, 1, 2: fewer replicas than the 3 that 3 brokers could keep"
    assert missing_replicas(replicated, KAFKA_TOPIC="of_one_replica") == what


def test_nothing_is_lost_when_the_broker_that_leads_a_partition_is_killed(
    cluster: dict[str, Server], replicated: Pipeline
) -> None:
    with under_load(replicated) as load:
        replicated.run("admin.py", "create", KAFKA_TOPIC="of_one_replica")
        wait_until(lambda: len(load.sent) > 20)
        led = leaders(replicated.topic)
        killed = led[0]
        servers.kill(cluster[f"kafka{killed}"])
        wait_until(lambda: killed not in leaders(replicated.topic).values(), 30, "other leaders")
        no_leader = r"topic of_one_replica: no broker leads partitions? [\d, ]+; start the brokers that are down"
        assert re.fullmatch(no_leader, alarms(replicated, KAFKA_TOPIC="of_one_replica")[0][2])
        wait_until(lambda: missing_replicas(replicated).endswith(f"without broker {killed}"), 30, "an alarm")
        time.sleep(3)  # on two brokers
        servers.start(cluster[f"kafka{killed}"])
        servers.wait(cluster[f"kafka{killed}"])
        time.sleep(2)  # on three again
    print(
        f"broker {killed} led {sum(leader == killed for leader in led.values())} of {len(led)} partitions; "
        f"{len(load.sent) * PULSES:,} changes, the longest gap was {load.delay:.1f} s"
    )
    logged = {cdc_id for (cdc_id,) in query(replicated.source(), "SELECT cdc_id FROM emp_cdc")}
    assert len(replicated.messages()) >= len(logged)
    assert replicated.dead_letters() == []
    assert load.delay < 20  # 10 on a quiet machine
    for script in replicated.scripts:
        assert script.process.poll() is None
        assert "Traceback" not in script.output()


def test_the_new_group_protocol_shares_the_partitions_and_hands_them_over(replicated: Pipeline) -> None:
    assert replicated.scripts[1].stop() == 0
    protocol = {"KAFKA_GROUP_PROTOCOL": "consumer", "KAFKA_GROUP_ID": "new protocol"}
    scripts = [replicated.start("consumer.py", **protocol) for _ in range(2)]
    for script in scripts:
        script.wait_for("partitions assigned")
    for salary, stopped in ((1, None), (2, scripts[0])):
        if stopped is not None:
            assert stopped.stop() == 0, stopped.output()
        query(replicated.source(), "UPDATE employees SET salary = %(salary)s", {"salary": salary})
        replicated.wait_until_equal()
    assert scripts[1].stop() == 0, scripts[1].output()
    result = replicated.run("consumer.py", "--once", seconds=60, **protocol)
    assert (result.returncode, result.stderr) == (0, "")
    assert "applied 0 changes in all" in result.stdout  # what was applied is committed


@pytest.mark.long
def test_what_too_few_brokers_acknowledge_is_reported_in_time_once_and_when_it_is_over(
    cluster: dict[str, Server], replicated: Pipeline
) -> None:
    source, (first, _) = replicated.source(), replicated.scripts
    configure(replicated.topic, "min.insync.replicas", "3")
    servers.kill(cluster["kafka3"])
    query(source, "UPDATE employees SET salary = 1")
    first.wait_for(f"{PULSES} messages not acknowledged, partition ", 10)
    assert "has 2 of 3 replicas in sync; min.insync.replicas may ask for more; waiting for 8 s" in first.output()
    assert first.stop() == 0
    impatient = replicated.sabotaged("import producer", "producer.GIVE_UP = 3")  # not 60
    result = replicated.run(impatient, "--once", seconds=15)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "not acknowledged" in line
    assert line.endswith("; gave up after 3 s")
    second = replicated.start("producer.py")
    second.wait_for("not acknowledged", 15)
    servers.start(cluster["kafka3"])
    second.wait_for(f"topic {replicated.topic} goes on after ", 30)
    replicated.wait_until_equal()
    for script in first, second:
        assert script.output().count("waiting") == 1, script.output()
        assert "answers again" not in script.output()


@pytest.mark.long
def test_a_partition_without_a_leader_is_reported_in_time_and_once_while_a_page_waits_and_at_the_start(
    cluster: dict[str, Server], replicated: Pipeline
) -> None:
    """A topic with one replica of each partition; a broker that has one of them is down."""
    for script in replicated.scripts:
        assert script.stop() == 0
    single: dict[str, Any] = {"KAFKA_TOPIC": "single"}
    assert replicated.run("admin.py", "create", **single).returncode == 0
    down = cluster[f"kafka{leaders('single')[0]}"]
    first = replicated.start("producer.py", **single)
    first.wait_for("publishing from")
    servers.kill(down)
    query(replicated.source(), "UPDATE employees SET salary = 1")
    first.wait_for("no broker leads partition ", 15)  # 10, and Kafka needs 3 to see that the broker is down
    time.sleep(3)
    assert first.output().count("waiting") == 1, first.output()
    assert first.stop() == 0
    second = replicated.start("producer.py", **single)
    second.wait_for("waiting", 10)
    time.sleep(8)
    assert second.output().count("waiting") == 1, second.output()
    servers.start(down)
    second.wait_for("published 40 changes", 40)
    assert second.output().count("waiting") == 1, second.output()
    assert second.stop() == 0


@pytest.mark.long
def test_brokers_without_a_majority_are_reported_once(cluster: dict[str, Server], replicated: Pipeline) -> None:
    """One of three answers, and there is no controller."""
    for name in ("kafka2", "kafka3"):
        servers.kill(cluster[name])
    query(replicated.source(), "UPDATE employees SET salary = 1")
    replicated.scripts[0].wait_for("waiting", 12)
    time.sleep(20)
    for script in replicated.scripts:
        assert script.output().count("waiting") <= 2, script.output()
        assert script.output().count("again") <= 1, script.output()
    for name in ("kafka2", "kafka3"):
        servers.start(cluster[name])
    replicated.wait_until_equal(60)


@pytest.mark.long
def test_a_consumer_keeps_its_group_while_its_dead_letters_are_not_acknowledged(
    cluster: dict[str, Server], replicated: Pipeline
) -> None:
    assert replicated.scripts[1].stop() == 0
    script = replicated.start("consumer.py", KAFKA_GROUP_INSTANCE_ID="one", KAFKA_MAX_POLL_INTERVAL_MS="6000")
    script.wait_for("partitions assigned")
    configure(f"{replicated.topic}_dlq", "min.insync.replicas", "3")
    servers.kill(cluster["kafka3"])
    replicated.send("bad", partition=0)
    script.wait_for(f"topic {replicated.topic}_dlq: 1 message not acknowledged", 15)
    time.sleep(6)
    servers.start(cluster["kafka3"])
    script.wait_for("→ dead letter", 40)
    query(replicated.source(), "UPDATE employees SET salary = 2")
    replicated.wait_until_equal()
    assert "revoked" not in script.output(), script.output()
    assert len(replicated.dead_letters()) == 1
    assert script.stop() == 0
