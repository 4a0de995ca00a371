"""CPU seconds of processes, from /proc; where there is none (macOS, servers in containers) they stay unknown."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from psycopg2.extensions import connection as Connection

from stack import servers
from tests.pipeline import query

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
