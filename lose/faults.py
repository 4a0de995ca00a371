"""What the keys do to both designs alike. Whatever is broken is brought back before the rows are counted."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import config
from lose.experiment import Experiment
from lose.writers import HELD
from stack import servers
from stack.process import stop
from stack.servers import Server

MOST_WRITERS = 12
KEYS = {
    "h": "hold a transaction open / commit it",
    "c": "kill the consumers / start them",
    "k": "stop Kafka / start it",
    "w": "one more writer",
    "q": "end",
}


@dataclass
class Faults:
    """What is broken now, and how it is mended. Each key's function returns a line that says what was done."""

    experiment: Experiment
    release: Callable[[], None] | None = None  # lets the transaction that is held open commit
    killed: bool = False  # the consumers
    brokers: list[Server] = field(default_factory=list)  # that were stopped
    at_work: Future[None] | None = None  # stopping or starting Kafka
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    def press(self, key: str) -> str:
        actions = {"h": self.hold, "c": self.kill_consumers, "k": self.stop_kafka, "w": self.add_writer}
        return actions[key]() if key in actions else ""

    def hold(self) -> str:
        if self.release:
            self.release()
            self.release = None
            return "the transaction that was held open commits"
        self.release = self.experiment.writers.hold()
        return f"a transaction has inserted {HELD} rows and stays open"

    def kill_consumers(self) -> str:
        self.killed = not self.killed
        for side in self.experiment.sides:
            if self.killed:
                side.consumer.kill()
            else:
                side.consumer = side.start_consumer()
        return "both consumers were killed" if self.killed else "both consumers start again"

    def stop_kafka(self) -> str:
        if self.at_work and not self.at_work.done():
            return "Kafka is still at it"
        if self.brokers:
            self.at_work = self.pool.submit(start_again, self.brokers)
            self.brokers = []
            return "Kafka starts again"
        if not (found := brokers_of_ours()):
            return "Kafka was not started by `make up`: stop it where it was started"
        self.brokers = found
        self.at_work = self.pool.submit(stop_all, found)
        return "Kafka stops, for all who use it"

    def add_writer(self) -> str:
        if len(self.experiment.writers.threads) >= MOST_WRITERS:
            return f"{MOST_WRITERS} writers are enough"
        self.experiment.writers.add()
        return "one more writer"

    def mend(self) -> list[str]:
        """Bring everything back that a key has broken; returns a line for each."""
        lines = [self.hold()] if self.release else []
        if self.at_work:
            self.at_work.result()
        if self.brokers:
            lines.append(self.stop_kafka())
        if self.killed:
            lines.append(self.kill_consumers())
        return lines

    def wait_for_kafka(self) -> None:
        if self.at_work:
            self.at_work.result()


def brokers_of_ours() -> list[Server]:
    """Return the brokers that our settings name, if they were started here."""
    port = int(config.KAFKA["bootstrap.servers"].split(",")[0].rpartition(":")[2])
    state = Path(servers.servers(port - 9092)[0].state)
    return [server for server in servers.ours(state) if server.kind == "kafka" and servers.pid(server)]


def stop_all(brokers: list[Server]) -> None:
    for server in brokers:
        stop(server)


def start_again(brokers: list[Server]) -> None:
    for server in brokers:
        servers.start(server)
    for server in brokers:
        servers.wait(server)
