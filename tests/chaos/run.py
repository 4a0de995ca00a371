"""A run: the scripts that it keeps running, and how long they take until the pipeline is in sync."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from harness.database import query
from harness.pipeline import Pipeline
from harness.proxy import Proxy
from harness.script import Script
from stack.servers import Server

import psycopg2
from psycopg2.extensions import connection as Connection
from rich.console import Console

PATIENCE = 45.0  # seconds that we look for it
MARKERS = range(1_000_001, 1_000_041)  # employees that no writer touches: enough of them for every partition
console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)


@dataclass
class Running:
    """A script that the run keeps running, as a supervisor would."""

    name: str
    environment: dict[str, str]
    proxied: bool
    script: Script


@dataclass
class Run:
    random: Random
    servers: dict[str, Server]
    pipeline: Pipeline
    proxies: dict[str, Proxy]  # source, destination, kafka
    small_disk: Path | None  # where the destination's tables are, if that could be made
    limit: float  # seconds until in sync after a fault
    polls: Path | None = None  # where the producers write down their polls, if they do
    running: dict[str, Running] = field(default_factory=dict)  # by role: producer, consumer, second
    problems: list[str] = field(default_factory=list)
    took: dict[str, list[float]] = field(default_factory=dict)  # by kind of fault
    rounds: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    over: threading.Event = field(default_factory=threading.Event)
    writing: threading.Event = field(default_factory=threading.Event)  # whether the writers may begin a transaction
    transactions: list[threading.Lock] = field(default_factory=list)  # of each writer, held during one
    known: dict[int, set[tuple[int, str | None]]] = field(default_factory=dict)  # what the source had logged once

    def problem(self, text: str) -> None:
        self.problems.append(text)
        say(f"[bold red]{text}[/bold red]")


@contextmanager
def quiet(run: Run) -> Iterator[None]:
    """No writer has a transaction."""
    run.writing.clear()
    with ExitStack() as stack:
        for transaction in run.transactions:
            stack.enter_context(transaction)
        try:
            yield
        finally:
            run.writing.set()


def say(text: str) -> None:
    console.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim] {text}")


# Scripts


def start(run: Run, role: str, proxied: bool = False, instance: str = "") -> None:
    """Start the script of this role: producer, consumer, second (consumer), standby (producer)."""
    environment = {"KAFKA_GROUP_INSTANCE_ID": instance} if instance else {}
    if proxied:
        ports = {name: proxy.port for name, proxy in run.proxies.items()}
        environment["KAFKA_BOOTSTRAP_SERVERS"] = f"localhost:{ports['kafka']}"
        for name, url in (("source", run.pipeline.source_url), ("destination", run.pipeline.destination_url)):
            through = url.replace(f":{run.servers[name].port}/", f":{ports[name]}/")
            environment[f"{name.upper()}_DATABASE_URL"] = through
    name = producer_script(run) if role in ("producer", "standby") else "consumer.py"
    run.running[role] = Running(name, environment, proxied, run.pipeline.start(name, **environment))


def producer_script(run: Run) -> str:
    if not run.polls:
        return "producer.py"
    return run.pipeline.sabotaged(
        "import producer", "from proofs.record import record", f"record(producer, {str(run.polls)!r})"
    )


def start_again(run: Run, role: str) -> None:
    last = run.running[role]
    last.script = run.pipeline.start(last.name, **last.environment)


def kill(run: Run, role: str) -> None:
    run.running[role].script.kill()


def stop(run: Run, role: str) -> None:
    """End a script in good order."""
    script = run.running.pop(role).script
    try:
        code = script.stop()
    except subprocess.TimeoutExpired:
        run.problem(f"{script.log.name} did not end within 20 s of SIGTERM\n{tail(script)}")
        script.kill()
    else:
        starting = code == -signal.SIGTERM and not script.output()  # Python does not heed signals yet
        if code != 0 and not starting:
            run.problem(f"{script.log.name} ended with exit code {code} after SIGTERM\n{tail(script)}")


def ensure(run: Run, role: str, proxied: bool | None = None, instance: str | None = None) -> None:
    """Have a script run with these connections and this KAFKA_GROUP_INSTANCE_ID, and the pipeline be in sync."""
    now = run.running[role]
    has = now.environment.get("KAFKA_GROUP_INSTANCE_ID", "")
    wanted = (now.proxied if proxied is None else proxied, has if instance is None else instance)
    if wanted != (now.proxied, has):
        stop(run, role)
        start(run, role, *wanted)
        time_until_in_sync(run)


def signal_to(run: Run, role: str, number: int) -> None:
    run.running[role].script.process.send_signal(number)


def watch(run: Run) -> None:
    """Note a script that has ended by itself, and start it again."""
    for role, running in run.running.items():
        code = running.script.process.poll()
        if code is not None:
            run.problem(f"{running.script.log.name} ended by itself, exit code {code}\n{tail(running.script)}")
            start_again(run, role)


def tail(script: Script) -> str:
    return "\n".join(f"    {line}" for line in script.output().splitlines()[-6:])


def end_scripts(run: Run) -> None:
    for script in run.pipeline.scripts:
        if script.process.poll() is None:
            script.kill()


# Being in sync


def time_until_in_sync(run: Run) -> float:
    """Change the markers, and return the seconds until they are seen at the destination; infinite after PATIENCE."""
    began, number = time.monotonic(), next(run.rounds)
    mark = f"UPDATE employees SET salary = {number} WHERE emp_id >= {MARKERS.start} RETURNING emp_id"
    look = f"SELECT count(*) FROM employees WHERE emp_id >= {MARKERS.start} AND salary = {number}"
    for url, statement in ((run.pipeline.source_url, mark), (run.pipeline.destination_url, look)):
        connection: Connection | None = None
        rows: list[tuple[int]] = []
        while len(rows) < len(MARKERS) and (not rows or rows[0][0] != len(MARKERS)):
            if time.monotonic() - began > PATIENCE:
                return float("inf")
            watch(run)
            try:
                connection = connection or autocommit(url)
                rows = query(connection, statement)
            except psycopg2.Error:
                connection = None
            time.sleep(0.01)
        if connection:
            connection.close()
    return time.monotonic() - began


def autocommit(url: str) -> Connection:
    connection: Connection = psycopg2.connect(url, connect_timeout=5)
    connection.autocommit = True
    return connection


def ask(url: str, statement: str) -> int:
    with closing(autocommit(url)) as connection:
        return int(query(connection, statement)[0][0])
