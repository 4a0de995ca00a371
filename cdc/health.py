"""Whether this process works: its loop turns, it is connected, and which servers are down for it.

/healthz and /readyz answer by it (cdc/endpoints.py).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from cdc import metrics, supervisor

HANGS_AFTER = 30.0  # seconds without a turn of any loop; each call that waits for a server is shorter

SERVERS = {"source": "source", "destination": "destination", "topic": "kafka", "group": "kafka", "Kafka": "kafka"}


@dataclass
class Health:
    """The state of this process."""

    needed: tuple[str, ...] = ()  # the servers to be connected to, for being ready
    connected: set[str] = field(default_factory=set)
    down: dict[str, set[int]] = field(default_factory=dict)  # by server: who of us reports it so, by id()
    turned: float = field(default_factory=time.monotonic)  # when a loop last turned

    def turn(self) -> None:
        """Note that a loop turns: that of the script, or one that waits for a server."""
        self.turned = time.monotonic()
        supervisor.turn(self.turned)

    def hangs(self) -> str:
        """Return why this process is not alive, "" if it is."""
        silent = time.monotonic() - self.turned
        return f"the loop has not turned for {silent:.0f} s" if silent > HANGS_AFTER else ""

    def unready(self, stopping: bool) -> str:
        """Return why this process is not ready, "" if it is."""
        if stopping:
            return "stopping"
        missing = [server for server in self.needed if server not in self.connected]
        down = [server for server, reporters in dict(self.down).items() if reporters]
        reasons = [f"not connected to {server}" for server in missing] + [f"outage of {server}" for server in down]
        return "; ".join(reasons)

    @contextmanager
    def connection(self, server: str) -> Iterator[None]:
        """As long as a connection to a server is in use."""
        self.connected.add(server)
        try:
            yield
        finally:
            self.connected.discard(server)
            metrics.ACTIVE.set(0)  # PostgreSQL gives the lock back with its session

    def mark_down(self, reporter: object, text: str) -> None:
        """Note the outage that a line of the log reports: its first word tells the server."""
        server = SERVERS.get(text.partition(" ")[0])
        if server is None:
            return
        reporters = self.down.setdefault(server, set())
        if not reporters:
            metrics.OUTAGES.add(1, server)
        reporters.add(id(reporter))
        metrics.OUTAGE_ACTIVE.set(1, server)

    def mark_up(self, reporter: object) -> None:
        """Note that all is over that this reporter has reported."""
        for server, reporters in self.down.items():
            reporters.discard(id(reporter))
            metrics.OUTAGE_ACTIVE.set(bool(reporters), server)


HEALTH = Health()  # of this process
