"""CPU seconds of processes, from /proc; where there is none (macOS, servers in containers) they stay unknown."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from psycopg2.extensions import connection as Connection

from bench.systems import Scripts
from stack import servers
from tests.pipeline import Pipeline, query

TICKS = os.sysconf("SC_CLK_TCK")


def cpu(process: int) -> float:
    """CPU seconds of a process so far."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(int(field) for field in fields[11:13]) / TICKS


def fine_cpu(process: int) -> float:
    """CPU seconds of a process's living threads, to the nanosecond: cpu() counts in hundredths of a second."""
    total = 0
    for file in Path(f"/proc/{process}/task").glob("*/schedstat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            total += int(file.read_text().split()[0])
    return total / 1e9


def kafka_process() -> int | None:
    return next((servers.pid(server) for server in servers.servers() if server.kind == "kafka"), None)


def postmaster(connection: Connection) -> int | None:
    """The server's first process, the parent of all others, if it runs on this machine."""
    backend = Path(f"/proc/{query(connection, 'SELECT pg_backend_pid()')[0][0]}")
    with suppress(FileNotFoundError):
        if (backend / "comm").read_text().startswith("postgres"):
            return int((backend / "stat").read_text().rpartition(")")[2].split()[1])
    return None


def server_cpu(parent: int, ours: str, watchers: set[int]) -> dict[str, float]:
    """CPU seconds of a PostgreSQL server's living processes so far, by kind; without the backends of other databases
    than ours (a name's beginning) and without those that watch."""
    found: dict[str, float] = {}
    for line in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        title = _title(int(line))
        kind = next(
            (kind for kind in ("walsender", "apply worker", "launcher") if kind in title), title.partition(": ")[2]
        )
        if "127.0.0.1(" in title or "[local]" in title or "::1(" in title:
            if kind != "walsender":
                kind = "backend"
            if ours not in title or int(line) in watchers:
                continue
        found[kind] = found.get(kind, 0.0) + cpu(int(line))
    return found


def _title(process: int) -> str:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def spent(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """The difference, kind by kind, without what did nothing."""
    change = {kind: round(seconds - before.get(kind, 0.0), 3) for kind, seconds in sorted(after.items())}
    return {kind: seconds for kind, seconds in change.items() if seconds > 0}


@dataclass
class Meter:
    """CPU of the servers and scripts from now on."""

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
        found = {
            name: server_cpu(process, self.pipeline.name, self.watchers)
            for name, process in self.servers.items()
            if process is not None
        }
        if self.kafka:
            found["Kafka"] = {"Kafka": cpu(self.kafka)}
        for name, group in scripts.items():
            found[name] = {script.log.name: cpu(script.process.pid) for script in group}
        return found

    def result(self, scripts: Scripts, start_cpu: dict[str, float]) -> dict[str, dict[str, float]]:
        """What was spent; for scripts that started meanwhile without what their start costs."""
        total = {}
        for name, after in self.read(scripts).items():
            before = self.before.get(name, dict.fromkeys(after, start_cpu.get(name, 0.0)))
            total[name] = spent(before, after)
        return total
