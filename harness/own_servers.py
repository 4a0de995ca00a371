"""Servers of a test's own, which it may kill: a set beside the default one, purged at the end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import config
from harness.kafka import client_settings
from stack import servers
from stack.artifacts import Trouble
from stack.servers import Server

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

OTHERS_WAIT = 200  # seconds; the workers of a run take the tests of a file as they come


@contextmanager
def own_servers(offset: int, logs: Path, cluster: bool = False, advertised: int = 0) -> Iterator[dict[str, Server]]:
    """Start a set of servers, and remove it afterwards. Meanwhile Pipeline, and the scripts it starts, use this set.

    logs: where the servers' logs go in the end.
    advertised: a proxy's port, where clients of the broker's second port (one above the first) are told to find it.
    """
    wanted = servers.servers(offset, cluster)
    if advertised:
        wanted = [with_second_port(server, advertised) if server.kind == "kafka" else server for server in wanted]
    state = Path(wanted[0].state)
    with ours_alone(state), pytest.MonkeyPatch.context() as patch:
        purge(state)
        try:
            servers.up(wanted)
            found = {server.name: server for server in wanted}
            brokers = ",".join(f"localhost:{server.port}" for server in wanted if server.kind == "kafka")
            patch.setattr(config, "SOURCE_DATABASE_URL", url(found["source"].port))
            patch.setattr(config, "DESTINATION_DATABASE_URL", url(found["destination"].port))
            patch.setattr(config, "KAFKA", {**config.KAFKA, "bootstrap.servers": brokers})
            patch.setenv("KAFKA_BOOTSTRAP_SERVERS", brokers)
            yield found
        finally:
            for log in state.glob("*.log*"):
                shutil.copy(log, logs)
            purge(state)


@contextmanager
def own_database(name: str, offset: int, **settings: str) -> Iterator[Server]:
    """Start a source or a destination of the test's own with these settings, beside the default other servers."""
    server = next(server for server in servers.servers(offset) if server.name == name)
    server = replace(server, settings={**server.settings, **settings})
    with ours_alone(state := Path(server.state)), pytest.MonkeyPatch.context() as patch:
        purge(state)
        try:
            servers.up([server])
            patch.setattr(config, f"{name.upper()}_DATABASE_URL", url(server.port))
            yield server
        finally:
            purge(state)


@contextmanager
def own_source(offset: int) -> Iterator[Server]:
    """Start a source alone, and remove it afterwards. Meanwhile Pipeline, and the scripts it starts, use it."""
    server = next(server for server in servers.servers(offset) if server.name == "source")
    with ours_alone(state := Path(server.state)), pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "SOURCE_DATABASE_URL", url(server.port))
        purge(state)
        try:
            servers.up([server])
            yield server
        finally:
            purge(state)


@contextmanager
def ours_alone(state: Path) -> Iterator[None]:
    """Keep other runs from these servers, and wait for another worker of this one that has them.

    What a run that was killed has left there is nobody's.
    """
    state.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + OTHERS_WAIT
    with state.with_suffix(".own").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    text = f"another run has the servers in {state}: wait for it, or take other ports"
                    raise Trouble(text) from None
            time.sleep(0.5)
        yield


def purge(state: Path) -> None:
    for server in servers.ours(state):
        if servers.pid(server):
            servers.kill(server)  # in good order would take Kafka a while
    if state.is_dir():
        shutil.rmtree(state)


def with_second_port(server: Server, advertised: int) -> Server:
    one, two = server.port, server.port + 1
    settings = {
        "listeners": f"PLAINTEXT://127.0.0.1:{one},PROXIED://127.0.0.1:{two}",
        "advertised.listeners": f"PLAINTEXT://localhost:{one},PROXIED://localhost:{advertised}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
    }
    return replace(server, settings={**server.settings, **settings})


def url(port: int) -> str:
    return f"postgresql://postgres:{quote(servers.password(), safe='')}@localhost:{port}/postgres"


def bring_back(server: Server, topic: str) -> None:
    """Start a server again, and return when it can be used: of Kafka, when the topic's partitions have their leader."""
    servers.start(server)
    servers.wait(server)
    while server.kind == "kafka" and not led(topic):
        time.sleep(0.05)


def copy_data(data: Path, copy: Path) -> None:
    """Copy the data of a server that does not run."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(data, copy, symlinks=True)
    (copy / "postmaster.pid").unlink(missing_ok=True)
    owner = data.stat()
    for folder, _, files in os.walk(copy):
        for path in (folder, *(os.path.join(folder, file) for file in files)):
            os.chown(path, owner.st_uid, owner.st_gid)


def led(topic: str) -> bool:
    admin = AdminClient({**client_settings(), "log_level": 0})
    with contextlib.suppress(KafkaException):
        found = admin.list_topics(topic, timeout=5).topics[topic]
        return found.error is None and all(partition.leader > 0 for partition in found.partitions.values())
    return False
