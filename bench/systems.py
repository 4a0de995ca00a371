"""The systems that are measured: ours, native replication, and the plain design.

Each has databases, a topic and processes of its own.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import config
from bench.output import say
from harness import ROOT
from harness.database import administer, database_url, query
from harness.kafka import client_settings
from harness.pipeline import Pipeline
from harness.script import Script, launch
from harness.waiting import wait_until

import psycopg2
from confluent_kafka.admin import AdminClient
from psycopg2.extensions import connection as Connection

BARE = (ROOT / "bench" / "bare.sql").read_text(encoding="utf-8")
EMPLOYEES = BARE[BARE.index("CREATE TABLE employees") : BARE.index("CREATE TABLE emp_cdc")]
NAME = "cdc_bench_"  # of every database, topic, slot and subscription: cdc_bench_<pid>_<what>
ADMIN = {**client_settings(), "log_level": 0}  # what fails is raised, too

Scripts = dict[str, list[Script]]  # by name: producer, consumer


@contextmanager
def empty_pipeline(what: str) -> Iterator[Pipeline]:
    """Make two empty databases; in the end remove them, and stop every script."""
    with tempfile.TemporaryDirectory(prefix=NAME) as logs:
        pipeline = Pipeline(f"{NAME}{os.getpid()}_{what}", Path(logs))
        try:
            pipeline.create()
            yield pipeline
        finally:
            remove_replication(pipeline.name)
            pipeline.drop()


@contextmanager
def our_pipeline(what: str) -> Iterator[Pipeline]:
    """Set up the pipeline under test; no script runs yet."""
    with empty_pipeline(what) as pipeline:
        pipeline.set_up()
        yield pipeline


@contextmanager
def native_pipeline(what: str) -> Iterator[Pipeline]:
    """Make the table on both sides; start_replication() is yet to be called."""
    with empty_pipeline(what) as pipeline:
        for connection in pipeline.source(), pipeline.destination():
            query(connection, EMPLOYEES)
        yield pipeline


@contextmanager
def plain_pipeline(what: str) -> Iterator[Pipeline]:
    """Make the plain design's tables and topic; plain.py does not run yet."""
    with empty_pipeline(what) as pipeline:
        query(pipeline.source(), BARE)
        query(pipeline.destination(), EMPLOYEES)
        result = pipeline.run("admin.py")
        assert result.returncode == 0, result.stdout + result.stderr
        yield pipeline
        stop(pipeline.scripts)  # so that the consumer leaves its group, and the next one need not wait


def start_plain(pipeline: Pipeline) -> Scripts:
    """Start both scripts of the plain design, the consumer first."""
    return {name: [start(pipeline, "bench.plain", name)] for name in ("consumer", "producer")}


def start(pipeline: Pipeline, module: str, *arguments: str) -> Script:
    """Start a module of bench/ as a process."""
    log = pipeline.logs / f"{len(pipeline.scripts)}-{module}.log"
    pipeline.scripts.append(launch(log, "-m", module, *arguments, **pipeline.environment))
    return pipeline.scripts[-1]


def stop(scripts: Sequence[Script]) -> None:
    for script in scripts:
        code = script.stop()
        assert code == 0, f"{script.log.name} ended with {code}:\n{script.output()[-2000:]}"


def check_running(scripts: Sequence[Script]) -> None:
    """Fail with the last output of a script that has ended."""
    for script in scripts:
        assert script.process.poll() is None, f"{script.log.name} ended:\n{script.output()[-2000:]}"


def connect(url: str) -> Connection:
    connection: Connection = psycopg2.connect(url)
    connection.autocommit = True
    return connection


def start_replication(pipeline: Pipeline) -> None:
    """Make native replication's slot and subscription, still disabled.

    From here on changes wait in the source's WAL.
    """
    query(pipeline.source(), f"CREATE PUBLICATION {pipeline.name} FOR TABLE employees")
    dsn = psycopg2.extensions.make_dsn(pipeline.source_url).replace("'", "''")
    query(
        pipeline.destination(),
        f"CREATE SUBSCRIPTION {pipeline.name} CONNECTION '{dsn}' PUBLICATION {pipeline.name} "
        "WITH (copy_data = false, enabled = false)",
    )


def enable_replication(pipeline: Pipeline) -> None:
    query(pipeline.destination(), f"ALTER SUBSCRIPTION {pipeline.name} ENABLE")


def remove_replication(name: str) -> None:
    """Drop the subscription and the slot of this name, whichever there is."""
    with (
        suppress(psycopg2.OperationalError),
        closing(connect(database_url(config.DESTINATION_DATABASE_URL, f"{name}_copy"))) as db,
    ):
        if query(db, "SELECT 1 FROM pg_subscription WHERE subname = %(name)s", {"name": name}):
            for change in ("DISABLE", "SET (slot_name = NONE)"):
                query(db, f"ALTER SUBSCRIPTION {name} {change}")
            query(db, f"DROP SUBSCRIPTION {name}")
    with closing(connect(config.SOURCE_DATABASE_URL)) as db:
        slot = "FROM pg_replication_slots WHERE slot_name = %(name)s"
        query(db, f"SELECT pg_terminate_backend(active_pid) {slot} AND active", {"name": name})
        wait_until(lambda: not query(db, f"SELECT 1 {slot} AND active", {"name": name}), 10, f"slot {name} inactive")
        query(db, f"SELECT pg_drop_replication_slot(slot_name) {slot}", {"name": name})


def remove_leftovers() -> None:
    """Remove what a killed benchmark left on the servers.

    A slot that nobody reads would keep the source's WAL for ever.
    """
    names = set()
    for url, table in (
        (config.SOURCE_DATABASE_URL, "SELECT datname FROM pg_database"),
        (config.DESTINATION_DATABASE_URL, "SELECT datname FROM pg_database"),
        (config.SOURCE_DATABASE_URL, "SELECT slot_name FROM pg_replication_slots"),
    ):
        with closing(connect(url)) as connection:
            names |= {name.removesuffix("_copy") for (name,) in query(connection, table)}
    admin = AdminClient(ADMIN)
    names |= {name.removesuffix("_dlq") for name in admin.list_topics(timeout=10).topics}
    for name in sorted(names):
        owner = re.match(rf"{NAME}(\d+)_", name)
        if owner and not Path(f"/proc/{owner[1]}").exists():
            say(f"removing {name}, left by a benchmark that was killed")
            remove_replication(name)
            Pipeline(name, Path()).drop()


def checkpoint() -> None:
    """Give every run the same start: no dirty pages, no checkpoint that is due."""
    for url in (config.SOURCE_DATABASE_URL, config.DESTINATION_DATABASE_URL):
        administer(url, "CHECKPOINT")


def wait_for_members(pipeline: Pipeline, consumers: int, partitions: int = 3) -> None:
    """Return when the group has so many members and they share all partitions."""
    admin = AdminClient(ADMIN)

    def all_shared() -> bool:
        group = admin.describe_consumer_groups([pipeline.name])[pipeline.name].result()
        time.sleep(0.1)
        owned = [len(member.assignment.topic_partitions) for member in group.members if member.assignment]
        return len(owned) == consumers and min(owned) > 0 and sum(owned) == partitions

    wait_until(all_shared, 30, f"{consumers} consumers share {partitions} partitions")
