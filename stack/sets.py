"""The servers of a set: their names, versions, ports and settings."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from stack.artifacts import version as artifact_version
from stack.folders import ROOT, STATE, reachable

POSTGRES = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "wal_level": "logical",  # for the benchmarks only: they compare with native replication
}


@dataclass(frozen=True)
class Server:
    name: str  # zookeeper, kafka, source, destination; in a cluster kafka1, kafka2, kafka3
    kind: str  # zookeeper, kafka, postgres
    version: str  # of what Maven fetches; ZooKeeper comes with Kafka and has Kafka's
    port: int
    state: str  # the folder with its data, log and pid file
    settings: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def encrypted(self) -> bool:
        """Whether a client that comes in the clear gets no answer."""
        return "ssl.keystore.location" in self.settings

    @property
    def data(self) -> Path:
        return Path(self.state, f"{self.name}-{self.version.partition('.')[0]}")

    def file(self, suffix: str) -> Path:
        return Path(self.state, f"{self.name}.{suffix}")


def servers(
    offset: int = 0, cluster: bool = False, kafka: str = "", postgres: str = "17", state: str | Path = STATE
) -> list[Server]:
    """Return the servers of a set, in the order in which they start.

    kafka, postgres: a major number or a full version.
    """
    folder = str(reachable(Path(state)) / f"offset-{offset}")
    kafka = artifact_version("kafka", kafka or ("4" if cluster else "3"))
    postgres = artifact_version("postgres", postgres)
    found = []
    if cluster:
        for node in 1, 2, 3:
            settings = kraft_settings(node, 3, offset)
            found.append(Server(f"kafka{node}", "kafka", kafka, 9091 + node + offset, folder, settings))
    elif kafka.startswith("3."):
        found.append(Server("zookeeper", "zookeeper", kafka, 2181 + offset, folder, zookeeper_settings(offset)))
        found.append(Server("kafka", "kafka", kafka, 9092 + offset, folder, kafka_settings(offset)))
    else:
        found.append(Server("kafka", "kafka", kafka, 9092 + offset, folder, kraft_settings(1, 1, offset)))
    found.append(Server("source", "postgres", postgres, 5433 + offset, folder, POSTGRES))
    found.append(Server("destination", "postgres", postgres, 5434 + offset, folder, POSTGRES))
    return found


def zookeeper_settings(offset: int) -> dict[str, str]:
    return {
        "clientPort": str(2181 + offset),
        "clientPortAddress": "127.0.0.1",
        "admin.enableServer": "false",
        "4lw.commands.whitelist": "srvr,dump",
    }


def kafka_settings(offset: int) -> dict[str, str]:
    """Return the settings of a broker with ZooKeeper."""
    return {
        "broker.id": "1",
        "zookeeper.connect": f"127.0.0.1:{2181 + offset}",
        "zookeeper.session.timeout.ms": "6000",  # how long a killed broker's id stays taken
        "listeners": f"PLAINTEXT://127.0.0.1:{9092 + offset}",
        "advertised.listeners": f"PLAINTEXT://localhost:{9092 + offset}",
        **broker_settings(1),
    }


def kraft_settings(node: int, nodes: int, offset: int) -> dict[str, str]:
    """Return the settings of a broker that is a controller, too.

    The controllers' ports are 10000 above the brokers'.
    """
    port = 9091 + node + offset
    return {
        "process.roles": "broker,controller",
        "node.id": str(node),
        "controller.quorum.voters": ",".join(f"{n}@127.0.0.1:{19091 + n + offset}" for n in range(1, nodes + 1)),
        "controller.listener.names": "CONTROLLER",
        # How long a killed broker's partitions have no leader, as in
        # docker-compose.cluster.yml.
        "broker.session.timeout.ms": "3000",
        "broker.heartbeat.interval.ms": "500",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{port + 10000}",
        "advertised.listeners": f"PLAINTEXT://localhost:{port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        **broker_settings(nodes),
    }


def broker_settings(nodes: int) -> dict[str, str]:
    """Return what is set in each of so many brokers.

    Internal topics have few partitions, so that brokers start and stop quickly.
    """
    copies, needed = str(nodes), str(min(nodes, 2))
    settings = {
        "auto.create.topics.enable": "false",
        "group.initial.rebalance.delay.ms": "0",
        "default.replication.factor": copies,
        "min.insync.replicas": needed,
        "offsets.topic.num.partitions": "3",
        "offsets.topic.replication.factor": copies,
    }
    for topic in "transaction.state.log", "share.coordinator.state.topic":
        settings |= {f"{topic}.num.partitions": "3", f"{topic}.replication.factor": copies, f"{topic}.min.isr": needed}
    return settings


def password() -> str:
    """Return POSTGRES_PASSWORD of the environment, else of .env, else `postgres`."""
    if "POSTGRES_PASSWORD" in os.environ:
        return os.environ["POSTGRES_PASSWORD"]
    text = (ROOT / ".env").read_text() if (ROOT / ".env").exists() else ""
    found = re.findall(r"^\s*(?:export\s+)?POSTGRES_PASSWORD\s*=\s*(.*?)\s*$", text, re.MULTILINE)
    return found[-1].strip("'\"") if found else "postgres"
