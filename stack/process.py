"""One server's process: start, wait until it answers, stop, kill."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from stack import Trouble
from stack.answers import answer
from stack.artifacts import programs
from stack.folders import as_account, make
from stack.pid_file import pid, record
from stack.prepare import java_command, postgres_command
from stack.sets import Server

PATIENCE = 60  # seconds that a server has to answer
SIGNALS = {  # to shut down in good order, to end at once
    "zookeeper": (signal.SIGTERM, signal.SIGKILL),
    "kafka": (signal.SIGTERM, signal.SIGKILL),
    "postgres": (signal.SIGINT, signal.SIGQUIT),  # never SIGKILL: the backends would go on writing
}


def start(server: Server) -> None:
    """Start the server if it does not run; wait() returns when it answers."""
    if pid(server):
        return
    make(Path(server.state))
    folder = programs(server.kind, server.version)
    if server.kind == "postgres":
        launch(server, postgres_command(server, folder), **as_account())
    else:
        launch(server, java_command(server, folder))


def launch(server: Server, command: list[str], **options: Any) -> None:
    """Run the command apart from us and our terminal.

    The log of the run before becomes .log.1.
    """
    if server.file("log").exists():
        server.file("log").replace(server.file("log.1"))
    with open(server.file("log"), "wb") as log:
        options |= {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "cwd": server.state}
        child = subprocess.Popen(command, start_new_session=True, **options)
    child.returncode = 0  # else Python warns that the child outlives us
    record(server, child.pid)


def wait(server: Server, seconds: float = PATIENCE) -> None:
    """Return when the server answers; raise Trouble if it has ended or is too slow."""
    deadline = time.monotonic() + seconds
    log = server.file("log")
    while (state := answer(server.kind, server.port, server.encrypted)) != "answers":
        if not pid(server) and state != "starting":
            end_of_log = log.read_text(errors="replace").splitlines()[-15:] if log.exists() else []
            raise Trouble("\n".join([f"{server.name} does not run; the end of {log}:", *end_of_log]))
        if time.monotonic() > deadline:
            raise Trouble(f"{server.name} does not answer after {seconds:.0f} s, see {log}")
        time.sleep(0.05)


def stop(server: Server) -> None:
    """Stop a server that was started here: in good order, or after 15 s at once."""
    orderly, at_once = SIGNALS[server.kind]
    if not end(server, orderly, 15) and not end(server, at_once, 15):
        raise Trouble(f"{server.name} (pid {pid(server)}) does not end")


def kill(server: Server) -> None:
    """End a server that was started here as a crash would; start() brings it back."""
    if not pid(server):
        raise Trouble(f"{server.name} was not started here, or has ended")
    if not end(server, SIGNALS[server.kind][1], 15):
        raise Trouble(f"{server.name} (pid {pid(server)}) does not end")


def end(server: Server, number: signal.Signals, seconds: float) -> bool:
    """Send the signal; return whether the process has ended within that time."""
    if process := pid(server):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)
    deadline = time.monotonic() + seconds
    while pid(server):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    if process:
        with contextlib.suppress(ChildProcessError):  # it is no child of this process
            os.waitpid(process, os.WNOHANG)
    server.file("pid").unlink(missing_ok=True)
    return True
