"""How fast a backlog is carried over: ours, PostgreSQL's native logical replication, and the plain design.

    python bench/catch_up.py
    python bench/catch_up.py --changes 300_000 --pairs 5 --loads mixed --consumers 1 --systems ours,native

Two loads, each in transactions of 1,000: `mixed` is 60 % INSERT, 30 % UPDATE and 10 % DELETE, `hot` is 90 % updates of
10,000 rows. The whole load waits in the log (native: in its slot) before a system starts. Changes per second count from
the moment the load's first rows are visible at the destination until all of it is, without those first rows; "with
start-up" counts all changes from the start of the processes (native: ALTER SUBSCRIPTION ... ENABLE). In the end both
tables are compared. Producer and a single consumer start together; several consumers share the partitions first.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from psycopg2.extensions import connection as Connection

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import command, cpu, figures, marks, output, systems, tables
from bench.figures import shown
from bench.output import say
from tests.pipeline import ROOT, Pipeline, Script, peak_memory, query

Scripts = dict[str, list[Script]]  # by name: producer, consumer

TRANSACTION = 1_000  # changes
HOT = 10_000  # rows that the hot load finds on both sides
TIMEOUT = 300  # seconds for a load to arrive

# In transaction t of the mixed load 600 rows come in, 300 of any earlier transaction change, and 100 go that came in
# with transaction t/2. Deterministic, so that every system has the same to carry.
LOADS = f"""
CREATE PROCEDURE mixed(transactions INT) LANGUAGE plpgsql AS $$
BEGIN
    {marks.FIRST_MARKS};
    COMMIT;
    FOR t IN 1..transactions LOOP
        INSERT INTO employees
        SELECT t * 1000 + n, 'First ' || n, 'Last ' || t, DATE '1970-01-01' + n, 'City ' || n % 100, n
        FROM generate_series(0, 599) AS n;
        UPDATE employees SET salary = salary + t, city = 'Moved in ' || t WHERE emp_id = ANY (ARRAY (
            SELECT 1000 * (1 + (hashint4(t * 300 + n) & 2147483647) % t) + 100 + n FROM generate_series(0, 299) AS n));
        DELETE FROM employees WHERE emp_id BETWEEN (t + 1) / 2 * 1000 + 400 + t % 2 * 100
                                               AND (t + 1) / 2 * 1000 + 499 + t % 2 * 100;
        COMMIT;
    END LOOP;
    {marks.LAST_MARKS};
    COMMIT;
END
$$;
CREATE PROCEDURE hot(transactions INT) LANGUAGE plpgsql AS $$
BEGIN
    {marks.FIRST_MARKS};
    COMMIT;
    FOR t IN 1..transactions LOOP
        UPDATE employees SET salary = t, city = 'Moved in ' || t WHERE emp_id = ANY (ARRAY (
            SELECT 1 + (t * 3571 + n * 7) % {HOT} FROM generate_series(1, 900) AS n));
        INSERT INTO employees
        SELECT {HOT} + t * 100 + n, 'First ' || n, 'Last ' || t, DATE '1970-01-01' + n, 'City ' || n, n
        FROM generate_series(0, 99) AS n;
        COMMIT;
    END LOOP;
    {marks.LAST_MARKS};
    COMMIT;
