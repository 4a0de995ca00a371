"""CPU seconds of processes, from /proc.

Without it (macOS, servers in containers) they stay unknown.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench.systems import Scripts
from harness.database import query
from harness.pipeline import Pipeline
from stack import servers

from psycopg2.extensions import connection as Connection

TICKS = os.sysconf("SC_CLK_TCK")


def cpu(process: int) -> float:
    """Return a process's CPU seconds so far."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(int(field) for field in fields[11:13]) / TICKS


def fine_cpu(process: int) -> float:
    """Return the CPU seconds of a process's living threads, to the nanosecond.

    cpu() counts in hundredths of a second.
    """
    total = 0
    for file in Path(f"/proc/{process}/task").glob("*/schedstat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            total += int(file.read_text().split()[0])
    return total / 1e9


def kafka_process() -> int | None:
    return next((servers.pid(server) for server in servers.servers() if server.kind == "kafka"), None)


def postmaster(connection: Connection) -> int | None:
    """Return the server's first process, parent of all others, if it runs here."""
    backend = Path(f"/proc/{query(connection, 'SELECT pg_backend_pid()')[0][0]}")
    with suppress(FileNotFoundError):
        if (backend / "comm").read_text().startswith("postgres"):
            return int((backend / "stat").read_text().rpartition(")")[2].split()[1])
    return None


def server_cpu(parent: int, database: str, watchers: set[int]) -> dict[str, float]:
    """Return the CPU seconds of a PostgreSQL server's living processes, by kind.

    Left out are the backends of databases whose name does not begin with `database`,
    and those of the watchers.
    """
    seconds: dict[str, float] = {}
    for line in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        title = process_title(int(line))
        kind = next(
            (kind for kind in ("walsender", "apply worker", "launcher") if kind in title), title.partition(": ")[2]
        )
        if "127.0.0.1(" in title or "[local]" in title or "::1(" in title:
            if kind != "walsender":
                kind = "backend"
            if database not in title or int(line) in watchers:
                continue
        seconds[kind] = seconds.get(kind, 0.0) + cpu(int(line))
    return seconds


def process_title(process: int) -> str:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def difference(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Return what each kind spent, without the kinds that spent nothing."""
    change = {kind: round(seconds - before.get(kind, 0.0), 3) for kind, seconds in sorted(after.items())}
    return {kind: seconds for kind, seconds in change.items() if seconds > 0}


@dataclass
class Meter:
    """The CPU that servers and scripts spend from now on."""

    pipeline: Pipeline
    source: Connection
    destination: Connection
    scripts: Scripts  # those that run already

    def __post_init__(self) -> None:
        self.watchers = {query(c, "SELECT pg_backend_pid()")[0][0] for c in (self.source, self.destination)}
        self.servers = {"source": postmaster(self.source), "destination": postmaster(self.destination)}
        self.kafka = kafka_process()
        self.before = self.read(self.scripts)

    def read(self, scripts: Scripts) -> dict[str, dict[str, float]]:
        """Return the CPU seconds so far: of each server, by kind; of each script."""
        seconds = {
            name: server_cpu(process, self.pipeline.name, self.watchers)
            for name, process in self.servers.items()
            if process is not None
        }
        if self.kafka:
            seconds["Kafka"] = {"Kafka": cpu(self.kafka)}
        for name, group in scripts.items():
            seconds[name] = {script.log.name: cpu(script.process.pid) for script in group}
        return seconds

    def result(self, scripts: Scripts, start_cpu: dict[str, float]) -> dict[str, dict[str, float]]:
        """Return what was spent.

        start_cpu: what a script's start costs, taken off those that started meanwhile.
        """
        total = {}
        for name, after in self.read(scripts).items():
            before = self.before.get(name, dict.fromkeys(after, start_cpu.get(name, 0.0)))
            total[name] = difference(before, after)
        return total
