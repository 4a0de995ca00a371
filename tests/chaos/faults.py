"""The faults. Each yields when it is over: from then on the time runs until the pipeline is in sync."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial

from harness.own_servers import bring_back
from harness.waiting import wait_until
from stack import servers
from tests.chaos import history
from tests.chaos.run import Run, ask, ensure, kill, say, signal_to, start, start_again, stop, time_until_in_sync

SESSION = 6.0  # seconds: session.timeout.ms of consumer.py
CUT = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
CUT_ACTIVE_PRODUCER = """
SELECT count(pg_terminate_backend(pid)) FROM pg_locks
WHERE locktype = 'advisory' AND classid = 6513763 AND objid = 1 AND granted
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
IN_TRANSACTION = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND state = 'idle in transaction'
"""
Fault = Iterator[None]


def producer_killed(run: Run) -> Fault:
    kill(run, "producer")
    time.sleep(0.5)
    start_again(run, "producer")
    yield


def consumer_killed(run: Run, instance: str) -> Fault:
    ensure(run, "consumer", instance=instance)
    kill(run, "consumer")
    time.sleep(0.5)
    start_again(run, "consumer")
    yield


def server_killed(run: Run, name: str) -> Fault:
    servers.kill(run.servers[name])
    time.sleep(run.random.uniform(0, 2))
    bring_back(run.servers[name], run.pipeline.topic)
    yield


def kafka_killed(run: Run, instance: str) -> Fault:
    ensure(run, "consumer", instance=instance)
    return server_killed(run, "kafka")


def producer_stopped(run: Run) -> Fault:
    signal_to(run, "producer", signal.SIGSTOP)
    time.sleep(SESSION + 2)
    signal_to(run, "producer", signal.SIGCONT)
    yield


def producer_stopped_and_replaced(run: Run) -> Fault:
    start(run, "standby")
    time_until_in_sync(run)
    signal_to(run, "producer", signal.SIGSTOP)
    ask(run.pipeline.source_url, CUT_ACTIVE_PRODUCER)
    yield
    time.sleep(SESSION)
    signal_to(run, "producer", signal.SIGCONT)
    yield
    stop(run, "producer")
    run.running["producer"] = run.running.pop("standby")


def producer_killed_with_standby(run: Run) -> Fault:
    start(run, "standby")
    run.running["standby"].script.wait_for("standing by")
    kill(run, "producer")
    run.running["producer"] = run.running.pop("standby")
    yield


def consumer_stopped(run: Run, in_transaction: bool) -> Fault:
    """The other consumer must take over, and the zombie must do no harm when it goes on."""
    start(run, "second")
    time_until_in_sync(run)
    signal_to(run, "consumer", signal.SIGSTOP)
    for _ in range(400 if in_transaction else 0):
        time.sleep(0.01)
        if ask(run.pipeline.destination_url, IN_TRANSACTION):
            break
        signal_to(run, "consumer", signal.SIGCONT)
        time.sleep(run.random.uniform(0, 0.01))
        signal_to(run, "consumer", signal.SIGSTOP)
    began = time.monotonic()
    yield
    time.sleep(max(0.0, began + SESSION + 2 - time.monotonic()))
    signal_to(run, "consumer", signal.SIGCONT)
    yield
    stop(run, "second")
    yield


def sessions_cut(run: Run, name: str) -> Fault:
    ask(run.pipeline.source_url if name == "source" else run.pipeline.destination_url, CUT)
    yield


def consumer_joins_and_leaves(run: Run) -> Fault:
    start(run, "second")
    yield
    time.sleep(run.random.uniform(0, 2))
    stop(run, "second")
    yield


def connections_cut(run: Run, name: str) -> Fault:
    through_proxy(run, name)
    for _ in range(run.random.randint(1, 3)):
        run.proxies[name].cut()
        time.sleep(run.random.uniform(0, 0.3))
    yield


def connections_held_up(run: Run, name: str) -> Fault:
    """Nothing passes for a while, and then the connections break or go on."""
    through_proxy(run, name)
    run.proxies[name].flows.clear()
    time.sleep(run.random.uniform(1, 4))
    if run.random.random() < 0.5:
        run.proxies[name].cut()
    run.proxies[name].flows.set()
    yield


def connections_slow(run: Run, name: str) -> Fault:
    through_proxy(run, name)
    run.proxies[name].delay = run.random.uniform(0.05, 0.5)
    time.sleep(3)
    run.proxies[name].delay = 0.0
    yield


def through_proxy(run: Run, name: str) -> None:
    """Have the scripts that talk to this server do so through its proxy."""
    for role in {"source": ["producer"], "destination": ["consumer"], "kafka": ["producer", "consumer"]}[name]:
        ensure(run, role, proxied=True)


def disk_full(run: Run) -> Fault:
    assert run.small_disk
    filler, script = run.small_disk.parent / "filler", run.running["consumer"].script
    before = len(script.output())
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1024**2))
    try:
        wait_until(lambda: "No space left" in script.output()[before:], 20, "the destination's disk is full")
        time.sleep(run.random.uniform(0, 2))
    finally:
        filler.unlink()
    yield


FAULTS: dict[str, Callable[[Run], Fault]] = {
    "producer killed": producer_killed,
    "producer killed, a standby there": producer_killed_with_standby,
    "producer stopped for 8 s": producer_stopped,
    "producer stopped, its session cut, a standby there": producer_stopped_and_replaced,
    "consumer killed": partial(consumer_killed, instance=""),
    "consumer with KAFKA_GROUP_INSTANCE_ID killed": partial(consumer_killed, instance="one"),
    "consumer stopped for 8 s, a second there": partial(consumer_stopped, in_transaction=False),
    "consumer stopped in a transaction, a second there": partial(consumer_stopped, in_transaction=True),
    "second consumer joins and leaves": consumer_joins_and_leaves,
    "Kafka killed": partial(kafka_killed, instance=""),
    "Kafka killed, a consumer with KAFKA_GROUP_INSTANCE_ID": partial(kafka_killed, instance="one"),
    "ZooKeeper killed": partial(server_killed, name="zookeeper"),
    "source killed": partial(server_killed, name="source"),
    "destination killed": partial(server_killed, name="destination"),
    "all sessions of the source cut": partial(sessions_cut, name="source"),
    "all sessions of the destination cut": partial(sessions_cut, name="destination"),
    "connections to the source cut": partial(connections_cut, name="source"),
    "connections to the destination cut": partial(connections_cut, name="destination"),
    "connections to Kafka cut": partial(connections_cut, name="kafka"),
    "connections to the source held up": partial(connections_held_up, name="source"),
    "connections to the destination held up": partial(connections_held_up, name="destination"),
    "connections to Kafka held up": partial(connections_held_up, name="kafka"),
    "connections to the source slow": partial(connections_slow, name="source"),
    "connections to the destination slow": partial(connections_slow, name="destination"),
    "connections to Kafka slow": partial(connections_slow, name="kafka"),
    "destination's disk full": disk_full,
    "source back in time, writers first": history.went_back_in_time,
    "source crashed, commits lost": history.lost_commits,
    "triggers off and on": history.triggers_off_and_on,
    "stranger in the group": history.stranger_in_the_group,
}


def break_it(run: Run, end: float, kinds: list[str]) -> None:
    """One fault after the other, all kinds in turn, in a new random order each time."""
    order: list[str] = []
    while kinds and time.monotonic() < end:
        order = order or run.random.sample(kinds, len(kinds))
        kind, longest = order.pop(), 0.0
        try:
            for _ in FAULTS[kind](run):
                longest = max(longest, time_until_in_sync(run))
        except AssertionError as error:  # of wait_until
            run.problem(f"{kind}: {error}")
        run.took.setdefault(kind, []).append(longest)
        say(f"{kind}: in sync after {longest:.1f} s")
        if longest > run.limit:
            run.problem(f"{kind}: in sync after {longest:.1f} s, more than {run.limit:.0f} s")
        time.sleep(run.random.uniform(0, 0.5))
