"""What the benchmarks share: databases of their own, clocks, CPU and memory of processes, results as table and JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
from confluent_kafka.admin import AdminClient
from psycopg2.extensions import connection as Connection
from rich.console import Console
from rich.table import Table

import cli
import config
from stack import servers
from tests.pipeline import ROOT, Pipeline, Script, administer, client_settings, database_url, query, wait_until

RESULTS = ROOT / "bench" / "results"
BARE = (ROOT / "bench" / "bare.sql").read_text(encoding="utf-8")
NAME = "cdc_bench_"  # of every database, topic, slot and subscription: cdc_bench_<pid>_<what>
TICKS = os.sysconf("SC_CLK_TCK")
console = Console(width=None if sys.stdout.isatty() else 130)
ADMIN = {**client_settings(), "log_level": 3}

EMPLOYEES = BARE[BARE.index("CREATE TABLE employees") : BARE.index("CREATE TABLE emp_cdc")]
# Order does not matter to the sum; two different tables agree in it by accident once in 2^64 times.
DIGEST = "SELECT count(*), sum(hashtextextended(employees::text, 0)::numeric)::text FROM employees"


# The benchmark as a program


def parser(doc: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--quick", action="store_true", help="one short round: shows that it works, its figures are noise"
    )
    return made


def numbers(text: str) -> list[int]:
    """An argument such as 1,4,16 or 10_000,1_000_000."""
    return [int(part) for part in text.split(",") if part]


def names(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def main(benchmark: Callable[[], None]) -> None:
    """Run a benchmark. SIGTERM ends it as Ctrl-C does: through every `finally`."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        remove_leftovers()
        benchmark()
    except psycopg2.OperationalError as error:
        cli.fail(f"{str(error).strip()}{'' if error.pgcode else '; are the servers up? `make up` starts them'}")
    except AssertionError as error:
        cli.fail(f"FAILED: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def say(text: str) -> None:
    console.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim] {text}", highlight=False)


def median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else float("nan")


def percentile(values: Sequence[float], part: float) -> float:
    """The smallest value that at least this part of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else float("nan")


def shown(value: float | None, form: str = ",.0f") -> str:
    return "–" if value is None or value != value else format(value, form)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    console.print(f"\n[bold]{title}[/bold]", highlight=False)
    table = Table()
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=not number)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def write(name: str, results: Any) -> None:
    """Write bench/results/<name>.json: the results, and where they come from."""
    about: dict[str, Any] = {"at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "cores": os.cpu_count()}
    about |= {"python": platform.python_version(), "load_average": os.getloadavg()}
    for database, url in (("source", config.SOURCE_DATABASE_URL), ("destination", config.DESTINATION_DATABASE_URL)):
        with closing(psycopg2.connect(url)) as connection:
            about[database] = query(connection, "SHOW server_version")[0][0]
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    file.write_text(json.dumps(_plain({"about": about, name: results}), indent=1) + "\n", encoding="utf-8")
    say(f"all figures in {file.relative_to(ROOT)}")


def _plain(value: Any) -> Any:
    """The same for JSON: NaN is not JSON, and digits that mean nothing go."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return None if value != value else float(f"{value:.6g}") if abs(value) < 1e9 else value
    return value


# Databases, topics and processes of our own


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


def digests(pipeline: Pipeline) -> list[Any]:
    return [query(connection, DIGEST)[0] for connection in (pipeline.source(), pipeline.destination())]


def check_equal(pipeline: Pipeline) -> None:
    """Fail if the two tables differ."""
    source, destination = digests(pipeline)
    assert source == destination, f"{pipeline.name}: source has (rows, digest) {source}, destination {destination}"


def wait_until_equal(pipeline: Pipeline, seconds: float) -> None:
    """Return when the two tables are equal; fail if they are not within so many seconds."""

    def equal() -> bool:
        time.sleep(0.2)
        assert not ended(pipeline.scripts), ended(pipeline.scripts)
        source, destination = digests(pipeline)
        return bool(source == destination)

    wait_until(equal, seconds, f"{pipeline.name}: both tables equal")


