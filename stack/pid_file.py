"""Which servers were started here, and which of them still run.

A file <name>.pid for each server: what it was started as, its process, and when that
process started. A later process with the same number is not taken for the server.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stack.sets import Server


def record(server: Server, process: int) -> None:
    """Write the server's file, complete or not at all."""
    last = asdict(server) | {"pid": process, "started": started(process)}
    server.file("pid.new").write_text(json.dumps(last))
    server.file("pid.new").replace(server.file("pid"))


def pid(server: Server) -> int | None:
    """Return the server's process if it was started here and still runs."""
    last = recorded(server)
    return int(last["pid"]) if last and last["started"] and started(last["pid"]) == last["started"] else None


def recorded(server: Server) -> dict[str, Any] | None:
    """Return what the server's file says of its last run, if there is one."""
    file = server.file("pid")
    return dict(json.loads(file.read_text())) if file.exists() else None


def started(process: int) -> str:
    """Return when the process started, as the system writes it; "" if it has ended."""
    if sys.platform == "linux":
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return ""
        return "" if fields[0] == "Z" else fields[19]
    found = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(process)], capture_output=True, text=True)
    status, _, began = found.stdout.strip().partition(" ")
    return "" if status.startswith("Z") else began.strip()


def ours(state: Path) -> list[Server]:
    """Return the servers that were started with this folder and not stopped."""
    records = [json.loads(path.read_text()) for path in state.glob("*.pid")]
    return [Server(**{name: record[name] for name in Server.__dataclass_fields__}) for record in records]
