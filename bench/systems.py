"""The systems that are measured: ours, native replication, the plain design; databases and processes of each."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psycopg2
from confluent_kafka.admin import AdminClient
from psycopg2.extensions import connection as Connection

import config
from bench.output import say
from tests.pipeline import ROOT, Pipeline, Script, administer, client_settings, database_url, query, wait_until

BARE = (ROOT / "bench" / "bare.sql").read_text(encoding="utf-8")
EMPLOYEES = BARE[BARE.index("CREATE TABLE employees") : BARE.index("CREATE TABLE emp_cdc")]
NAME = "cdc_bench_"  # of every database, topic, slot and subscription: cdc_bench_<pid>_<what>
Scripts = dict[str, list[Script]]  # by name: producer, consumer
ADMIN = {**client_settings(), "log_level": 3}


@contextmanager
def pipeline(what: str) -> Iterator[Pipeline]:
    """Two empty databases, and a topic's name; all that is in them, and every script started, goes at the end."""
    with tempfile.TemporaryDirectory(prefix=NAME) as logs:
        made = Pipeline(f"{NAME}{os.getpid()}_{what}", Path(logs))
        try:
            made.create()
            yield made
        finally:
            remove_replication(made.name)
            made.drop()


@contextmanager
def product(what: str) -> Iterator[Pipeline]:
    """The pipeline under test, set up; no script runs yet."""
    with pipeline(what) as made:
        made.set_up()
        yield made


@contextmanager
def plain(what: str) -> Iterator[Pipeline]:
    """The plain design's tables and topic; plain.py does not run yet."""
    with pipeline(what) as made:
        query(made.source(), BARE)
        query(made.destination(), EMPLOYEES)
        result = made.run("admin.py")
        assert result.returncode == 0, result.stdout + result.stderr
        yield made
        stop(made.scripts)  # they leave their group: the next run's consumer need not wait for it


def start(pipeline: Pipeline, script: str, *arguments: str) -> Script:
    """Start a script of bench/ beside us."""
    log = pipeline.logs / f"{len(pipeline.scripts)}-{script}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "bench" / script), *arguments],
            env={**os.environ, **pipeline.environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    pipeline.scripts.append(Script(process, log))
    return pipeline.scripts[-1]


def stop(scripts: Sequence[Script]) -> None:
    for script in scripts:
        code = script.stop()
        assert code == 0, f"{script.log.name} ended with {code}:\n{script.output()[-2000:]}"


def connect(url: str) -> Connection:
    connection: Connection = psycopg2.connect(url)
    connection.autocommit = True
    return connection


def start_replication(pipeline: Pipeline) -> None:
    """Native logical replication between the two databases, its slot made and the subscription still disabled: from
    here on changes wait in the source's log."""
    query(pipeline.source(), f"CREATE PUBLICATION {pipeline.name} FOR TABLE employees")
    dsn = psycopg2.extensions.make_dsn(pipeline.source_url).replace("'", "''")
    query(
        pipeline.destination(),
        f"CREATE SUBSCRIPTION {pipeline.name} CONNECTION '{dsn}' PUBLICATION {pipeline.name} "
        "WITH (copy_data = false, enabled = false)",
    )


def remove_replication(name: str) -> None:
    """Drop the subscription and the slot of this name, if they are there, however far they came."""
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
    """Remove what a benchmark that was killed left on the servers; a slot left there keeps the log for ever."""
    found = set()
    for url, table in (
        (config.SOURCE_DATABASE_URL, "SELECT datname FROM pg_database"),
        (config.DESTINATION_DATABASE_URL, "SELECT datname FROM pg_database"),
        (config.SOURCE_DATABASE_URL, "SELECT slot_name FROM pg_replication_slots"),
    ):
        with closing(connect(url)) as connection:
            found |= {name.removesuffix("_copy") for (name,) in query(connection, table)}
    admin = AdminClient(ADMIN)
    found |= {name.removesuffix("_dlq") for name in admin.list_topics(timeout=10).topics}
    for name in sorted(found):
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

    def shared() -> bool:
        group = admin.describe_consumer_groups([pipeline.name])[pipeline.name].result()
        time.sleep(0.1)
        owned = [len(member.assignment.topic_partitions) for member in group.members if member.assignment]
        return len(owned) == consumers and min(owned) > 0 and sum(owned) == partitions

    wait_until(shared, 30, f"{consumers} consumers share {partitions} partitions")


def ended(scripts: Sequence[Script]) -> str:
    """What a script said that has ended though it should run; empty while all run."""
    return "".join(f"{s.log.name} ended:\n{s.output()[-2000:]}" for s in scripts if s.process.poll() is not None)