END
$$;
"""
ROWS_PER_TRANSACTION = {"mixed": 500, "hot": 100}  # that a load leaves behind
COUNT = "SELECT count(*) FROM employees"
HOT_ROWS = f"""
INSERT INTO employees SELECT n, 'First ' || n, 'Last ' || n, DATE '1970-01-01' + n % 9999, 'City ' || n, n
FROM generate_series(1, {HOT}) AS n
"""


@dataclass
class Run:
    """One system carrying one load."""

    system: str
    load: str
    changes: int
    consumers: int
    seconds: float  # from the first to the last row visible
    rate: float  # changes per second in that time, without the changes that came with the first row
    start_up: float  # seconds from the start of the processes to the first row visible
    rate_with_start_up: float
    began: float  # time.time() at the start of the processes
    published: float | None = None  # seconds until the last page was published: does that overlap with applying?
    cpu: dict[str, dict[str, float]] = field(default_factory=dict)  # seconds, without the start of the scripts
    memory: dict[str, float] = field(default_factory=dict)  # MB at its peak


@dataclass
class Meter:
    """CPU of the servers and scripts from now on."""

    pipeline: Pipeline
    source: Connection
    destination: Connection
    scripts: Scripts  # those that run already

    def __post_init__(self) -> None:
        self.watchers = {query(c, "SELECT pg_backend_pid()")[0][0] for c in (self.source, self.destination)}
        self.servers = {"source": cpu.postmaster(self.source), "destination": cpu.postmaster(self.destination)}
        self.kafka = cpu.kafka_process()
        self.before = self.read(self.scripts)

    def read(self, scripts: Scripts) -> dict[str, dict[str, float]]:
        found = {
            name: cpu.server_cpu(process, self.pipeline.name, self.watchers)
            for name, process in self.servers.items()
            if process is not None
        }
        if self.kafka:
            found["Kafka"] = {"Kafka": cpu.cpu(self.kafka)}
        for name, group in scripts.items():
            found[name] = {script.log.name: cpu.cpu(script.process.pid) for script in group}
        return found

    def result(self, scripts: Scripts, start_cpu: dict[str, float]) -> dict[str, dict[str, float]]:
        """What was spent; for scripts that started meanwhile without what their start costs."""
        total = {}
        for name, after in self.read(scripts).items():
            before = self.before.get(name, dict.fromkeys(after, start_cpu.get(name, 0.0)))
            total[name] = cpu.spent(before, after)
        return total


def prepare(pipeline: Pipeline, load: str, transactions: int, wait: Callable[[], None] = lambda: None) -> None:
    """Put the rows that the load needs on both sides, call wait (from then on changes wait), run the load."""
    source = pipeline.source()
    query(source, LOADS)
    if load == "hot":
        tables.add_uncaptured(pipeline, HOT_ROWS)
    wait()
    query(source, f"CALL {load}({transactions})")


def carry(
    system: str,
    load: str,
    transactions: int,
    pipeline: Pipeline,
    launch: Callable[[], Scripts],
    waiting: Scripts | None = None,
    start_cpu: dict[str, float] | None = None,
) -> Run:
    """Launch a system (what comes back are its scripts; some may be waiting already), watch the load arrive, compare
    the tables."""
    systems.checkpoint()
    source, destination = pipeline.source(), pipeline.destination()
    before = query(destination, COUNT)[0][0]
    meter = Meter(pipeline, source, destination, waiting or {})
    began, began_at = time.monotonic(), time.time()
    scripts = launch() | (waiting or {})
    every = [script for group in scripts.values() for script in group]
    arrival = marks.watch(destination, COUNT, TIMEOUT, every)
    cpu = meter.result(scripts, start_cpu or {})
    memory = {name: max(peak_memory(s.process.pid) for s in group) for name, group in scripts.items()}
    tables.check_equal(pipeline)
    changes = transactions * TRANSACTION + 2 * marks.MARKS
    left = transactions * ROWS_PER_TRANSACTION[load] + 2 * marks.MARKS
    at_first = changes * (arrival.count - before) / left
    seconds = arrival.last - arrival.first
    return Run(
        system,
        load,
        changes,
        len(scripts.get("consumer", [])),
        round(seconds, 4),
        (changes - at_first) / seconds,
        round(arrival.first - began, 4),
        changes / (arrival.last - began),
        began_at,
        cpu=cpu,
        memory=memory,
    )


def run_ours(load: str, transactions: int, consumers: list[int]) -> Iterator[Run]:
    """One load, carried over once for each number of consumers: in between the position and the destination are put
    back to where they were, and the same backlog waits again."""
    with systems.product("ours") as pipeline:
        start_cpu = {name: cpu_of_start(pipeline, f"{name}.py") for name in ("producer", "consumer")}
        ((offset, snapshot),) = query(pipeline.source(), "SELECT last_offset, snapshot::text FROM cdc_position")
        prepare(pipeline, load, transactions)
        for number in consumers:
            if number != consumers[0]:
                query(pipeline.destination(), "TRUNCATE employees, cdc_applied")
                if load == "hot":
                    tables.add_at_destination(pipeline.destination(), HOT_ROWS)
                moved = "UPDATE cdc_position SET last_offset = %s, snapshot = %s"
                query(pipeline.source(), moved, (offset, snapshot))
            yield carry_ours(pipeline, load, transactions, number, start_cpu)


def carry_ours(pipeline: Pipeline, load: str, transactions: int, number: int, start_cpu: dict[str, float]) -> Run:
    def consumers() -> Scripts:
        return {"consumer": [pipeline.start("consumer.py") for _ in range(number)]}

    def launch() -> Scripts:
        together = {} if waiting else consumers()
        return together | {"producer": [pipeline.start("producer.py")]}

    waiting = consumers() if number > 1 else {}
    if waiting:
        systems.wait_for_members(pipeline, number)
    run = carry("ours", load, transactions, pipeline, launch, waiting, start_cpu)
    saved = query(pipeline.source(), "SELECT extract(epoch FROM saved_at)::float FROM cdc_position")[0][0]
    run.published = round(saved - run.began, 2)
    systems.stop([script for script in pipeline.scripts if script.process.poll() is None])
    return run


def cpu_of_start(pipeline: Pipeline, script: str) -> float:
    """CPU seconds of a script that starts, finds nothing to do and ends."""

    def children() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = children()
    result = pipeline.run(script, "--once")
    assert result.returncode == 0, result.stdout + result.stderr
    return children() - before


def run_native(load: str, transactions: int) -> list[Run]:
    with systems.pipeline("native") as pipeline:
        for connection in pipeline.source(), pipeline.destination():
            query(connection, systems.EMPLOYEES)
        prepare(pipeline, load, transactions, lambda: systems.start_replication(pipeline))

        def launch() -> Scripts:
            query(pipeline.destination(), f"ALTER SUBSCRIPTION {pipeline.name} ENABLE")
            return {}

        return [carry("native", load, transactions, pipeline, launch)]


def run_plain(load: str, transactions: int) -> list[Run]:
    with systems.plain("plain") as pipeline:
        prepare(pipeline, load, transactions)

        def launch() -> Scripts:
            return {name: [systems.start(pipeline, "plain.py", name)] for name in ("consumer", "producer")}

        return [carry("plain", load, transactions, pipeline, launch)]


def one_pair(load: str, number: int, arguments: argparse.Namespace) -> list[Run]:
    """Every system once, one after the other, the order turned round every other time."""
    systems: list[Callable[[], Iterable[Run]]] = []
    transactions = arguments.changes // TRANSACTION
    if "ours" in arguments.systems:
        systems.append(lambda: run_ours(load, transactions, arguments.consumers))
    if "native" in arguments.systems:
        systems.append(lambda: run_native(load, transactions))
    if "plain" in arguments.systems and load == "mixed":
        systems.append(lambda: run_plain(load, arguments.plain_changes // TRANSACTION))
    runs = []
    for system in systems if number % 2 == 0 else reversed(systems):
        for run in system():
            say(f"pair {number + 1}, {load}: {title(run)} {run.rate:,.0f} changes/s")
            runs.append(run)
    return runs


def title(run: Run) -> str:
    return run.system + (f", {run.consumers} consumer{'s' * (run.consumers > 1)}" if run.system == "ours" else "")


def report(load: str, pairs: list[list[Run]]) -> dict[str, Any]:
    """Print the tables of one load; returns its medians."""
    systems = {title(run): run for run in sorted(pairs[0], key=lambda run: (run.system != "ours", run.consumers))}
    medians: dict[str, Any] = {}
    for name in systems:
        runs = [run for pair in pairs for run in pair if title(run) == name]
        medians[name] = {
            "changes": runs[0].changes,
            "rate": figures.median([run.rate for run in runs]),
            "to_native": ratio(name, "native", pairs),
            "to_plain": ratio(name, "plain", pairs),
            "start_up": figures.median([run.start_up for run in runs]),
            "rate_with_start_up": figures.median([run.rate_with_start_up for run in runs]),
            "cpu_per_million": {
                who: figures.median([sum(run.cpu.get(who, {}).values()) / run.changes * 1e6 for run in runs])
                for who in ("producer", "consumer", "source", "destination", "Kafka")
                if who in runs[0].cpu
            },
            "memory": {who: max(run.memory[who] for run in runs) for who in runs[0].memory},
        }
    output.print_table(
        f"Catch-up, {load} load, {systems[next(iter(systems))].changes:,} changes: medians of {len(pairs)} pairs",
        ("", "changes/s", "of native", "of plain", "start-up s", "changes/s with start-up"),
        [
            (
                name,
                shown(m["rate"]),
                shown(m["to_native"], ".2f"),
                shown(m["to_plain"], ".0f"),
                shown(m["start_up"], ".2f"),
                shown(m["rate_with_start_up"]),
            )
            for name, m in medians.items()
        ],
    )
    output.print_table(
        "CPU seconds per million changes, and peak memory (of the largest)",
        ("", "producer", "consumers", "source", "destination", "Kafka", "all", "producer MB", "consumer MB"),
        [
            (
                name,
                *(
                    shown(m["cpu_per_million"].get(who), ".1f")
                    for who in ("producer", "consumer", "source", "destination", "Kafka")
                ),
                shown(sum(m["cpu_per_million"].values()), ".1f"),
                shown(m["memory"].get("producer")),
                shown(m["memory"].get("consumer")),
            )
            for name, m in medians.items()
        ],
    )
    return medians


def ratio(name: str, reference: str, pairs: list[list[Run]]) -> float:
    """The median of a system's rates over the reference's rates of the same pair."""
    rates = [{title(run): run.rate for run in pair} for pair in pairs]
    return figures.median([pair[name] / pair[reference] for pair in rates if reference in pair and name in pair])


def benchmark() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--changes", type=int, default=300_000)
    parser.add_argument("--plain-changes", type=int, default=10_000, help="the plain design's load, as it is slow")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--loads", type=command.names, default=["mixed", "hot"], metavar="mixed,hot")
    parser.add_argument(
        "--systems", type=command.names, default=["ours", "native", "plain"], metavar="ours,native,plain"
    )
    parser.add_argument("--consumers", type=command.numbers, default=[1, 3], metavar="1,2,3")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.changes, arguments.plain_changes, arguments.pairs = 30_000, 2_000, 1
    results: dict[str, Any] = {"runs": [], "medians": {}}
    for load in arguments.loads:
        pairs = [one_pair(load, number, arguments) for number in range(arguments.pairs)]
        results["runs"] += [asdict(run) | {"pair": number} for number, pair in enumerate(pairs) for run in pair]
        results["medians"][load] = report(load, pairs)
    output.write("catch_up", results)


if __name__ == "__main__":
    os.chdir(ROOT)
    command.main(benchmark)
