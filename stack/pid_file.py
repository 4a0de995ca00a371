"""Which servers were started here, and whether they still run: a file <name>.pid for each."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stack.sets import Server


def record(server: Server, process: int) -> None:
    last = asdict(server) | {"pid": process, "started": started(process)}
    server.file("pid.new").write_text(json.dumps(last))
    server.file("pid.new").replace(server.file("pid"))


def pid(server: Server) -> int | None:
    """The server's process if it was started here and still runs; another process that has its pid by now is not it."""
    last = recorded(server)
    return int(last["pid"]) if last and last["started"] and started(last["pid"]) == last["started"] else None


def recorded(server: Server) -> dict[str, Any] | None:
    """What launch() wrote down of the server's last run, unless stop() or kill() has ended it."""
    file = server.file("pid")
    return dict(json.loads(file.read_text())) if file.exists() else None


def started(process: int) -> str:
    """When the process started, in the system's own words; nothing if it has ended."""
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
    """The servers that were started with this folder and not stopped, whatever set they are of."""
    records = [json.loads(path.read_text()) for path in state.glob("*.pid")]
    return [Server(**{name: record[name] for name in Server.__dataclass_fields__}) for record in records]