def wait_for_members(pipeline: Pipeline, consumers: int, partitions: int = 3) -> None:
    """Return when the group has so many members and they share all partitions."""
    admin = AdminClient(ADMIN)

    def shared() -> bool:
        group = admin.describe_consumer_groups([pipeline.name])[pipeline.name].result()
        time.sleep(0.1)
        owned = [len(member.assignment.topic_partitions) for member in group.members if member.assignment]
        return len(owned) == consumers and min(owned) > 0 and sum(owned) == partitions

    wait_until(shared, 30, f"{consumers} consumers share {partitions} partitions")


def add_uncaptured(pipeline: Pipeline, insert: str) -> None:
    """Put the same rows on both sides at once, as if they had been carried over long ago."""
    source, destination = pipeline.source(), pipeline.destination()
    trigger = "ALTER TABLE employees {} TRIGGER employee_cdc_trigger"
    captured = query(source, "SELECT 1 FROM pg_trigger WHERE tgname = 'employee_cdc_trigger'")
    if captured:
        query(source, trigger.format("DISABLE"))
    query(source, insert)
    if captured:
        query(source, trigger.format("ENABLE ALWAYS"))
    add_at_destination(destination, insert)


def add_at_destination(destination: Connection, insert: str) -> None:
    query(destination, insert)
    if query(destination, "SELECT to_regclass('cdc_applied')")[0][0]:  # the product's gate knows them, too
        query(destination, "INSERT INTO cdc_applied SELECT emp_id, 0 FROM employees")


# A load with marks at both ends: the same clock for every system


MARKS = 64  # rows in the load's first transaction, and in its last: each partition gets some of both
FIRST_MARKS = f"INSERT INTO employees (emp_id) SELECT -n FROM generate_series(1, {MARKS}) AS n"
LAST_MARKS = f"INSERT INTO employees (emp_id) SELECT -1000 - n FROM generate_series(1, {MARKS}) AS n"
STEP = 0.005  # seconds between two looks at the destination

LOOK = f"""
PREPARE first AS SELECT CASE WHEN EXISTS (SELECT FROM employees WHERE emp_id BETWEEN -{MARKS} AND -1)
                             THEN ({{count}}) END;
PREPARE last AS SELECT 1 FROM employees WHERE emp_id = -1001;
PREPARE all_last AS SELECT 1 FROM employees WHERE emp_id BETWEEN -1000 - {MARKS} AND -1001 HAVING count(*) = {MARKS}
"""


@dataclass
class Arrival:
    """When a load was seen at the destination (time.monotonic()), and what count gave when the first of it was."""

    first: float
    last: float
    count: int


def watch(destination: Connection, count: str, timeout: float, scripts: Sequence[Script]) -> Arrival:
    """Look at the destination every few milliseconds until the last row of the load is visible: one index look-up each
    time, so that watching costs a system next to nothing, and every system the same. count is run once, with the look
    that finds the load's first row: how much of the load came with it."""
    query(destination, f"DEALLOCATE ALL; {LOOK.format(count=count)}")
    end = time.monotonic() + timeout

    def seen(name: str) -> tuple[float, int]:
        while True:
            found = query(destination, f"EXECUTE {name}")
            if found and found[0][0] is not None:
                return time.monotonic(), found[0][0]
            assert time.monotonic() < end, f"{name} row not visible within {timeout:.0f} s"
            assert not ended(scripts), ended(scripts)
            time.sleep(STEP)

    first, counted = seen("first")
    seen("last")
    return Arrival(first, seen("all_last")[0], counted)


def ended(scripts: Sequence[Script]) -> str:
    """What a script said that has ended though it should run; empty while all run."""
    return "".join(f"{s.log.name} ended:\n{s.output()[-2000:]}" for s in scripts if s.process.poll() is not None)


# CPU and memory, from /proc; where there is none (macOS, servers in containers) they stay unknown


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
