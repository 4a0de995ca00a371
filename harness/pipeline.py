"""A pipeline of its own: databases and topics on the real servers, and its scripts as processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import config
from harness import ROOT
from harness.database import ROWS, administer, connect, database_url, query
from harness.kafka import all_messages, client_settings, delete_topics
from harness.script import Script, launch, peak_memory
from harness.waiting import at_once, wait_until

from confluent_kafka import Message, Producer
from psycopg2.extensions import connection as Connection

# The position in a copy of a database names the original.
OWN_POSITION = """
UPDATE cdc_position SET database = system_identifier || '/' || oid, saved_at = DEFAULT
FROM pg_database WHERE datname = current_database()
"""


@dataclass
class Pipeline:
    """Source and destination databases and topics named after the test, with everything set up."""

    name: str
    logs: Path
    scripts: list[Script] = field(default_factory=list)
    connections: list[Connection] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)  # which the test has created, at any of the servers
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.topic = self.name
        self.servers = config.SOURCE_DATABASE_URL, config.DESTINATION_DATABASE_URL
        self.source_url = database_url(config.SOURCE_DATABASE_URL, self.name)
        self.destination_url = database_url(config.DESTINATION_DATABASE_URL, f"{self.name}_copy")
        self.environment = {
            "SOURCE_DATABASE_URL": self.source_url,
            "DESTINATION_DATABASE_URL": self.destination_url,
            "KAFKA_TOPIC": self.topic,
            "KAFKA_GROUP_ID": self.name,
            "PYTHONUNBUFFERED": "1",
        }

    def create(self, template: Pipeline | None = None) -> None:
        """Create the databases: empty, or as copies of those of a pipeline that is set up."""
        here, there = f"CREATE DATABASE {self.name}", f"CREATE DATABASE {self.name}_copy"
        if template:
            here, there = f"{here} TEMPLATE {template.name}", f"{there} TEMPLATE {template.name}_copy"
        at_once(
            lambda: administer(config.SOURCE_DATABASE_URL, here),
            lambda: administer(config.DESTINATION_DATABASE_URL, there),
        )
        if template:
            administer(self.source_url, OWN_POSITION)

    def set_up(self) -> None:
        """Run db_setup.py and admin.py, neither of which waits for the other."""

        def succeed(script: str) -> None:
            result = self.run(script)
            assert result.returncode == 0, result.stdout + result.stderr

        at_once(lambda: succeed("db_setup.py"), lambda: succeed("admin.py"))

    def drop(self) -> None:
        self.leave()
        self.drop_databases()

    def leave(self) -> None:
        """End what runs, and delete the topics."""
        for script in self.scripts:
            if script.process.poll() is None:
                script.process.send_signal(signal.SIGCONT)
                script.kill()
        for connection in self.connections:
            connection.close()
        delete_topics(self.topic, f"{self.topic}_dlq")

    def drop_databases(self) -> None:
        """Drop the databases, and then the roles, which may own what was in them."""
        source, destination = self.servers
        at_once(
            lambda: administer(source, f"DROP DATABASE IF EXISTS {self.name} WITH (FORCE)"),
            lambda: administer(destination, f"DROP DATABASE IF EXISTS {self.name}_copy WITH (FORCE)"),
        )
        if self.roles:
            for server in self.servers:
                administer(server, f"DROP ROLE IF EXISTS {', '.join(self.roles)}")

    def run(self, script: str, *arguments: str, seconds: float = 90.0, **environment: str) -> Any:
        """Run a script to its end; returns its subprocess.CompletedProcess with text output."""
        return subprocess.run(
            [sys.executable, str(ROOT / script), *arguments],
            env={**os.environ, **self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def sabotaged(self, *lines: str) -> str:
        """Write a script for run() and start(): these lines of Python, and then main() of the module that the first
        line imports."""
        driver = self.logs / f"sabotaged-{len(list(self.logs.iterdir()))}.py"
        head = f"import os, signal, sys\nsys.path.insert(0, {str(ROOT)!r})"
        driver.write_text("\n".join([head, *lines, f"{lines[0].split()[-1]}.main()\n"]), encoding="utf-8")
        return str(driver)

    def start(self, script: str, *arguments: str, **environment: str) -> Script:
        """Start a script beside the test."""
        log = self.logs / f"{len(self.scripts)}-{Path(script).name}.log"
        self.scripts.append(launch(log, str(ROOT / script), *arguments, **{**self.environment, **environment}))
        return self.scripts[-1]

    @contextmanager
    def running(self, script: str, *arguments: str, **environment: str) -> Iterator[Script]:
        """A script for a part of a test, which must then end in good order."""
        started = self.start(script, *arguments, **environment)
        try:
            wait_until(started.output)  # before its first line a signal would just end it
            yield started
            assert started.stop() == 0, started.output()
            assert "Traceback" not in started.output()
        finally:
            started.kill()

    def source(self) -> Connection:
        """A new autocommit connection to the source, closed at the end of the test."""
        return self._connect(self.source_url)

    def destination(self) -> Connection:
        return self._connect(self.destination_url)

    def _connect(self, url: str) -> Connection:
        self.connections.append(connect(url))
        return self.connections[-1]

    def equal(self) -> bool:
        with self._both() as (source, destination):
            return query(source, ROWS) == query(destination, ROWS)

    def wait_until_equal(self, seconds: float = 30.0) -> None:
        with self._both() as (source, destination):
            wait_until(
                lambda: query(source, ROWS) == query(destination, ROWS),
                seconds,
                lambda: f"source and destination equal\n{self.outputs()}",
            )

    @contextmanager
    def _both(self) -> Iterator[tuple[Connection, Connection]]:
        """Connections of our own to both sides: a test may have given up its own."""
        with (
            closing(connect(self.source_url)) as source,
            closing(connect(self.destination_url)) as destination,
        ):
            yield source, destination

    def outputs(self) -> str:
        """The end of what each script has printed."""
        return "\n".join(f"{script.log.name}:\n{script.output()[-2000:]}" for script in self.scripts)

    def drain(self) -> None:
        """Publish and apply what is there, by --once."""
        for script in ("producer.py", "consumer.py"):
            result = self.run(script, "--once")
            assert result.returncode == 0, result.stdout + result.stderr

    def status(self) -> Any:
        """What admin.py status says."""
        result = self.run("admin.py", "status", "--json")
        assert result.returncode == 0, result.stdout + result.stderr
        return json.loads(result.stdout)

    def peak_memory(self, script: str) -> float:
        """Run a script with --once; returns the most memory that it ever used, in MB."""
        process = self.start(script, "--once").process
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, peak_memory(process.pid))  # in this order, as it is NaN once the process has ended
            time.sleep(0.01)
        assert process.returncode == 0, self.scripts[-1].output()
        return peak

    def send(self, *values: bytes | str | None, key: str | None = None, partition: int = -1) -> None:
        """Send messages to the topic, as a stranger would."""
        producer = Producer(client_settings())
        for value in values:
            producer.produce(self.topic, value, key, partition=partition)
        assert producer.flush(10) == 0

    def messages(self, topic: str | None = None) -> list[Message]:
        """All messages of the topic, or of another one, partition by partition."""
        return all_messages(topic or self.topic)

    def dead_letters(self) -> list[Message]:
        return self.messages(f"{self.topic}_dlq")


_numbers = iter(range(1_000_000))


@contextmanager
def new_pipeline(
    logs: Path, template: Pipeline | None = None, drop: Callable[[Pipeline], None] = Pipeline.drop_databases
) -> Iterator[Pipeline]:
    """A pipeline of empty databases, or of copies of a template's, and no topics; dropped at the end."""
    pipeline = Pipeline(f"cdc_test_{os.getpid()}_{next(_numbers)}", logs)
    pipeline.create(template)
    try:
        yield pipeline
    finally:
        pipeline.leave()
        drop(pipeline)
