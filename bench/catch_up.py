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
from dataclasses import asdict
from pathlib import Path
from typing import Any

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import command, marks, output, systems, tables
from bench.catch_up_runs import Run, report, title
from bench.cpu import Meter
from bench.loads import COUNT, HOT_ROWS, LOADS, ROWS_PER_TRANSACTION, TRANSACTION
from bench.output import say
from bench.systems import Scripts
from tests.pipeline import ROOT, Pipeline, peak_memory, query

TIMEOUT = 300  # seconds for a load to arrive


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
